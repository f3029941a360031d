"""The feature store."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from scalselect_ray.corpus import Slice, SliceId
from scalselect_ray.errors import DamagedObjectError, OutputError
from scalselect_ray.io import storage
from scalselect_ray.store import layout
from scalselect_ray.store.features import FeatureStore, feature_table, features_of, find_store
from scalselect_ray.store.layout import Output

ONE = SliceId("0123456789abcdef", 0, 4, 4)
KEY = {"source": "s", "shard": "/a.json"}
ROWS = [
    {**KEY, "row": 0, "id": "x", "feature": np.array([1, 2, 3], np.float32), "num_tokens": 9},
    {**KEY, "row": 1, "id": None, "reason": "image_missing", "message": "gone"},
    {**KEY, "row": 2, "id": "y", "feature": np.array([4, 5, 6], np.float32), "num_tokens": 8},
    {**KEY, "row": 3, "id": None, "reason": "text_only", "message": "no image"},
]


@pytest.fixture
def store(tmp_path) -> FeatureStore:
    return FeatureStore(Output(str(tmp_path)), "abc")


def test_what_is_committed_is_listed_and_read_back(store):
    assert store.committed() == set()
    store.commit(ONE, feature_table(ROWS, 3))
    assert store.committed() == {ONE}
    assert features_of(store.read(ONE)).tolist() == [[1, 2, 3], [4, 5, 6]]
    assert store.read(ONE, ["reason"])["reason"].to_pylist() == [None, "image_missing", None, "text_only"]


@pytest.mark.parametrize("columns", [["row", "images_digest"], ["images_digest"], ["images_digest", "feature"]])
@pytest.mark.parametrize("version", ["0.1", "now"])
def test_digests_of_images_are_read_where_a_file_has_them_and_null_where_it_has_none(version, columns, store):
    table = feature_table([{**row, "images_digest": f"{row['row']:032x}"} for row in ROWS[:2]] + ROWS[2:], 3)
    store.commit(ONE, table if version == "now" else table.drop_columns("images_digest"))
    digests = [f"{0:032x}", f"{1:032x}", None, None] if version == "now" else [None] * 4
    for found in (store.read(ONE, columns), store.peek(ONE, columns)):
        assert sorted(found.column_names) == sorted(columns)
        assert found["images_digest"].to_pylist() == digests
    assert features_of(store.read(ONE)).tolist() == [[1, 2, 3], [4, 5, 6]]


def test_committing_again_writes_the_same_bytes(store):
    store.commit(ONE, feature_table(ROWS, 3))
    first = storage.read_bytes(f"{store.folder}/{ONE}.parquet")
    store.commit(ONE, feature_table(ROWS, 3))
    assert storage.read_bytes(f"{store.folder}/{ONE}.parquet") == first


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "other"])
def test_damage_is_found_and_named(store, damage, tmp_path):
    store.commit(ONE, feature_table(ROWS, 3))
    path = f"{store.folder}/{ONE}.parquet"
    data = bytearray(storage.read_bytes(path))
    if damage == "flip":
        place = bytes(data).index(np.array([1, 2, 3], np.float32).tobytes())
        data[place] ^= 1
    data = {"flip": data, "cut": data[:-20], "empty": b"", "other": b"PAR1 not really PAR1"}[damage]
    storage.write(path, bytes(data))
    with pytest.raises(DamagedObjectError, match=f"{ONE}"):
        store.read(ONE)


@pytest.mark.parametrize("columns", [["row", "images_digest"], ["source", "shard"]])
def test_whatever_byte_is_flipped_is_found_or_makes_no_trouble(columns, store):
    """What is read whole is damaged; what is peeked at has the columns that were asked for, or cannot be read."""
    store.commit(ONE, feature_table([{**row, "images_digest": "0" * 32} for row in ROWS], 3))
    path = f"{store.folder}/{ONE}.parquet"
    data, found = storage.read_bytes(path), Counter()
    for place in range(0, len(data), 13):
        Path(path).write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        with pytest.raises(DamagedObjectError):
            store.read(ONE, columns)
        table = store.peek(ONE, columns)
        found[table is not None] += 1
        assert table is None or table.column_names == columns
    assert set(found) == {True, False}


def test_a_slice_of_rejects_alone_has_no_features(store):
    store.commit(ONE, feature_table(ROWS[1:2], 3))
    assert features_of(store.read(ONE)).shape == (0, 3)


def test_reading_many_slices_names_all_that_is_damaged(store):
    others = [SliceId(ONE.file_key, first, first + 1, 9) for first in range(4, 9)]
    for slice_id in others:
        store.commit(slice_id, feature_table(ROWS, 3))
    assert [len(table) for table in store.read_all(others, ["row"])] == [4] * 5
    for slice_id in others[1::2]:
        storage.write(f"{store.folder}/{slice_id}.parquet", b"")
    read = []
    with pytest.raises(DamagedObjectError) as raised:
        read.extend(store.read_all(others, ["row"]))
    assert len(read) == 1, "nothing after the first damage is handed on"
    assert list(raised.value.damage) == [f"{store.folder}/{slice_id}.parquet" for slice_id in others[1::2]]


def test_a_file_of_another_version_is_refused_and_not_called_damaged(store, monkeypatch):
    monkeypatch.setitem(layout.FORMATS, "features", 9)
    store.commit(ONE, feature_table(ROWS, 3))
    monkeypatch.undo()
    with pytest.raises(OutputError, match=r"scalselect\.features/9.*scalselect\.features/2") as raised:
        store.read(ONE)
    assert not isinstance(raised.value, DamagedObjectError), "what a later version has written is never removed"


def test_features_of_other_bytes_are_named_where_both_tell(store):
    slices = [
        Slice("s", "/a.json", 9, "1", "/", "k" * 16, first, first + 1, 4, 0, 9, digest=digest)
        for first, digest in enumerate(["aa", "bb", "cc", ""])
    ]
    for slice_, digest in zip(slices, ["aa", "xx", "", "dd"], strict=True):
        store.commit(slice_.id, feature_table(ROWS, 3), digest)
    assert store.read(slices[0].id).num_rows == len(ROWS)
    store.check_rows([slices[0], *slices[2:]])
    with pytest.raises(DamagedObjectError) as raised:
        store.check_rows(slices)
    assert raised.value.damage == {
        store.output.feature_file(store.extractor_id, slices[1].id): "/a.json has other bytes now"
    }


DESCRIPTION = {"weights": "abc", "settings": {"dtype": "float32", "max_length": None}, "format": 3}
EARLIER = {"weights": "cab", "settings": DESCRIPTION["settings"], "format": 2}


def not_asked() -> str:
    raise AssertionError("the model is read once more for nothing")


def stored(output: Output, name: str, description: dict[str, object]) -> None:
    FeatureStore(output, name).describe({"model": "/m", **description})


def test_an_extractor_goes_on_where_an_earlier_version_has_put_its_features(tmp_path):
    output = Output(str(tmp_path))
    stored(output, "old", EARLIER)
    stored(output, "other", EARLIER | {"weights": "others"})
    store = find_store(output, "new", DESCRIPTION, lambda: "old")
    assert (store.extractor_id, store.current_id) == ("old", "new")
    assert store.is_of("new")
    assert not store.is_of("old")
    store.describe({"model": "/m", **DESCRIPTION})
    assert find_store(output, "new", DESCRIPTION, not_asked) == store, "also when the model's folder has other files"


def test_without_earlier_features_an_extractor_has_its_own_folder(tmp_path):
    output = Output(str(tmp_path))
    assert find_store(output, "new", DESCRIPTION, not_asked) == FeatureStore(output, "new")
    stored(output, "other", EARLIER)
    stored(output, "another", DESCRIPTION | {"settings": {"dtype": "bfloat16", "max_length": None}})
    assert find_store(output, "new", DESCRIPTION, lambda: "old") == FeatureStore(output, "new")
    assert FeatureStore(output, "new").is_of("new")
    stored(output, "new", DESCRIPTION)
    stored(output, "old", EARLIER)
    assert find_store(output, "new", DESCRIPTION, not_asked) == FeatureStore(output, "new"), "its own comes first"


@pytest.mark.parametrize("content", ["", "[]", "7", '{"settings": 1}', '{"format": 3}', "\udcff{"])
def test_a_description_that_cannot_be_read_is_no_extractor(content, tmp_path):
    output = Output(str(tmp_path))
    storage.write(output.extractor("odd"), content.encode(errors="surrogateescape"))
    assert find_store(output, "new", DESCRIPTION, lambda: "old") == FeatureStore(output, "new")
    assert find_store(output, "new", DESCRIPTION, lambda: "odd") == FeatureStore(output, "odd", "new")
