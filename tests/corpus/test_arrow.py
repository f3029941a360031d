"""Arrow files and streams: what trainers keep with `datasets.save_to_disk`, and what is wrong with others."""

import io
import struct

import pyarrow as pa
import pyarrow.feather as feather
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scalselect_ray.config import CorpusConfig, SourceConfig
from scalselect_ray.corpus import Reason, Reject, Sample, list_corpus, plan_file, read_slices, reading_units
from scalselect_ray.corpus.formats import Cutting, format_of
from scalselect_ray.io import storage

TURNS = [{"from": "human", "value": "<image> a"}, {"from": "gpt", "value": "b"}]
ROWS = [{"id": str(n), "image": {"bytes": b"png" * n, "path": f"{n}.png"}, "conversations": TURNS} for n in range(20)]


def corpus(path):
    return list_corpus(CorpusConfig(sources=[SourceConfig(name="s", paths=[str(path)])], slice_rows=7))


def read(path) -> list[Sample | Reject]:
    (file,) = corpus(path).files
    return [row for unit in reading_units(plan_file(file)) for _, rows in read_slices(unit) for row in rows]


def stream_of(*batches: pa.RecordBatch, codec: str | None = None) -> bytes:
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=codec, emit_dictionary_deltas=True)
    with pa.ipc.new_stream(sink, batches[0].schema, options=options) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return sink.getvalue()


def batch_of(rows: list) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows)


@pytest.mark.heavy
def test_what_datasets_saves_is_read_and_its_own_files_beside_it_are_not(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "image": datasets.Image(decode=False),
            "conversations": [{"from": datasets.Value("string"), "value": datasets.Value("string")}],
        }
    )
    made = datasets.Dataset.from_list(ROWS, features=features)
    made.save_to_disk(tmp_path / "saved", num_shards=3)
    (tmp_path / "saved" / "cache-0123456789abcdef.arrow").write_bytes(b"a copy of it")
    found = corpus(tmp_path / "saved")
    assert len(found.files) == 3
    assert sum(found.passed_over["s"].values()) == 3, "state.json, dataset_info.json, the cache"
    rows = [row for file in found.files for row in read(file.file.uri)]
    assert [row.id for row in rows] == [row["id"] for row in ROWS]
    assert [row.images[0].data for row in rows] == [row["image"]["bytes"] for row in ROWS]


@pytest.mark.parametrize("compression", ["uncompressed", "lz4", "zstd"])
def test_feather_is_read_and_its_first_version_is_named(compression, tmp_path):
    table = pa.Table.from_pylist(ROWS)
    feather.write_feather(table, tmp_path / "a.feather", compression=compression, chunksize=3)
    assert [row.id for row in read(tmp_path / "a.feather")] == [row["id"] for row in ROWS]
    (tmp_path / "b.feather").write_bytes(b"FEA1" + bytes(100))
    assert "Feather of version 1" in read(tmp_path / "b.feather")[0].message


def test_dictionaries_that_grow_and_change_between_batches(tmp_path):
    rows = [{"id": "x", "image": f"{n % 3}.png", "conversations": TURNS} for n in range(12)]
    batches = []
    for start in (0, 4, 8):
        batch = batch_of(rows[start : start + 4])
        images = pa.array([row["image"] for row in rows[: start + 4]]).dictionary_encode()[start:]
        batches.append(batch.set_column(1, "image", images))
    (tmp_path / "a.arrow").write_bytes(stream_of(*batches))
    assert [row.images[0].uri.rpartition("/")[2] for row in read(tmp_path / "a.arrow")] == [r["image"] for r in rows]


def test_to_plan_a_file_its_batches_are_not_read(tmp_path, monkeypatch):
    batches = [batch_of([{"id": str(n), "image": {"bytes": bytes(1 << 20)}, "conversations": TURNS}]) for n in range(8)]
    (tmp_path / "a.arrow").write_bytes(stream_of(*batches))
    file = storage.stat(str(tmp_path / "a.arrow"))
    seen = []

    class Watched(io.BufferedReader):
        def read(self, size=-1):
            seen.append(size)
            return super().read(size)

    monkeypatch.setattr(storage, "open_random", lambda uri: Watched(io.FileIO(uri)))
    assert len(list(format_of(file).scan(file, Cutting(1, 1 << 30)))) == 8
    assert sum(seen) < 1 << 16


