"""Quotas: how many samples each source may send, exact and deterministic, from histograms alone.

The choice is the best one within the bounds: one threshold for all sources, and a source that its bounds hold back or
push up has a threshold of its own. So each source's count is its number of scores above the common threshold, clipped
to its bounds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from scalselect_ray.selection.budget import BINS, BITS


@dataclass(frozen=True, slots=True)
class Bounds:
    """A source sends at least and at most so many samples; both are counts that it has."""

    least: int
    most: int


@dataclass(frozen=True, slots=True)
class CommonThreshold:
    """The common threshold as far as it is known: scores whose leading `rounds` digits are above `prefix` are above it,
    `above` by source."""

    prefix: int
    rounds: int
    above: Mapping[str, int]


def resolve_bounds(
    quotas: Mapping[str, tuple[float | None, float | None]], counts: Mapping[str, int], budget: int
) -> dict[str, Bounds]:
    """Bounds of each source in `counts` from its (floor, cap): fractions of the budget, or counts above 1. Raises
    ValueError."""
    bounds = {}
    for source, count in counts.items():
        floor, cap = quotas.get(source, (None, None))
        least = min(_amount(floor, budget) if floor is not None else 0, count)
        most = min(_amount(cap, budget) if cap is not None else count, count)
        bounds[source] = Bounds(least, max(most, least))
    needed = sum(bound.least for bound in bounds.values())
    if needed > budget:
        raise ValueError(f"the floors ask for {needed:,} samples, more than the budget of {budget:,}")
    return bounds


def lower(
    threshold: CommonThreshold, histograms: Mapping[str, np.ndarray], bounds: Mapping[str, Bounds], budget: int
) -> CommonThreshold:
    """The threshold one digit further, from each source's histogram of the next digit among the scores that share the
    prefix."""
    sources = sorted(bounds)
    counts_SB = np.array(
        [np.cumsum(histograms[source][::-1]) + threshold.above[source] for source in sources]
    )  # at or above each digit
    least_S1 = np.array([[bounds[source].least] for source in sources])
    most_S1 = np.array([[bounds[source].most] for source in sources])
    reached_B = np.clip(counts_SB, least_S1, most_S1).sum(axis=0) >= budget
    index = int(reached_B.argmax()) if reached_B.any() else BINS - 1
    above = {
        source: int(counts_SB[row, index] - histograms[source][BINS - 1 - index]) for row, source in enumerate(sources)
    }
    return CommonThreshold((threshold.prefix << BITS) | (BINS - 1 - index), threshold.rounds + 1, above)


def share_out(
    threshold: CommonThreshold, ties: Sequence[tuple[str, int]], bounds: Mapping[str, Bounds], budget: int
) -> dict[str, int]:
    """How many samples each source sends, after the last round; `ties` are (source, scores exactly on the threshold) in
    the corpus's order."""
    counts = {source: min(max(threshold.above[source], bound.least), bound.most) for source, bound in bounds.items()}
    tied = dict.fromkeys(bounds, 0)
    left = budget - sum(counts.values())
    for source, count in ties:
        tied[source] += count
        wanted = min(max(threshold.above[source] + tied[source], bounds[source].least), bounds[source].most)
        taken = min(wanted - counts[source], left)
        counts[source] += taken
        left -= taken
    return counts


def _amount(bound: float, budget: int) -> int:
    return int(bound) if bound > 1 else int(Fraction(repr(float(bound))) * budget)
