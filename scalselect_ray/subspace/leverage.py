"""Scores (paper section 3.4)."""

import numpy as np

from scalselect_ray.subspace.decomposition import Subspace

_BLOCK_ROWS = 512  # the memory of so few is used again and again; of more, the system would give it anew each time


def leverage(x_ND: np.ndarray, subspace: Subspace) -> np.ndarray:
    """Leverage score of each row: sum over the basis of (y . v_j / s_j)^2. (N,) float64. O(N D k), in float64, some
    rows at a time."""
    scores_N = np.empty(len(x_ND))
    for first in range(0, len(x_ND), _BLOCK_ROWS):
        projected_NK = subspace.transform(x_ND[first : first + _BLOCK_ROWS]) @ subspace.basis_DK
        projected_NK /= subspace.singular_values_K
        scores_N[first : first + _BLOCK_ROWS] = np.square(projected_NK, out=projected_NK).sum(axis=1)
    return scores_N
