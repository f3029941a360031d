"""Moments of a set of features: what a subspace is made of, mergeable and exact."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import blas

_TILE = 64


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
    """Moments of the rows of one array."""
    return accumulate([x_ND], x_ND.shape[1])


def accumulate(blocks: Iterable[np.ndarray], dim: int, block_rows: int = 2048) -> Moments:
    """Moments of a stream of row blocks (n, dim), in float64. O(N D^2). Where the stream is cut into blocks changes no
    bit of them.

    Each `block_rows` rows are centred on their own mean before they are multiplied: with a large mean the small
    directions would drown in a plain sum of x x^T. Only one triangle is summed, in place (BLAS syrk), and the scatter
    between the means is added at the end."""
    origin_D, counts, means = np.zeros(dim), [], []
    triangle_DD = np.zeros((dim, dim), order="F")
    for first_D, y_ND in _gathered(blocks, dim, block_rows):
        origin_D = first_D
        counts.append(len(y_ND))
        means.append(y_ND.mean(axis=0))
        y_ND -= means[-1]
        triangle_DD = blas.dsyrk(1.0, y_ND.T, beta=1.0, c=triangle_DD, lower=1, overwrite_c=1)
    if counts:
        mean_D, between_MD = _between(counts, means)
        triangle_DD = blas.dsyrk(1.0, between_MD.T, beta=1.0, c=triangle_DD, lower=1, overwrite_c=1)
        origin_D = origin_D + mean_D
    _mirror(triangle_DD)
    return Moments(sum(counts), origin_D, triangle_DD.T)  # in the order of a NumPy matrix; it is symmetric


def merge(*moments: Moments) -> Moments:
    """Moments of the union of disjoint sets of rows (Chan, Golub, LeVeque 1979). O(D^2) each, in one D x D matrix
    beside those given."""
    filled = tuple(item for item in moments if item.count) or moments[:1]
    if len(filled) == 1:
        return filled[0]
    origin_D = filled[0].mean_D
    mean_D, between_MD = _between([item.count for item in filled], [item.mean_D - origin_D for item in filled])
    scatter_DD = filled[0].scatter_DD.copy()
    for item in filled[1:]:
        scatter_DD += item.scatter_DD
    for at in range(0, len(scatter_DD), _TILE):
        scatter_DD[at : at + _TILE] += between_MD[:, at : at + _TILE].T @ between_MD
    return Moments(sum(item.count for item in filled), origin_D + mean_D, scatter_DD)


def _between(counts: Sequence[int], means: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The mean of all rows from those of M sets of rows, (D,), and rows whose sum of outer products is the scatter
    between the sets, (M, D)."""
    means_MD, counts_M = np.stack(means), np.array(counts)
    mean_D = counts_M @ means_MD / counts_M.sum()
    return mean_D, np.sqrt(counts_M)[:, None] * (means_MD - mean_D)


def _gathered(blocks: Iterable[np.ndarray], dim: int, rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The rows of all blocks less the first of them, which is given as well: so means lose nothing to what all
    rows share. `rows` at a time (at the end what is left), in one float64 array that is used again and again."""
    gathered_ND, filled, origin_D = np.empty((rows, dim)), 0, None
    for block in blocks:
        while len(block):
            origin_D = block[0].astype(np.float64) if origin_D is None else origin_D
            taken = block[: rows - filled]
            np.subtract(taken, origin_D, out=gathered_ND[filled : filled + len(taken)])
            filled, block = filled + len(taken), block[len(taken) :]
            if filled == rows:
                yield origin_D, gathered_ND
                filled = 0
    if filled and origin_D is not None:
        yield origin_D, gathered_ND[:filled]


def _mirror(matrix_DD: np.ndarray) -> None:
    """Copies the lower triangle over the upper one, in tiles that stay in the cache."""
    for at in range(0, len(matrix_DD), _TILE):
        tile = matrix_DD[at : at + _TILE, at : at + _TILE]
        tile[:] = np.tril(tile) + np.tril(tile, -1).T
        matrix_DD[at : at + _TILE, at + _TILE :] = matrix_DD[at + _TILE :, at : at + _TILE].T
