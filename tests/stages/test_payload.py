"""What travels from a prepare worker to an extractor comes out as it went in."""

from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from scalselect_ray.corpus import Reason, SampleRejectedError
from scalselect_ray.stages.payload import PreparedRow, pack, unpack
from scalselect_ray.vlm import Prepared

ANY_ARRAY = arrays.arrays(
    st.sampled_from(["u1", "?", "<i8", "<f4"]), arrays.array_shapes(min_dims=0, max_dims=4, min_side=0)
).flatmap(lambda array: st.sampled_from([array, array.T, array[..., ::2] if array.ndim else array]))
SAMPLES = st.builds(
    Prepared, ANY_ARRAY, ANY_ARRAY, ANY_ARRAY, ANY_ARRAY, st.dictionaries(st.text(max_size=3), ANY_ARRAY, max_size=3)
)
REJECTS = st.builds(SampleRejectedError, st.sampled_from(Reason), st.text())
KEYS = st.fixed_dictionaries({"row": st.integers(0, 1 << 40), "id": st.none() | st.text()})


def content(row: PreparedRow) -> Any:
    def plain(array: np.ndarray) -> tuple[Any, ...]:
        return array.dtype.str, array.shape, array.tobytes()

    key, held = row
    if isinstance(held, SampleRejectedError):
        return key, held.reason, held.message
    tokens = [plain(getattr(held, name)) for name in ("input_ids", "position_ids", "query", "vision")]
    return key, tokens, {name: plain(array) for name, array in held.images.items()}


@given(st.lists(st.tuples(KEYS, SAMPLES | REJECTS), max_size=4))
def test_rows_come_out_as_they_went_in(rows):
    payload = pack(rows)
    assert payload, "an empty payload says that the file has changed"
    assert [content(row) for row in unpack(payload)] == [content(row) for row in rows]


def sample(pixel: int, text: int) -> Prepared:
    tokens = np.array([text])
    pixels = np.full((1, 3, 100, 100), pixel, np.uint8)
    return Prepared(tokens, tokens[None], tokens > 0, tokens < 0, {"pixel_values": pixels})


def test_equal_images_travel_once_and_nothing_is_copied_where_it_arrives():
    held = [sample(1, 5), sample(2, 6), SampleRejectedError(Reason.TOO_LONG, "long"), sample(1, 7)]
    packed = pack([({"row": number, "id": None}, item) for number, item in enumerate(held)])
    assert 60_000 < len(packed) < 70_000
    buffer = pa.py_buffer(packed)
    (_, one), (_, other), (_, reject), (key, again) = unpack(buffer)
    assert one.images is again.images is not other.images
    assert (key, int(again.input_ids[0]), int(other.images["pixel_values"].max())) == ({"row": 3, "id": None}, 7, 2)
    assert reject.reason == Reason.TOO_LONG
    whole = np.frombuffer(buffer, np.uint8)
    for array in (one.images["pixel_values"], other.images["pixel_values"], one.input_ids, again.position_ids):
        assert np.shares_memory(whole, array)
        assert array.flags.aligned
