"""Samples that take their worker with them, without any worker."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalselect_ray.cluster.witness import Witness
from scalselect_ray.corpus import SliceId
from scalselect_ray.stages.isolation import deadly_rows


@given(rows=st.integers(1, 300), deadly=st.sets(st.integers(0, 299), max_size=5))
def test_exactly_the_deadly_rows_are_found(rows, deadly):
    deadly = {row for row in deadly if row < rows}
    calls = []

    def survives(some):
        calls.append(some)
        return deadly.isdisjoint(some)

    assert deadly_rows(range(rows), survives) == sorted(deadly)
    assert len(calls) <= 1 + 2 * len(deadly) * math.ceil(math.log2(max(rows, 2)))


def test_rows_that_are_deadly_only_together_are_not_called_so():
    assert deadly_rows(range(16), lambda rows: len(rows) < 5) == []


@pytest.mark.parametrize(("begun", "ended", "suspects"), [(1, 0, 0), (2, 0, 1), (3, 0, 1), (2, 1, 0)])
def test_what_was_begun_again_and_never_ended_is_suspect(begun, ended, suspects):
    witness, slice_id = Witness(), SliceId("k", 0, 5, 5)
    for _ in range(begun):
        witness.begin(slice_id)
    for _ in range(ended):
        witness.end(slice_id)
    assert len(witness.suspects()) == suspects
