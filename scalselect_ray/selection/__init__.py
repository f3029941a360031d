"""Scores, budgets and quotas. Plain functions on arrays."""

from scalselect_ray.selection.budget import (
    BINS,
    ROUNDS,
    Threshold,
    chosen,
    histogram,
    narrow,
    resolve_budget,
    sortable,
    take_ties,
)
from scalselect_ray.selection.parts import Partition, Scale, partition_scores
from scalselect_ray.selection.quotas import Bounds, CommonThreshold, lower, resolve_bounds, share_out

__all__ = [
    "BINS",
    "ROUNDS",
    "Bounds",
    "CommonThreshold",
    "Partition",
    "Scale",
    "Threshold",
    "chosen",
    "histogram",
    "lower",
    "narrow",
    "partition_scores",
    "resolve_bounds",
    "resolve_budget",
    "share_out",
    "sortable",
    "take_ties",
]
