"""The feature store."""

import numpy as np
import pytest

from scalselect_ray.errors import DamagedObjectError
from scalselect_ray.io import storage
from scalselect_ray.store.features import FeatureStore, feature_table, features_of

KEY = {"source": "s", "shard": "/a.json"}
ROWS = [
    {**KEY, "row": 0, "id": "x", "feature": np.array([1, 2, 3], np.float32), "num_tokens": 9},
    {**KEY, "row": 1, "id": None, "reason": "image_missing", "message": "gone"},
    {**KEY, "row": 2, "id": "y", "feature": np.array([4, 5, 6], np.float32), "num_tokens": 8},
    {**KEY, "row": 3, "id": None, "reason": "text_only", "message": "no image"},
]


@pytest.fixture
def store(tmp_path) -> FeatureStore:
    return FeatureStore(str(tmp_path), "abc")


def test_what_is_committed_is_listed_and_read_back(store):
    assert store.committed() == set()
    store.commit("one", feature_table(ROWS, 3))
    assert store.committed() == {"one"}
    assert features_of(store.read("one")).tolist() == [[1, 2, 3], [4, 5, 6]]
    assert store.read("one", ["reason"])["reason"].to_pylist() == [None, "image_missing", None, "text_only"]


def test_committing_again_writes_the_same_bytes(store):
    store.commit("one", feature_table(ROWS, 3))
    first = storage.read_bytes(f"{store.folder}/one.parquet")
    store.commit("one", feature_table(ROWS, 3))
    assert storage.read_bytes(f"{store.folder}/one.parquet") == first


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "other"])
def test_damage_is_found_and_named(store, damage, tmp_path):
    store.commit("one", feature_table(ROWS, 3))
    path = f"{store.folder}/one.parquet"
    data = bytearray(storage.read_bytes(path))
    if damage == "flip":
        place = bytes(data).index(np.array([1, 2, 3], np.float32).tobytes())
        data[place] ^= 1
    data = {"flip": data, "cut": data[:-20], "empty": b"", "other": b"PAR1 not really PAR1"}[damage]
    storage.write(path, bytes(data))
    with pytest.raises(DamagedObjectError, match=r"one\.parquet"):
        store.read("one")


def test_a_slice_of_rejects_alone_has_no_features(store):
    store.commit("bad", feature_table(ROWS[1:2], 3))
    assert features_of(store.read("bad")).shape == (0, 3)
