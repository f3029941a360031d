"""Scores, budgets and quotas. Plain functions on arrays."""

from scalselect_ray.selection.budget import (
    BINS,
    ROUNDS,
    Cut,
    chosen,
    histogram,
    narrow,
    resolve_budget,
    sortable,
    take_ties,
)
from scalselect_ray.selection.parts import Parts, Scale, cut_parts
from scalselect_ray.selection.quotas import Bounds, Line, lower, resolve_bounds, share_out

__all__ = [
    "BINS",
    "ROUNDS",
    "Bounds",
    "Cut",
    "Line",
    "Parts",
    "Scale",
    "chosen",
    "cut_parts",
    "histogram",
    "lower",
    "narrow",
    "resolve_bounds",
    "resolve_budget",
    "share_out",
    "sortable",
    "take_ties",
]
