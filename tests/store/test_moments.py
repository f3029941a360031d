"""Merged moments as they are stored."""

import json

import numpy as np
import pytest
from safetensors.numpy import load, save

from scalselect_ray.corpus import SliceId
from scalselect_ray.errors import DamagedObjectError, OutputError
from scalselect_ray.io import checksum, storage
from scalselect_ray.store import moments
from scalselect_ray.store.features import FeatureStore
from scalselect_ray.store.layout import Output
from scalselect_ray.subspace import of_rows

A, B, C = (SliceId("0" * 16, first, first + 5, 15) for first in (0, 5, 10))
X = np.random.default_rng(0).normal(size=(9, 3))


@pytest.fixture
def store(tmp_path) -> FeatureStore:
    return FeatureStore(Output(str(tmp_path)), "abc")


def keep(store: FeatureStore, *slice_ids: SliceId, data: bytes | None = None) -> str:
    uri = store.output.moments_file("abc", moments.set_id(slice_ids))
    storage.write(uri, moments.to_bytes(of_rows(X), slice_ids) if data is None else data)
    return uri


def test_stored_moments_come_back_with_their_slices(store):
    uri = keep(store, B, A)
    assert moments.covered_slices(uri) == [A, B]
    assert np.array_equal(moments.read_moments(uri).scatter_DD, of_rows(X).scatter_DD)


def test_the_largest_set_within_the_wanted_slices_is_found(store):
    keep(store, A)
    both = keep(store, A, B)
    keep(store, A, B, C)
    found = moments.find_stored(store, [A, B])
    assert found is not None
    assert (found.uri, found.slice_ids) == (both, [A, B])
    assert moments.find_stored(store, [C]) is None


@pytest.mark.heavy
def test_moments_of_files_of_which_something_is_made_anew_are_forgotten_however_the_file_is_cut(store):
    other = SliceId("1" * 16, 0, 5, 5)
    kept, gone = keep(store, other), [keep(store, A, B, C), keep(store, A, B, C, other)]
    moments.forget(store, [SliceId(A.file_key, 3, 12, 15)])
    assert storage.exists(kept)
    assert not any(map(storage.exists, gone))


def test_the_slices_may_be_many(store):
    many = [SliceId("0" * 16, first, first + 256, 999_999_999) for first in range(0, 2_000_000 * 256, 256)]
    assert len("".join(map(str, many[:10]))) * len(many) / 10 > 90e6, "a safetensors header ends at 100 MB"
    uri = keep(store, *many)
    assert moments.covered_slices(uri) == many


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 9, b"\xff" * 40, save({"x": X})], ids=["empty", "zeros", "ones", "other"]
)
def test_what_is_no_file_of_ours_is_damage(store, data):
    uri = keep(store, A, data=data)
    with pytest.raises(DamagedObjectError, match=moments.set_id([A])):
        moments.find_stored(store, [A])
    with pytest.raises(DamagedObjectError):
        moments.read_moments(uri)


def test_moments_under_the_name_of_another_set_are_damage(store):
    keep(store, A, data=moments.to_bytes(of_rows(X), [B]))
    with pytest.raises(DamagedObjectError, match="not of the slices"):
        moments.find_stored(store, [A, B])


@pytest.mark.parametrize("version", [2, 9])
def test_an_earlier_version_is_made_anew_and_a_later_one_refused(store, version):
    data = moments.to_bytes(of_rows(X), [A])
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length])["__metadata__"] | {"format": f"scalselect.moments/{version}"}
    keep(store, A, data=checksum.stamped(save(load(data), metadata=metadata | {"seal": checksum.BLANK})))
    if version < 3:
        assert moments.find_stored(store, [A]) is None
    else:
        with pytest.raises(OutputError, match=r"scalselect\.moments/9.*scalselect\.moments/3"):
            moments.find_stored(store, [A])
