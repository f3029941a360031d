"""Scores and budgets. Plain functions on arrays."""

from scalselect_ray.selection.budget import ROUNDS, Cut, best_first, chosen, histogram, narrow, resolve_budget, sortable, take_ties
from scalselect_ray.selection.leverage import leverage

__all__ = [
    "ROUNDS",
    "Cut",
    "best_first",
    "chosen",
    "histogram",
    "leverage",
    "narrow",
    "resolve_budget",
    "sortable",
    "take_ties",
]
