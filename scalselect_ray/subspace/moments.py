"""Moments of a set of features: what a subspace is made of, mergeable and exact."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from scalselect_ray import seal

_FORMAT = "scalselect.moments/2"
_MAX_HEADER = 1 << 30


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


def set_id(slice_ids: Iterable[str]) -> str:
    """The id of a set of slices: stored moments are named by it."""
    return hashlib.sha256("\n".join(sorted(slice_ids)).encode()).hexdigest()[:32]


def to_bytes(moments: Moments, slice_ids: Sequence[str]) -> bytes:
    """Safetensors with the ids of the slices whose rows these moments are of, sealed."""
    arrays = {"count": np.array([moments.count]), "mean": moments.mean_D, "scatter": moments.scatter_DD}
    return seal.sealed(save(arrays, metadata={"format": _FORMAT, "slices": json.dumps(sorted(slice_ids)), "seal": seal.BLANK}))


def from_bytes(data: bytes) -> Moments:
    """The inverse of `to_bytes`. Raises ValueError when the data is not what was written."""
    if not seal.holds(data):
        raise ValueError("its checksum differs")
    try:
        arrays = load(data)
        return Moments(int(arrays["count"][0]), arrays["mean"], arrays["scatter"])
    except (SafetensorError, KeyError) as error:
        raise ValueError(str(error)) from error


def stored_slices(read: Callable[[int, int], bytes]) -> list[str]:
    """The slice ids of stored moments from the bytes at their front; `read(start, stop)` gives bytes.

    Raises ValueError when they are not ours. What they say is true only if `set_id` of them is the file's name.
    """
    try:
        length = int.from_bytes(read(0, 8), "little")
        if length > _MAX_HEADER:
            raise ValueError(f"its header claims {length:,} bytes")
        metadata = json.loads(read(8, 8 + length))["__metadata__"]
        if metadata["format"] != _FORMAT:
            raise ValueError(f"its format is {metadata['format']}, expected {_FORMAT}")
        return list(map(str, json.loads(metadata["slices"])))
    except (KeyError, TypeError) as error:
        raise ValueError(f"its header is none of ours ({error})") from error