def test_rows_before_a_break_are_kept_and_what_is_lost_is_counted(tmp_path):
    whole = stream_of(*[batch_of(ROWS[start : start + 5]) for start in (0, 5, 10, 15)])
    (tmp_path / "a.arrow").write_bytes(whole[: int(len(whole) * 0.7)])
    *rows, last = read(tmp_path / "a.arrow")
    assert [row.id for row in rows] == [row["id"] for row in ROWS[: len(rows)]]
    assert len(rows) in (5, 10)
    assert last.reason == Reason.UNREADABLE_FILE
    assert f"breaks off after row {len(rows) - 1}" in last.message
    assert 0 < last.lost_bytes < len(whole)


WHOLE = {
    "a.arrow": stream_of(*[batch_of(ROWS[start : start + 5]) for start in (0, 5, 10, 15)]),
    "b.arrow": stream_of(*[batch_of(ROWS[start : start + 10]) for start in (0, 10)], codec="zstd"),
}


@pytest.mark.parametrize("name", WHOLE)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_gives_rows_and_rejects_and_no_other_error(name, data, tmp_path):
    """Most of all in the heads of messages, which say where everything lies."""
    content = bytearray(WHOLE[name])
    heads = [at for at in range(0, len(content), 8) if content[at : at + 4] == b"\xff" * 4]
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.sampled_from(heads)) + data.draw(st.integers(0, 700))
        value = data.draw(st.sampled_from([b"\xff" * 8, bytes(8), b"\x7f" + b"\xff" * 7, b"\x01", b"\x80"]))
        content[at : at + len(value)] = value
    (tmp_path / name).write_bytes(content)
    found = read(tmp_path / name)
    assert [row.row for row in found] == list(range(len(found)))


def costly(rows: int, column: pa.Array, codec: str | None = None) -> bytes:
    turns = pa.array([TURNS] * rows)
    return stream_of(pa.RecordBatch.from_arrays([turns, column], ["conversations", "image"]), codec=codec)


BOMBS = {
    "zeros": lambda: costly(1, pa.array([bytes(1 << 27)]), "zstd"),
    "nulls": lambda: costly(1, pa.ListArray.from_arrays([0, 1 << 24], pa.nulls(1 << 24))),
    "wide": lambda: costly(1, pa.FixedSizeListArray.from_arrays(pa.nulls(1 << 24), 1 << 24)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_batch_that_would_take_gigabytes_is_refused(name, tmp_path):
    (tmp_path / "a.arrow").write_bytes(BOMBS[name]())
    (row,) = read(tmp_path / "a.arrow")
    assert row.reason == Reason.TOO_COSTLY
    assert "a bomb" in row.message


def test_a_claim_of_more_rows_than_bytes_is_refused(tmp_path):
    (tmp_path / "a.arrow").write_bytes(stream_of(pa.RecordBatch.from_arrays([pa.nulls(1 << 20)], ["image"])))
    (row,) = read(tmp_path / "a.arrow")
    assert "claims 1,048,576 rows" in row.message


def test_columns_that_are_not_read_are_named(tmp_path):
    rows = [{"question_text": "x", "picture": "a.png"}] * 3
    (tmp_path / "a.arrow").write_bytes(stream_of(batch_of(rows)))
    found = read(tmp_path / "a.arrow")
    assert len(found) == 3
    assert "picture" in found[0].message


def test_a_stream_of_an_earlier_version_is_read(tmp_path):
    sink = io.BytesIO()
    batch = batch_of(ROWS)
    options = pa.ipc.IpcWriteOptions(use_legacy_format=True)
    with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    assert struct.unpack_from("<i", sink.getvalue())[0] > 0
    (tmp_path / "a.arrow").write_bytes(sink.getvalue())
    assert len(read(tmp_path / "a.arrow")) == 20


def test_a_file_that_changes_is_looked_at_anew(tmp_path):
    path = tmp_path / "a.arrow"
    for count in (3, 5):
        path.write_bytes(stream_of(batch_of(ROWS[:count])))
        assert len(read(path)) == count
