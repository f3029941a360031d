"""Moments of a set of features: what a subspace is made of, mergeable and exact."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

_FORMAT = "scalselect.moments/1"


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, mean and scatter about the mean of a set of rows. D = length of a feature."""

    count: int
    mean_D: np.ndarray  # float64
    scatter_DD: np.ndarray  # float64, sum of (x - mean)(x - mean)^T, not divided by the count

    @property
    def gram_DD(self) -> np.ndarray:
        """Sum of x x^T, about zero."""
        return np.asarray(self.scatter_DD + self.count * np.outer(self.mean_D, self.mean_D))


def of_rows(x_ND: np.ndarray) -> Moments:
    """Moments of the rows of one block, in float64. O(N D^2). Centred before it is multiplied: with a large mean the small
    directions would drown in a plain sum of x x^T."""
    x_ND = np.asarray(x_ND, dtype=np.float64)
    mean_D = x_ND.mean(axis=0)
    centred_ND = x_ND - mean_D
    return Moments(len(x_ND), mean_D, centred_ND.T @ centred_ND)  # NumPy sees the symmetry and does half the work (syrk)


def merge(a: Moments, b: Moments) -> Moments:
    """Moments of the union of two disjoint sets of rows (Chan, Golub, LeVeque 1979). O(D^2)."""
    if a.count == 0 or b.count == 0:
        return a if b.count == 0 else b
    count, delta_D = a.count + b.count, b.mean_D - a.mean_D
    scatter_DD = np.outer(delta_D, delta_D)
    scatter_DD *= a.count * b.count / count
    scatter_DD += a.scatter_DD
    scatter_DD += b.scatter_DD
    return Moments(count, a.mean_D + delta_D * (b.count / count), scatter_DD)


def accumulate(blocks: Iterable[np.ndarray], dim: int, block_rows: int = 4096) -> Moments:
    """Moments of a stream of row blocks (n, dim). Rows are gathered so that one merge is paid for about `block_rows` of them."""
    total = Moments(0, np.zeros(dim), np.zeros((dim, dim)))
    gathered: list[np.ndarray] = []
    for block in blocks:
        if len(block):
            gathered.append(block)
        if sum(map(len, gathered)) >= block_rows:
            total, gathered = merge(total, of_rows(np.concatenate(gathered))), []
    return merge(total, of_rows(np.concatenate(gathered))) if gathered else total


def to_bytes(moments: Moments, slice_ids: Sequence[str]) -> bytes:
    """Safetensors with the ids of the slices whose rows these moments are of, and a checksum."""
    arrays = {"count": np.array([moments.count]), "mean": moments.mean_D, "scatter": moments.scatter_DD}
    metadata = {"format": _FORMAT, "slices": json.dumps(sorted(slice_ids)), "sha256": _checksum(moments)}
    return bytes(save(arrays, metadata=metadata))


def from_bytes(data: bytes) -> Moments:
    """The inverse of `to_bytes`. Raises ValueError when the data is not what was written."""
    try:
        arrays = load(data)
        moments = Moments(int(arrays["count"][0]), arrays["mean"], arrays["scatter"])
        expected = _metadata(lambda start, stop: data[start:stop])["sha256"]
    except (SafetensorError, KeyError) as error:
        raise ValueError(str(error)) from error
    if _checksum(moments) != expected:
        raise ValueError("its checksum differs")
    return moments


def stored_slices(read: Callable[[int, int], bytes]) -> list[str]:
    """The slice ids of stored moments from a few bytes at their front; `read(start, stop)` gives bytes. Empty when they are not ours."""
    try:
        metadata = _metadata(read)
        return list(json.loads(metadata["slices"])) if metadata["format"] == _FORMAT else []
    except (ValueError, KeyError, OverflowError):
        return []


def _metadata(read: Callable[[int, int], bytes]) -> dict[str, str]:
    length = int.from_bytes(read(0, 8), "little")
    return dict(json.loads(read(8, 8 + length))["__metadata__"])


def _checksum(moments: Moments) -> str:
    digest = hashlib.sha256(f"{moments.count}".encode())
    for array in (moments.mean_D, moments.scatter_DD):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
