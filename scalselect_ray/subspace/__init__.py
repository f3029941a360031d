"""Moments, the shape of their tree reduce, and the dominant subspace. Plain functions on arrays."""

from scalselect_ray.subspace.decomposition import (
    Subspace,
    Transform,
    dominant_subspace,
    fit_transform,
    principal_angles,
)
from scalselect_ray.subspace.leverage import leverage
from scalselect_ray.subspace.moments import Moments, accumulate, merge, of_rows
from scalselect_ray.subspace.tree import MergeTree, consecutive_groups

__all__ = [
    "MergeTree",
    "Moments",
    "Subspace",
    "Transform",
    "accumulate",
    "consecutive_groups",
    "dominant_subspace",
    "fit_transform",
    "leverage",
    "merge",
    "of_rows",
    "principal_angles",
]
