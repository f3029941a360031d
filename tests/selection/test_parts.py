"""The threshold of the chosen into parts, against a plain sort."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from scalselect_ray.selection import Scale, partition_scores, sortable

SCORES = st.lists(st.one_of(st.sampled_from([0.0, 5e-324, 1e308, 1.0]), st.floats(0, 2)), min_size=1, max_size=60)


@given(SCORES, st.integers(1, 20))
def test_parts_are_runs_of_the_sorted_scores(scores, rows):
    keys = sortable(np.array(scores))
    scale = Scale.between(int(keys.min()), int(keys.max()))
    parts = partition_scores(scale, scale.histogram(keys), rows)
    of = parts.of(keys)
    held = [keys[of == place] for place in range(len(parts))]
    assert np.array_equal(np.concatenate([np.sort(part)[::-1] for part in held]), np.sort(keys)[::-1])
    assert parts.above_P.tolist() == [sum(map(len, held[:place])) for place in range(len(parts))]
    for part in held:
        assert 0 < len(part) <= rows or len(set(scale.steps(part).tolist())) == 1
    for one, following in itertools.pairwise(held):
        assert len(one) + len(following) > rows, "no more parts than needed"


def test_scores_that_lie_close_together_still_fall_into_parts_of_even_size():
    """Leverage scores of a large corpus: all within a fifth of their mean, but for a few."""
    scores = np.random.default_rng(0).normal(4e-6, 2e-7, 1_000_000)
    scores[:3] = 0.7
    keys = sortable(scores[scores > 4.1e-6])
    scale = Scale.between(int(keys.min()), int(keys.max()))
    parts = partition_scores(scale, scale.histogram(keys), 10_000)
    assert np.bincount(parts.of(keys)).max() <= 10_000
    assert len(parts) < 1.2 * len(keys) / 10_000


def test_a_manifest_of_nothing_is_one_empty_part():
    scale = Scale.between(2**64 - 1, int(sortable(np.array([0.3]))[0]))
    empty = np.array([], dtype=np.uint64)
    parts = partition_scores(scale, scale.histogram(empty), 10)
    assert (len(parts), parts.above_P.tolist(), parts.of(empty).tolist()) == (1, [0], [])
