"""Slices and their ids."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalselect_ray.corpus import SliceId, is_complete, without_overlaps

KEYS = st.text("0123456789abcdef", min_size=16, max_size=16)
ROWS = st.integers(0, 999_999_980)
IDS = st.builds(
    lambda key, first, more: SliceId(key, first, first + 1, first + 1 + more), KEYS, ROWS, st.integers(0, 9)
)


@given(slice_id=IDS)
def test_an_id_is_read_back_as_it_was_written(slice_id):
    assert SliceId.parse(str(slice_id)) == slice_id


@given(ids=st.lists(IDS, max_size=20))
def test_ids_sort_as_their_texts_do(ids):
    assert list(map(str, sorted(ids))) == sorted(map(str, ids))


@pytest.mark.parametrize(
    "text", ["", "extractor", "a-0-1-2", "a-0-1-of", "a-x-1-of-2", "a-0-1-in-2", "0123-000000000-000000005-of-"]
)
def test_what_is_no_id_is_refused(text):
    with pytest.raises(ValueError, match="no id of a slice"):
        SliceId.parse(text)


def test_slices_that_begin_inside_another_are_left_out_and_gaps_are_seen():
    a, b, c, d = (SliceId("k", first, stop, 12) for first, stop in ((0, 5), (3, 8), (5, 10), (10, 12)))
    assert without_overlaps([d, b, c, a]) == [a, c, d]
    assert is_complete([a, c, d])
    assert not is_complete([a, d])
    assert not is_complete([])
