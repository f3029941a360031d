"""A corpus and a model to try everything with, made on the spot: pictures drawn by a program, a tiny LLaVA with random
weights."""

import json
from pathlib import Path

import torch
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.utils import logging as transformers_logging

from scalselect_ray.errors import OutputError
from scalselect_ray.testing import corpus
from scalselect_ray.testing.tokenizer import byte_tokenizer

transformers_logging.disable_progress_bar()

_SAMPLES = 200
_NAMES = {"config.yaml", "corpus", "model", "output"}
_FIRST_LINE = "# A run of `scalselect demo`. Paths are relative to the folder in which the command is started."
_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] | upper }}: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n"
    "{% else %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}"
)


def make_demo(folder: str) -> str:
    """Writes corpus, images, model and config below `folder`; returns the config's path. The same bytes each time.

    Raises OutputError where other files are: they are left as they are."""
    root = Path(folder)
    config = root / "config.yaml"
    _check_ours(root, config)
    root.mkdir(parents=True, exist_ok=True)
    config.write_text(
        f"{_FIRST_LINE}\ncorpus:\n"
        f"  sources:\n    - {{name: shapes, paths: [{json.dumps(str(root / 'corpus' / 'shapes.json'))}]}}\n"
        f"  slice_rows: 25\nextractor: {{model: {json.dumps(str(root / 'model'))}, dtype: float32}}\n"
        "selection: {budget: 0.16}\n"
        f"output: {json.dumps(str(root / 'output'))}\n"
    )
    corpus.draw(root / "corpus", _SAMPLES)
    if not (root / "model" / "model.safetensors").exists():
        make_model(root / "model")
    return str(config)


def _check_ours(root: Path, config: Path) -> None:
    """That there is nothing, or what an earlier demo has left."""
    if root.exists() and not root.is_dir():
        raise OutputError(f"{root} is a file: give a new folder for the demo")
    names = {path.name for path in root.iterdir()} if root.exists() else set()
    others = sorted(names - _NAMES)
    if not others and names and not (config.is_file() and config.read_text(errors="replace").startswith(_FIRST_LINE)):
        others = sorted(names)
    if others:
        raise OutputError(
            f"{root} holds files that no demo has written ({', '.join(others[:5])}): give a new folder for the demo, "
            "as in 'scalselect demo somewhere'"
        )


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
