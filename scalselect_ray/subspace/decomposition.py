"""Moments to the dominant subspace (paper section 3.3)."""

from dataclasses import dataclass

import numpy as np
import scipy.linalg

from scalselect_ray.subspace.moments import Moments


@dataclass(frozen=True, slots=True)
class Transform:
    """What is done to a feature before it is projected: centre, divide by the population std, make it a unit row."""

    mean_D: np.ndarray
    scale_D: np.ndarray | None = None
    l2_normalize: bool = False

    def __call__(self, x_ND: np.ndarray) -> np.ndarray:
        """(N, D) float64."""
        y_ND: np.ndarray = np.subtract(x_ND, self.mean_D, dtype=np.float64)
        if self.scale_D is not None:
            y_ND /= self.scale_D
        if self.l2_normalize:
            norm_N = np.linalg.norm(y_ND, axis=1, keepdims=True)
            y_ND /= np.where(norm_N > 0, norm_N, 1.0)
        return y_ND


@dataclass(frozen=True, slots=True)
class Subspace:
    """The dominant subspace of a corpus: small, and all that scoring needs. K = its dimension k."""

    transform: Transform
    basis_DK: np.ndarray  # float64, orthonormal columns
    singular_values_K: np.ndarray
    spectrum_D: np.ndarray  # all singular values, descending
    count: int  # rows it was made of

    @property
    def k(self) -> int:
        return int(self.basis_DK.shape[1])

    @property
    def captured(self) -> float:
        """Share of the energy inside the subspace."""
        total = float(np.square(self.spectrum_D).sum())
        return float(np.square(self.singular_values_K).sum()) / total if total else 0.0


def fit_transform(moments: Moments, *, standardize: bool, l2_normalize: bool) -> Transform:
    """The transform of a corpus. A column that never changes keeps scale 1: it is zero once centred, whatever divides
    it."""
    scale_D = None
    if standardize:
        std_D = np.sqrt(np.diag(moments.scatter_DD) / max(moments.count, 1))
        noise_D = 8 * np.finfo(np.float64).eps * np.abs(moments.mean_D)
        scale_D = np.where(std_D > noise_D, std_D, 1.0)
    return Transform(moments.mean_D, scale_D, l2_normalize)


def dominant_subspace(moments: Moments, transform: Transform, gram_DD: np.ndarray | None, energy: float) -> Subspace:
    """Top-k right singular vectors of the transformed rows, k the fewest whose energy reaches `energy`. O(D^3).

    `gram_DD` is the sum of y y^T of the transformed rows where rows were normalised (unit rows are not centred again);
    otherwise it follows from the scatter. k is clipped to [1, rank]. A corpus whose rows are all equal has rank 0: then
    k is 0 and every score is 0."""
    if gram_DD is None:
        gram_DD = moments.scatter_DD
        if transform.scale_D is not None:
            gram_DD = gram_DD / np.outer(transform.scale_D, transform.scale_D)
    values_D, vectors_DD = scipy.linalg.eigh(gram_DD, driver="evd", check_finite=True)
    values_D, vectors_DD = values_D[::-1].clip(min=0), vectors_DD[:, ::-1]  # rounding can push a zero below zero
    # Eigenvalues of a Gram matrix carry an error of about max(n, d) eps times the largest: below that is noise, not
    # rank. What is left of centring equal rows is noise as well, at the size of the mean's own rounding.
    eps = np.finfo(np.float64).eps
    floor = max(moments.count, len(values_D)) * eps * values_D[0]
    if not transform.l2_normalize and transform.scale_D is None:
        floor = max(floor, moments.count * (8 * eps * np.abs(moments.mean_D).max()) ** 2)
    rank = int((values_D > floor).sum())
    total = values_D.sum()
    k = min(max(int(np.searchsorted(np.cumsum(values_D) / total, energy)) + 1, 1), rank) if rank else 0
    basis_DK = vectors_DD[:, :k]
    # The sign of an eigenvector is free; fixed here so that equal inputs give equal files.
    largest_K = np.abs(basis_DK).argmax(axis=0)
    basis_DK = basis_DK * np.where(basis_DK[largest_K, np.arange(k)] < 0, -1.0, 1.0)
    spectrum_D = np.sqrt(values_D)
    return Subspace(transform, np.ascontiguousarray(basis_DK), spectrum_D[:k].copy(), spectrum_D, moments.count)


def principal_angles(a_DK: np.ndarray, b_DK: np.ndarray) -> np.ndarray:
    """Angles between two subspaces given by orthonormal columns, ascending, in radians."""
    return np.asarray(np.sort(scipy.linalg.subspace_angles(a_DK, b_DK)))
