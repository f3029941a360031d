"""Quotas against a plain search, with all scores in memory."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalselect_ray.selection import (
    ROUNDS,
    Bounds,
    CommonThreshold,
    Threshold,
    histogram,
    lower,
    resolve_bounds,
    share_out,
    sortable,
)


def counts_by_line(scores: dict[str, np.ndarray], bounds: dict[str, Bounds], budget: int) -> dict[str, int]:
    keys = {source: sortable(values) for source, values in scores.items()}
    common = CommonThreshold(0, 0, dict.fromkeys(keys, 0))
    for _ in range(ROUNDS):
        threshold = Threshold(common.prefix, common.rounds, 0)
        common = lower(
            common, {source: histogram(values, threshold) for source, values in keys.items()}, bounds, budget
        )
    ties = [(source, int((values == np.uint64(common.prefix)).sum())) for source, values in keys.items()]
    return share_out(common, ties, bounds, budget)


def counts_by_greed(scores: dict[str, np.ndarray], bounds: dict[str, Bounds], budget: int) -> dict[str, int]:
    """The floors first, then the best of what is left wherever a cap allows."""
    order = sorted((-value, place, source) for place, source in enumerate(scores) for value in scores[source])
    counts = {source: bounds[source].least for source in scores}
    seen = dict.fromkeys(scores, 0)
    for _, _, source in order:
        seen[source] += 1
        if (
            seen[source] > bounds[source].least
            and counts[source] < bounds[source].most
            and sum(counts.values()) < budget
        ):
            counts[source] += 1
    return counts


@given(st.data())
def test_the_line_finds_what_greed_finds(data):
    names = ["a", "b", "c"][: data.draw(st.integers(1, 3))]
    values = st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 1e-300, 3.0]), max_size=12)
    scores = {name: np.array(data.draw(values)) for name in names}
    bounds = {}
    for name in names:
        least = data.draw(st.integers(0, len(scores[name])))
        bounds[name] = Bounds(least, data.draw(st.integers(least, len(scores[name]))))
    budget = data.draw(st.integers(sum(bound.least for bound in bounds.values()), 40))
    assert counts_by_line(scores, bounds, budget) == counts_by_greed(scores, bounds, budget)


def test_bounds_are_counts_that_a_source_has():
    bounds = resolve_bounds(
        {"a": (0.5, 0.5), "b": (None, 3), "c": (0.3, None)}, {"a": 100, "b": 50, "c": 2, "d": 9}, 20
    )
    assert bounds == {"a": Bounds(10, 10), "b": Bounds(0, 3), "c": Bounds(2, 2), "d": Bounds(0, 9)}


def test_floors_above_the_budget_are_refused():
    with pytest.raises(ValueError, match="30 samples, more than the budget of 20"):
        resolve_bounds({"a": (15, None), "b": (15, None)}, {"a": 100, "b": 100}, 20)
