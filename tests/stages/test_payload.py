"""What travels from a prepare worker to an extractor comes out as it went in."""

import weakref
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from scalselect_ray.corpus import Reason, SampleRejectedError, Slice
from scalselect_ray.stages import extract, payload
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


def large(row: int, size: int) -> PreparedRow:
    image = {"pixel_values": np.full(size, row, np.uint8)}
    flags = np.ones(3, bool)
    return {"row": row, "id": None}, Prepared(np.arange(3), np.zeros((1, 3), np.int64), flags, ~flags, image)


@pytest.mark.parametrize(
    ("sizes", "cuts"),
    [
        ([10, 10, 10], [(5, 8)]),
        ([100, 10, 10], [(5, 6), (6, 8)]),
        ([60, 60, 60, 60], [(5, 7), (7, 9)]),
        ([300, 300, 300], [(5, 6), (6, 7), (7, 8)]),
        ([10, 10, 300], [(5, 8)]),
    ],
    ids=["small", "one large", "two and two", "each alone", "large at the end"],
)
def test_a_slice_of_large_pictures_becomes_several(sizes, cuts, monkeypatch):
    monkeypatch.setattr(payload, "MAX_BYTES", 100)
    slice_ = Slice("s", "/s", 9, "v", "/", "k", 5, 5 + len(sizes), 20, 0, 9, digest="d")
    rows = [large(row, size) for row, size in enumerate(sizes, start=5)]
    found = list(payload.payloads(slice_, iter(rows)))
    assert [(piece.first_row, piece.stop_row) for piece, _ in found] == cuts
    assert [key["row"] for _, packed in found for key, _ in unpack(packed)] == list(range(5, 5 + len(sizes)))
    assert all(piece.file_rows == 20 for piece, _ in found)
    assert [piece.digest for piece, _ in found] == (["d"] if len(cuts) == 1 else [""] * len(cuts)), "of the whole slice"


def test_rows_that_a_filter_left_out_are_in_the_slices_that_are_cut(monkeypatch):
    monkeypatch.setattr(payload, "MAX_BYTES", 1)
    planned = Slice(
        "s", "/a.json", 9, "1", "/", "key", first_row=10, stop_row=20, file_rows=30, start_byte=0, stop_byte=9
    )
    rows = [({"row": row, "id": None}, sample(row, row)) for row in (12, 13, 17)]
    pieces = list(payload.payloads(planned, rows))
    assert [(piece.first_row, piece.stop_row) for piece, _ in pieces] == [(10, 13), (13, 14), (14, 18), (18, 20)]
    assert [[key["row"] for key, _ in unpack(packed)] for _, packed in pieces] == [[12], [13], [17], []]
    ((piece, packed),) = payload.payloads(planned, [])
    assert (piece, unpack(packed)) == (planned, [])


def test_rows_are_let_go_before_their_payload_is_handed_on(monkeypatch):
    """Both are hundreds of MB where pictures are large."""
    monkeypatch.setattr(payload, "MAX_BYTES", 100)
    held: list[weakref.ref[np.ndarray]] = []

    def rows():
        for row in range(6):
            made = large(row, 60)
            held.append(weakref.ref(made[1].images["pixel_values"]))
            yield made

    alive = []
    for _, packed in payload.payloads(Slice("s", "/s", 9, "v", "/", "k", 0, 6, 6, 0, 9), rows()):
        del packed
        alive.append(sum(ref() is not None for ref in held))
    assert max(alive) <= 1, "the last one that was looked at"


@pytest.mark.parametrize("chunks", [1, 3])
def test_a_payload_is_used_where_it_lies(chunks):
    slice_ = Slice("s", "/s", 9, "v", "/", "k", 0, 1, 1, 0, 9)
    rows = pa.concat_tables([extract._one_row(slice_, bytes([number]) * 9) for number in range(4)])
    batch = rows.slice(2, 1) if chunks == 1 else pa.concat_tables([rows.slice(0, 0), rows.slice(2, 1), rows.slice(4)])
    found = extract._payload_of(batch)
    assert found.to_pybytes() == bytes([2]) * 9
    assert found.address == rows["payload"].chunk(2).buffers()[2].address
