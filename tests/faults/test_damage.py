"""Committed objects that were damaged afterwards: found, named, made anew by the same run, whatever byte it is."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import GOLDEN, write_config
from hypothesis import given, settings
from hypothesis import strategies as st

from scalselect_ray.cli import main
from scalselect_ray.corpus import SliceId
from scalselect_ray.errors import DamagedObjectError, OutputError
from scalselect_ray.io import storage
from scalselect_ray.store import moments
from scalselect_ray.store.features import FeatureStore, feature_table
from scalselect_ray.store.layout import Output
from scalselect_ray.subspace import of_rows

CORPUS = GOLDEN / "llava"
SLICE_ID, OTHER_ID = SliceId("0123456789abcdef", 0, 4, 4), SliceId("0123456789abcdef", 0, 5, 5)
KEY = {"source": "s", "shard": "/a.json"}
TABLE = feature_table(
    [
        {**KEY, "row": 0, "id": "x", "feature": np.array([1, 2, 3], np.float32), "num_tokens": 9},
        {**KEY, "row": 1, "id": None, "reason": "image_missing", "message": "gone"},
        {**KEY, "row": 2, "id": "crc32:", "feature": np.array([4, 5, 6], np.float32), "num_tokens": 8},
        {**KEY, "row": 3, "id": None, "reason": "text_only", "message": "no image"},
    ],
    3,
)
MOMENTS = moments.to_bytes(of_rows(np.random.default_rng(0).normal(size=(9, 3))), [SLICE_ID, OTHER_ID])


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> FeatureStore:
    return FeatureStore(Output(str(tmp_path_factory.mktemp("store"))), "abc")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("moments")


@pytest.fixture(scope="module")
def written(store) -> tuple[Path, bytes]:
    """A feature file and what was written to it."""
    store.commit(SLICE_ID, TABLE)
    path = Path(store.folder, f"{SLICE_ID}.parquet")
    return path, path.read_bytes()


@settings(max_examples=300, deadline=None)
@given(
    place=st.floats(0, 1, exclude_max=True),
    flip=st.integers(1, 255),
    columns=st.sampled_from([None, ["feature"], ["row", "reason"]]),
)
def test_a_flipped_byte_anywhere_in_a_feature_file_is_found(store, written, place, flip, columns):
    path, data = written
    damaged = bytearray(data)
    damaged[int(place * len(data))] ^= flip
    path.write_bytes(damaged)
    with pytest.raises(DamagedObjectError, match=str(SLICE_ID)):
        store.read(SLICE_ID, columns)


@settings(max_examples=100, deadline=None)
@given(length=st.floats(0, 1, exclude_max=True), tail=st.binary(max_size=20))
def test_a_cut_or_longer_feature_file_is_found(store, written, length, tail):
    path, data = written
    for damaged in (data[: int(length * len(data))] + tail, data + b"\0" + tail):
        path.write_bytes(damaged)
        with pytest.raises(DamagedObjectError, match=str(SLICE_ID)):
            store.read(SLICE_ID)


@settings(max_examples=300, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_flipped_byte_anywhere_in_stored_moments_is_found(folder, place, flip):
    data = bytearray(MOMENTS)
    data[int(place * len(data))] ^= flip
    with pytest.raises(ValueError, match="checksum"):
        moments.from_bytes(bytes(data))
    uri = str(folder / "moments.safetensors")
    storage.write(uri, bytes(data))
    try:
        found = moments.covered_slices(uri)
    except OutputError:
        return
    # what the header says is believed only where it agrees with the file's name
    assert found in ([], [SLICE_ID, OTHER_ID]) or moments.set_id(found) != moments.set_id([SLICE_ID, OTHER_ID])


def test_a_file_of_another_extractor_or_slice_is_no_feature_file_of_ours(store):
    other = FeatureStore(store.output, "other")
    other.commit(SLICE_ID, TABLE)
    store.commit(SLICE_ID, TABLE)
    path = Path(store.folder, f"{SLICE_ID}.parquet")
    shutil.copy(path, path.with_name(f"{OTHER_ID}.parquet"))
    with pytest.raises(DamagedObjectError, match="its slice is"):
        store.read(OTHER_ID)
    shutil.copy(Path(other.folder, f"{SLICE_ID}.parquet"), path)
    with pytest.raises(DamagedObjectError, match="its extractor is other, expected abc"):
        store.read(SLICE_ID)
    path.unlink()
    with pytest.raises(DamagedObjectError, match="it is gone"):
        store.read(SLICE_ID)


@pytest.fixture(scope="module")
def finished(cluster, tmp_path_factory) -> tuple[Path, Path]:
    """A config and its output, after one run."""
    folder = tmp_path_factory.mktemp("damage")
    sources = [{"name": "golden", "paths": [str(CORPUS / "samples.json")]}]
    config = write_config(folder, sources, CORPUS / "model", corpus={"sources": sources, "slice_rows": 4})
    assert main(["run", str(config)]) == 0
    return config, folder / "output"


def newest(output: Path) -> tuple[Path, dict, pa.Table]:
    """(folder, run.json, scores)"""
    folder = output / "runs" / json.loads((output / "latest.json").read_text())["run_id"]
    return folder, json.loads((folder / "run.json").read_text()), pq.read_table(folder / "scores")


def flipped(path: Path, place: int) -> bytes:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    return bytes(data)


def test_a_run_finds_damage_names_it_and_makes_the_object_anew(finished, capsys):
    config, output = finished
    *_, scores = newest(output)
    features, stored = sorted(output.glob("features/*/*.parquet")), next(output.glob("moments/*/*"))
    original = {path: path.read_bytes() for path in features}
    for damaged in (
        {
            features[0]: flipped(features[0], original[features[0]].index(b"seal") + 3),
            features[1]: original[features[1]][:-100],
            features[2]: b"",
            features[3]: original[features[4]],
            stored: flipped(stored, -1),
        },
        {stored: flipped(stored, 30)},  # the header tells which slices the moments are of
        {stored: b""},
    ):
        for path, data in damaged.items():
            path.write_bytes(data)
        capsys.readouterr()
        assert main(["run", str(config)]) == 0
        said = capsys.readouterr().err.replace("\n", "")
        assert not [path for path in damaged if f"warning: {path} is damaged" not in said]
        assert said.count("warning: ") == len(damaged)
        assert "Unhandled" not in said, "what heals itself shows no traces"
        rounds = said.count("scores") + said.count("all extracted before") + said.count(" to do (")
        assert rounds <= 3, "first the moments, then all feature files at once"
        _, record, again = newest(output)
        assert again.equals(scores)
        assert {path: path.read_bytes() for path in features} == original
        assert record["slices"]["total"] == len(features)


@pytest.mark.parametrize("name", ["manifest/00000.parquet", "subspace.safetensors"])
def test_damaged_results_of_the_previous_run_do_not_stop_the_next(name, finished, capsys):
    config, output = finished
    folder, _, scores = newest(output)
    (folder / name).write_bytes((folder / name).read_bytes()[:-10])
    assert main(["run", str(config)]) == 0
    assert f"the results of run {folder.name} are damaged" in capsys.readouterr().err
    _, record, again = newest(output)
    assert record["change"] is None
    assert again.equals(scores)
    assert main(["run", str(config)]) == 0
    assert newest(output)[1]["change"]["kept"] == record["chosen"]
