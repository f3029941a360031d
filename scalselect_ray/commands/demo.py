"""A corpus and a model to try everything with, made on the spot: pictures drawn by a program, a tiny LLaVA with random
weights."""

import json
import random
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

transformers_logging.disable_progress_bar()

_COLOURS = ("red", "green", "blue", "yellow", "black", "purple")
_SHAPES = ("circle", "square", "bar")
_QUESTIONS = ("What is in the picture?", "Which shapes can you see?", "Describe the colours.")
_SAMPLES = 200
_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] | upper }}: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n"
    "{% else %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}"
)


def make_demo(folder: str) -> str:
    """Writes corpus, images, model and config below `folder`; returns the config's path. The same bytes each time."""
    root = Path(folder)
    make_corpus(root / "corpus", _SAMPLES)
    if not (root / "model" / "model.safetensors").exists():
        make_model(root / "model")
    config = root / "config.yaml"
    config.write_text(
        "# A run of `scalselect demo`. Paths are relative to the folder in which the command is started.\n"
        "corpus:\n"
        "  sources:\n"
        f"    - {{name: shapes, paths: [{json.dumps(str(root / 'corpus' / 'shapes.json'))}]}}\n"
        "  slice_rows: 25\n"
        f"extractor: {{model: {json.dumps(str(root / 'model'))}, dtype: float32}}\n"
        "selection: {budget: 0.16}\n"
        f"output: {json.dumps(str(root / 'output'))}\n"
    )
    return str(config)


def make_corpus(folder: Path, count: int) -> None:
    """`shapes.json`, a list of conversations, with `count` drawn pictures below `images`."""
    dice = random.Random(0)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        picture = Image.new("RGB", (dice.randint(60, 160), dice.randint(60, 160)), "white")
        draw = ImageDraw.Draw(picture)
        drawn = []
        for _ in range(dice.randint(1, 4)):
            shape, colour = dice.choice(_SHAPES), dice.choice(_COLOURS)
            x, y, size = dice.randint(0, 50), dice.randint(0, 50), dice.randint(10, 60)
            box = (x, y, x + size, y + size)
            if shape == "circle":
                draw.ellipse(box, fill=colour)
            else:
                draw.rectangle(box if shape == "square" else (x, y, x + size, y + 8), fill=colour)
            drawn.append(f"a {colour} {shape}")
        name = f"images/{number:04d}.png"
        picture.save(folder / name)
        turns = [
            {"from": "human", "value": f"<image>\n{dice.choice(_QUESTIONS)}"},
            {"from": "gpt", "value": f"I can see {' and '.join(drawn)}."},
        ]
        rows.append({"id": number, "image": name, "conversations": turns})
    (folder / "shapes.json").write_text(json.dumps(rows))


def byte_tokenizer(special: list[str], template: str, **named: str) -> PreTrainedTokenizerFast:
    """A tokenizer of single bytes and `special` tokens: needs no training and reads any text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=special[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=special[0], pad_token=special[0], eos_token=special[1], **named
    )
    fast.chat_template = template
    return fast


def make_model(folder: Path) -> None:
    """A LLaVA of 0.3 million parameters, as `save_pretrained` writes one."""
    tokenizer = byte_tokenizer(["<pad>", "</s>", "<image>"], _TEMPLATE)
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=56,
        patch_size=14,
        projection_dim=32,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
    )
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=image_token, image_seq_length=16)
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():  # random weights attend to everything alike: sharpened, so that a demo has something to show
        for name, weight in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                weight.mul_(8.0)
    model.save_pretrained(folder)
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_TEMPLATE,
    )
    processor.save_pretrained(folder)
