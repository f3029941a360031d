"""A model of the work that the method cannot do without, and this machine's ceilings to hold a measurement against.

FLOPs count a multiply and an add as two, and only products of matrices: norms, activations and softmax are left to the
share of the floor that is not reached. Written for LLaVA (CLIP tower, Llama layer); shapes are those of a transformers
config."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Tokens:
    """Of one sample."""

    all: int  # S
    vision: int  # V
    query: int  # Q
    attended: int  # A
    last_vision: int  # place of the last vision token


def tower_flops(config: Any, layers: int) -> float:
    """One picture through `layers` layers of the vision tower."""
    vision = config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    tokens, hidden = patches + 1, vision.hidden_size
    patching = 2 * patches * 3 * vision.patch_size**2 * hidden
    dense = 2 * tokens * (4 * hidden**2 + 2 * hidden * vision.intermediate_size)
    return patching + layers * (dense + 4 * tokens**2 * hidden)


def used_tower_layers(config: Any) -> int:
    """Layers up to the hidden state that is read."""
    layer, layers = config.vision_feature_layer, config.vision_config.num_hidden_layers
    return int(layer if layer >= 0 else layers + 1 + layer)


def projector_flops(config: Any, vision_tokens: int) -> float:
    hidden = config.text_config.hidden_size
    return 2.0 * vision_tokens * (config.vision_config.hidden_size * hidden + hidden**2)


def needed_of_layer_0(config: Any, tokens: Tokens) -> dict[str, float]:
    """What the method needs of decoder layer 0, part by part."""
    text = config.text_config
    hidden, size = text.hidden_size, text.hidden_size // text.num_attention_heads
    keys = text.num_key_value_heads * size
    return {
        "queries": 2.0 * (tokens.query + tokens.attended) * hidden**2,
        "keys": 2.0 * tokens.all * hidden * keys,
        "values": 2.0 * (tokens.last_vision + 1) * hidden * keys,
        "attention of query rows": 2.0 * tokens.query * tokens.all * hidden,
        "attention of attended rows": 4.0
        * tokens.attended
        * (tokens.last_vision + 1)
        / 2
        * hidden,  # causal: half of them on average
        "output, MLP of attended rows": 2.0 * tokens.attended * (hidden**2 + 3 * hidden * text.intermediate_size),
    }


def whole_layer_flops(config: Any, tokens: int) -> float:
    """A decoder layer as a full forward pass computes it."""
    text = config.text_config
    hidden = text.hidden_size
    keys = hidden * text.num_key_value_heads // text.num_attention_heads
    return (
        2.0 * tokens * (2 * hidden**2 + 2 * hidden * keys + 3 * hidden * text.intermediate_size)
        + 4.0 * tokens**2 * hidden
    )


def best_of(times: int, function: Callable[[], Any]) -> float:
    """CPU seconds of the shortest of some runs: a ceiling is what a core can do, not what its neighbours leave of
    it."""
    function()
    seconds = []
    for _ in range(times):
        started = time.process_time()
        function()
        seconds.append(time.process_time() - started)
    return min(seconds)


def matmul_ceiling(shapes: list[tuple[int, int, int]], dtype: torch.dtype) -> float:
    """FLOP a CPU second of linear layers of these (rows, in, out), all together."""

    def layers() -> None:
        for rows, weight in work:
            torch.nn.functional.linear(rows, weight)

    work = [
        (torch.randn(rows, inner, dtype=dtype), torch.randn(outer, inner, dtype=dtype)) for rows, inner, outer in shapes
    ]
    with torch.inference_mode():
        seconds = best_of(5, layers)
    return sum(2.0 * rows * inner * outer for rows, inner, outer in shapes) / seconds
