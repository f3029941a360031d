"""A slow, plain oracle for every family: the full model with eager attention, one sample at a time, written from the
paper."""

from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from scalselect_ray.corpus import ImagePlaceholder, Sample, Turn

CONVERSATIONS = [
    [
        ("user", 1, "What is it?"),
        ("assistant", 0, "is"),
    ],  # the answer's word stands in the question and in the role's name
    [
        ("system", 0, "Be kind."),
        ("user", 1, "Where?"),
        ("assistant", 0, "Here, on the left."),
        ("user", 0, "Sure?"),
        ("assistant", 0, "e"),
    ],
    [
        ("user", 2, "Which of the two is larger?"),
        ("assistant", 0, "The second one, by far, as everybody can see at once."),
    ],
]
SIZES = [(70, 50), (120, 40), (64, 90), (100, 100)]


def samples() -> list[tuple[Sample, list[Image.Image]]]:
    made = []
    rng = np.random.default_rng(3)
    for row, said in enumerate(CONVERSATIONS):
        turns, images = [], []
        for role, count, text in said:
            places = []
            for _ in range(count):
                width, height = SIZES[(row + len(images)) % len(SIZES)]
                images.append(Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)))
                places.append(ImagePlaceholder(len(images) - 1))
            turns.append(Turn(role, (*places, text)))
        made.append((Sample(row, str(row), tuple(turns), ()), images))
    return made


@lru_cache(maxsize=1)
def whole(folder: Path):
    """The processor and the model of a checkpoint, as transformers itself loads them."""
    model = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    return AutoProcessor.from_pretrained(folder), model.eval()


def layers_of(model) -> torch.nn.ModuleList:
    """The decoder layers of a whole model."""
    if not hasattr(model, "model"):
        return model.language_model.model.layers
    return (model.model.text_model if hasattr(model.model, "text_model") else model.model.language_model).layers


def attention_and_output(model, inputs, number: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a layer, for one sample: the attention, mean over heads (S, S), and the output (S, E)."""
    caught: dict[str, torch.Tensor] = {}

    def keep(module, args, output) -> None:
        caught["output"] = output[0] if isinstance(output, tuple) else output

    layer = layers_of(model)[number]
    hooks = [
        layer.register_forward_hook(keep),
        layer.self_attn.register_forward_hook(lambda module, args, output: caught.update(attention=output[1])),
    ]
    with torch.no_grad(), suppress(AttributeError):  # Llama 4 of transformers 5.24 fails after its layers
        model(**inputs)
    for hook in hooks:
        hook.remove()
    return caught["attention"][0].mean(0), caught["output"][0]


def oracle(folder: Path, sample: Sample, images: list[Image.Image], rule: str, threshold: float, number: int = 0):
    """A layer's attention and output in the whole model. Token roles are counted by tokenizing growing prefixes of the
    text."""
    processor, model = whole(folder)
    tokenizer = processor.tokenizer
    messages = [
        {
            "role": t.role,
            "content": [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image"} for p in t.content],
        }
        for t in sample.turns
    ]
    text = processor.apply_chat_template(messages)
    nested = [images] if "Onevision" in type(processor).__name__ else images
    inputs = processor(text=[text], images=nested, return_tensors="pt").to(torch.float32)
    attention, hidden = attention_and_output(model, inputs, number)

    ids = inputs["input_ids"][0]
    image = ids == model.config.image_token_id
    marks = [
        tokenizer.convert_tokens_to_ids(m) for m in ("<|vision_start|>", "<|vision_end|>") if m in tokenizer.get_vocab()
    ]
    vision = image | torch.isin(ids, torch.tensor(marks, dtype=ids.dtype)) if rule == "reference" else image
    # One byte is one token: token places follow from the bytes of the text between special tokens.
    said = torch.zeros(len(ids), dtype=torch.bool)
    asked = torch.zeros(len(ids), dtype=torch.bool)
    at = 0
    plain = [i for i, token in enumerate(ids.tolist()) if token >= len(tokenizer.added_tokens_decoder)]
    letters = tokenizer.decode(ids[plain])
    for turn in sample.turns:
        for part in turn.content:
            if isinstance(part, str):
                header = letters.lower().index(turn.role, at) + len(turn.role)
                start = letters.index(part, header)
                at = start + len(part)
                {"assistant": said, "user": asked}.get(turn.role, torch.zeros(len(ids)))[plain[start:at]] = True
    query = ~vision & ~said if rule == "reference" else asked
    received = attention[query][:, vision].mean(0)
    received = received / received.sum()
    order = received.argsort(descending=True)
    kept = int((received[order].cumsum(0) <= threshold).sum()) + 1
    chosen = torch.where(vision)[0][order[:kept]]
    return hidden[chosen].mean(0).numpy(), int(vision.sum()), int(query.sum()), kept
