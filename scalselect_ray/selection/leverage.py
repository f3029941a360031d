"""Scores (paper section 3.4)."""

import numpy as np

from scalselect_ray.subspace import Subspace


def leverage(x_ND: np.ndarray, subspace: Subspace) -> np.ndarray:
    """Leverage score of each row: sum over the basis of ((y . v_j) / s_j)^2. (N,) float64. O(N D k)."""
    projected_NK = subspace.transform(x_ND) @ (subspace.basis_DK / subspace.singular_values_K)
    return np.asarray(np.square(projected_NK).sum(axis=1))
