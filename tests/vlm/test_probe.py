"""The probe against the plain definition: full attention, one sample, heads x S x S."""

import pytest
import torch

from scalselect_ray.vlm import probe


def plain_attention(query_HSD: torch.Tensor, key_KSD: torch.Tensor, scaling: float, window: int | None) -> torch.Tensor:
    heads, length, _ = query_HSD.shape
    key_HSD = key_KSD.repeat_interleave(heads // len(key_KSD), dim=0)
    logits = query_HSD @ key_HSD.transpose(1, 2) * scaling
    for row in range(length):
        for column in range(length):
            if column > row or (window is not None and row - column >= window):
                logits[:, row, column] = float("-inf")
    return logits.softmax(-1)


@pytest.fixture
def qkv() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(heads, 20, 8, generator=generator) for heads in (4, 2, 2))  # type: ignore[return-value]


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("block", [1 << 26, 1], ids=["one block of rows", "a row at a time"])
def test_attention_received_is_that_of_the_full_matrix(qkv, window, block, monkeypatch):
    query, key, _ = qkv
    vision, queries = torch.arange(3, 11), torch.tensor([0, 1, 12, 13, 17, 19])
    monkeypatch.setattr(probe, "_MAX_LOGITS", block)
    expected = plain_attention(query, key, 0.3, window).mean(0)[queries][:, vision].mean(0)
    received = probe.attention_received(query, key, queries, vision, 0.3, window)
    torch.testing.assert_close(received, expected / expected.sum())
    assert received.sum() == pytest.approx(1)


def test_no_query_behind_the_image_gives_uniform_attention(qkv):
    query, key, _ = qkv
    received = probe.attention_received(query, key, torch.tensor([0, 1]), torch.arange(5, 9), 0.3)
    assert received.tolist() == [0.25] * 4


@pytest.mark.parametrize("window", [None, 5])
def test_attention_output_is_that_of_the_full_matrix(qkv, window):
    query, key, value = qkv
    rows = torch.tensor([3, 4, 9])
    full = plain_attention(query, key, 0.3, window) @ value.repeat_interleave(2, dim=0)
    expected = full[:, rows].transpose(0, 1).reshape(3, -1)
    torch.testing.assert_close(probe.attention_output(query, key, value, rows, 0.3, window), expected)


@pytest.mark.parametrize(
    ("weights", "threshold", "expected"),
    [
        pytest.param([0.1, 0.6, 0.3], 0.5, [1], id="the first alone exceeds"),
        pytest.param([0.1, 0.6, 0.3], 0.6001, [1, 2], id="the crossing token is included"),
        pytest.param([0.25, 0.25, 0.5], 0.5, [0, 2], id="reaching is not exceeding, and ties go to the first"),
        pytest.param([0.5, 0.5], 1.0, [0, 1], id="all at a threshold of one"),
    ],
)
def test_attended_is_the_shortest_prefix_that_exceeds(weights, threshold, expected):
    assert probe.attended(torch.tensor(weights), threshold).tolist() == expected
