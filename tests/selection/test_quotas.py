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
    names = data.draw(st.permutations(["a", "b", "c"]))[: data.draw(st.integers(1, 3))]  # in the corpus's order
    values = st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 1e-300, 3.0]), max_size=12)
    scores = {name: np.array(data.draw(values)) for name in names}
    bounds = {}
    for name in names:
        least = data.draw(st.integers(0, len(scores[name])))
        bounds[name] = Bounds(least, data.draw(st.integers(least, len(scores[name]))))
    budget = data.draw(st.integers(sum(bound.least for bound in bounds.values()), 40))
    assert counts_by_line(scores, bounds, budget) == counts_by_greed(scores, bounds, budget)


@pytest.mark.parametrize(("budget", "sent"), [(3, [2, 1]), (5, [2, 3]), (6, [3, 3]), (9, [6, 3])])
def test_ties_are_sent_in_the_order_of_the_corpus(budget, sent):
    ties = [("b", 2), ("a", 3), ("b", 4)]  # by file: two of source b around one of a
    threshold = CommonThreshold(0, ROUNDS, {"a": 0, "b": 0})
    bounds = {"a": Bounds(0, 3), "b": Bounds(0, 6)}
    assert share_out(threshold, ties, bounds, budget) == dict(zip("ba", sent, strict=True))


@pytest.mark.parametrize(
    ("quota", "bounds"),
    [
        ((None, None), Bounds(0, 500)),
        ((0.5, 0.5), Bounds(50, 50)),
        ((None, 3), Bounds(0, 3)),
        ((None, 1), Bounds(0, 100)),  # 1 is all of the budget
        ((0.29, None), Bounds(29, 500)),  # in decimals: 0.29 * 100 is below 29 in binary
        ((0.5, 3), Bounds(50, 50)),  # what a floor promises stands above a cap
        ((0, 0), Bounds(0, 0)),
    ],
)
def test_bounds_are_fractions_of_the_budget_or_counts(quota, bounds):
    assert resolve_bounds({"a": quota}, {"a": 500, "b": 9}, 100) == {"a": bounds, "b": Bounds(0, 9)}


def test_bounds_are_counts_that_a_source_has():
    quotas = {"a": (0.3, None), "b": (0.3, 0.9)}
    assert resolve_bounds(quotas, {"a": 2, "b": 0}, 20) == {"a": Bounds(2, 2), "b": Bounds(0, 0)}


def test_floors_above_the_budget_are_refused():
    with pytest.raises(ValueError, match="30 samples, more than the budget of 20"):
        resolve_bounds({"a": (15, None), "b": (15, None)}, {"a": 100, "b": 100}, 20)
    assert resolve_bounds({"a": (15, None), "b": (5, None)}, {"a": 100, "b": 100}, 20)["b"] == Bounds(5, 100)
