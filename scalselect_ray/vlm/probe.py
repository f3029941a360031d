"""What the method reads of decoder layer 0, as plain functions on tensors (paper section 3.2).

Shapes: S = tokens of one sample, Q = its query tokens, V = its vision tokens, A = its attended vision tokens,
H = attention heads, K = key-value heads (H is a multiple of K), D = head size, E = hidden size.
Indices of tokens stand on the CPU, where they come from: what depends on them alone never waits for a GPU.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

_MAX_LOGITS = 1 << 26  # float32 attention logits alive at once: 256 MiB


def causal(rows_R: torch.Tensor, length: int, sliding_window: int | None) -> torch.Tensor:
    """Which of `length` tokens each row token may look at: itself and those before it, within the window. (R, S)
    bool."""
    columns_S = torch.arange(length, device=rows_R.device)
    allowed_RS = columns_S <= rows_R[:, None]
    if sliding_window is not None:
        allowed_RS &= columns_S > rows_R[:, None] - sliding_window
    return allowed_RS


def attention_received(
    query_HSD: torch.Tensor,
    key_KSD: torch.Tensor,
    query_Q: torch.Tensor,
    vision_V: torch.Tensor,
    scaling: float,
    sliding_window: int | None = None,
) -> torch.Tensor:
    """Attention that each vision token receives from the query tokens where tokens look back alone, mean over heads,
    normalised to sum 1. (V,) float32.

    All zero (no query token comes after a vision token) becomes uniform. Rows before the first vision token see none of
    them and are left out."""
    allowed = partial(causal, length=query_HSD.shape[1], sliding_window=sliding_window)
    return masked_attention_received(query_HSD, key_KSD, query_Q[query_Q > vision_V.min()], vision_V, scaling, allowed)


def masked_attention_received(
    query_HSD: torch.Tensor,
    key_KSD: torch.Tensor,
    query_Q: torch.Tensor,
    vision_V: torch.Tensor,
    scaling: float,
    allowed: Callable[[torch.Tensor], torch.Tensor],
    softcap: float | None = None,
) -> torch.Tensor:
    """As `attention_received`, where `allowed` says of row tokens (R,) which tokens they may look at, (R, S) bool, and
    logits are bent into -softcap to softcap.

    Only the rows of query tokens are computed, a block of rows at a time: memory is O(H S) a row and never
    O(H S S)."""
    vision_V = vision_V.to(query_HSD.device)
    received_V = torch.zeros(len(vision_V), dtype=torch.float32, device=query_HSD.device)
    for rows_R in _blocks(query_Q, query_HSD):
        weights_HRS = _weights(query_HSD, key_KSD, rows_R, scaling, allowed(rows_R), softcap)
        received_V += weights_HRS[:, :, vision_V].sum(dim=(0, 1))
    total = received_V.sum()
    return torch.where(
        total == 0, torch.full_like(received_V, 1 / len(vision_V)), received_V / total
    )  # a NaN stays one


def capped_attention(
    query_HSD: torch.Tensor,
    key_KSD: torch.Tensor,
    value_KSD: torch.Tensor,
    scaling: float,
    allowed: Callable[[torch.Tensor], torch.Tensor],
    softcap: float,
) -> torch.Tensor:
    """The output of attention with capped logits, which torch's own has not, a block of rows at a time. (S, H, D)."""
    heads, length, _ = query_HSD.shape
    parts = []
    for rows_R in _blocks(torch.arange(length), query_HSD):
        weights_HRS = _weights(query_HSD, key_KSD, rows_R, scaling, allowed(rows_R), softcap).to(value_KSD.dtype)
        grouped_KGS = weights_HRS.reshape(len(value_KSD), -1, length)
        parts.append((grouped_KGS @ value_KSD).reshape(heads, len(rows_R), -1))
    return torch.cat(parts, dim=1).transpose(0, 1)


def _blocks(rows_R: torch.Tensor, query_HSD: torch.Tensor) -> tuple[torch.Tensor, ...]:
    heads, length, _ = query_HSD.shape
    return torch.split(rows_R.to(query_HSD.device), max(1, _MAX_LOGITS // (heads * length)))


def _weights(
    query_HSD: torch.Tensor,
    key_KSD: torch.Tensor,
    rows_R: torch.Tensor,
    scaling: float,
    allowed_RS: torch.Tensor,
    softcap: float | None,
) -> torch.Tensor:
    """The attention of the row tokens, (H, R, S) float32."""
    heads, length, head_size = query_HSD.shape
    grouped_KGD = query_HSD[:, rows_R].reshape(
        len(key_KSD), -1, head_size
    )  # a key-value head serves H/K consecutive heads
    logits_KGS = (key_KSD @ grouped_KGD.transpose(1, 2)).transpose(
        1, 2
    )  # many times faster on a CPU than the other way round
    logits_HRS = logits_KGS.float().contiguous().view(heads, len(rows_R), length) * scaling
    if softcap is not None:
        logits_HRS = softcap * torch.tanh(logits_HRS / softcap)
    return logits_HRS.masked_fill_(~allowed_RS, float("-inf")).softmax(dim=-1)


def attended(received_V: torch.Tensor, threshold: float) -> torch.Tensor:
    """Indices in V of the vision tokens that matter, in their order: the most attended first until their sum exceeds
    `threshold`.

    The token that crosses the threshold is included; there is at least one. The sum runs in float64, so that it does
    not depend on how it is split."""
    weight_V, order_V = received_V.double().sort(descending=True, stable=True)
    needed = int((weight_V.cumsum(0) <= threshold).sum()) + 1
    return order_V[:needed].sort().values


def attention_output(
    query_HSD: torch.Tensor,
    key_KSD: torch.Tensor,
    value_KSD: torch.Tensor,
    rows_A: torch.Tensor,
    scaling: float,
    sliding_window: int | None = None,
) -> torch.Tensor:
    """What the attention of the layer gives the row tokens, heads side by side, before its output projection. (A, H *
    D)."""
    length = int(rows_A[-1]) + 1  # rows are in order; no row looks at what comes after it
    rows_A = rows_A.to(query_HSD.device)
    output_HAD = F.scaled_dot_product_attention(
        query_HSD[None, :, rows_A],
        key_KSD[None, :, :length],
        value_KSD[None, :, :length],
        attn_mask=causal(rows_A, length, sliding_window),
        scale=scaling,
        enable_gqa=True,
    )[0]
    return output_HAD.transpose(0, 1).reshape(len(rows_A), -1)
