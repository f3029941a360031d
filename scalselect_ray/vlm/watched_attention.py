"""The attention function of a text model that is watched: it computes what torch's own does, and in one layer keeps
what the vision tokens receive."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from scalselect_ray.errors import ModelError
from scalselect_ray.vlm.probe import capped_attention, causal, masked_attention_received

WATCHED = "scalselect_watched"
"""The name of this attention implementation."""

_BENDING = ("s_aux", "position_bias")  # settings of attention functions that change its weights in ways not known here


@dataclass(slots=True)
class Watch:
    """Set as `watch` on the attention module of a layer, for one sample."""

    query_Q: torch.Tensor
    vision_V: torch.Tensor
    received_V: torch.Tensor | None = None


class _Allowed:
    """Which tokens row tokens may look at, by the mask that the model made: (1, 1, S, S) bool, or None, which means
    back alone, or all where the attention is not causal."""

    def __init__(self, mask: torch.Tensor | None, length: int, is_causal: bool) -> None:
        self._mask, self._length, self._is_causal = mask, length, is_causal

    def __call__(self, rows_R: torch.Tensor) -> torch.Tensor:
        if self._mask is None and not self._is_causal:
            return torch.ones((len(rows_R), self._length), dtype=torch.bool, device=rows_R.device)
        if self._mask is None:
            return causal(rows_R, self._length, None)
        return self._mask[0, 0, rows_R, : self._length]


def _watched(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    if bending := [name for name in _BENDING if settings.get(name) is not None]:
        raise ModelError(f"the attention of {type(module).__name__} has {bending[0]}, which is not known here")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    is_causal = settings.get("is_causal")
    allowed = _Allowed(
        attention_mask, key.shape[2], getattr(module, "is_causal", True) if is_causal is None else is_causal
    )
    watch: Watch | None = getattr(module, "watch", None)
    if watch is not None:
        watch.received_V = masked_attention_received(
            query[0], key[0], watch.query_Q, watch.vision_V, scaling, allowed, softcap
        )
    if softcap is not None:
        return capped_attention(query[0], key[0], value[0], scaling, allowed, softcap)[None], None
    settings.pop("dropout", None)
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **settings)
    return output, None


AttentionInterface.register(WATCHED, _watched)
AttentionMaskInterface.register(WATCHED, sdpa_mask)
