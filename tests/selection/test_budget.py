"""The radix select against a plain sort."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalselect_ray.selection import ROUNDS, Threshold, chosen, histogram, narrow, resolve_budget, sortable, take_ties

SCORES = st.lists(
    st.one_of(st.sampled_from([0.0, -0.0, 1.0, 5e-324, 1e308, -1.0]), st.floats(-2, 2)), min_size=1, max_size=60
)


def selected(parts, budget):
    keys = [sortable(np.array(part, dtype=np.float64)) for part in parts]
    threshold = Threshold(0, 0, budget)
    while threshold.rounds < ROUNDS:
        threshold = narrow(threshold, sum(histogram(key, threshold) for key in keys))
    quotas = take_ties([int((key == np.uint64(threshold.prefix)).sum()) for key in keys], threshold.remaining)
    return np.concatenate([chosen(key, threshold, quota) for key, quota in zip(keys, quotas, strict=True)])


@given(SCORES, st.data())
def test_top_of_any_parts_is_that_of_a_sort(scores, data):
    budget = data.draw(st.integers(0, len(scores)))
    edges = sorted(data.draw(st.lists(st.integers(0, len(scores)), max_size=4)))
    parts = [scores[a:b] for a, b in zip([0, *edges], [*edges, len(scores)], strict=True)]
    expected = np.zeros(len(scores), dtype=bool)
    expected[np.argsort(-(np.array(scores) + 0.0), kind="stable")[:budget]] = True
    assert np.array_equal(selected(parts, budget), expected)


@given(SCORES)
def test_sortable_keeps_the_order(scores):
    values = np.array(scores)
    keys = sortable(values)
    assert np.array_equal(keys[:, None] < keys[None], values[:, None] < values[None])


@pytest.mark.parametrize(
    ("budget", "count", "expected"),
    [
        (0.16, 12_859, 2057),
        (0.29, 100, 29),
        (1, 7, 7),
        (1.0, 7, 7),
        (2, 7, 2),
        (50, 7, 7),
        (0, 7, 0),
        (0.001, 7, 1),
        (0.5, 0, 0),
    ],
)
def test_budget_is_a_fraction_or_a_count(budget, count, expected):
    assert resolve_budget(budget, count) == expected
