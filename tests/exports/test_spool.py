"""Rows by files to rows by ranks, through sorted runs."""

import io
import json

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scalselect_ray.corpus import ImagePlaceholder, Turn
from scalselect_ray.errors import OutputError, StorageError
from scalselect_ray.exports import spool
from scalselect_ray.exports.base import ExportImage, ExportRow, join_parts
from scalselect_ray.exports.fields import Fields
from scalselect_ray.io import storage

TEXT = st.text(st.characters(exclude_categories=[]), max_size=8)  # lone surrogates too: JSON corpora can hold them
CONTENT = st.lists(st.one_of(TEXT, st.builds(ImagePlaceholder, st.integers(0, 3), st.booleans())), max_size=3).map(
    tuple
)
IMAGES = st.one_of(
    st.builds(ExportImage, TEXT, st.none(), st.none(), st.none(), st.binary(max_size=300)),
    st.builds(ExportImage, TEXT, TEXT, TEXT),
    st.builds(ExportImage, TEXT, st.none(), st.none(), TEXT),
)
ROWS = st.builds(
    ExportRow,
    rank=st.just(0),
    source=TEXT,
    shard=TEXT,
    row=st.integers(0, 1 << 40),
    id=st.one_of(st.none(), TEXT, st.integers(-(1 << 70), 1 << 70)),
    score=st.one_of(st.none(), st.floats(0, 1)),
    uid=st.one_of(st.none(), TEXT),
    turns=st.lists(st.builds(Turn, st.sampled_from(["system", "user", "assistant"]), CONTENT), max_size=3).map(tuple),
    images=st.lists(IMAGES, max_size=3).map(tuple),
    members=st.lists(st.tuples(TEXT, st.binary(max_size=300)), max_size=2).map(tuple),
    problem=st.one_of(st.none(), TEXT),
    fields=st.builds(
        Fields,
        st.dictionaries(TEXT, st.one_of(st.none(), TEXT, st.lists(st.integers()))),
        st.lists(st.tuples(TEXT, st.integers(0, 9))).map(tuple),
        st.lists(TEXT).map(tuple),
        st.lists(TEXT).map(tuple),
    ),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROWS, max_size=30), data=st.data())
def test_each_part_has_its_rows_in_order_however_runs_are_cut(rows, data, tmp_path, monkeypatch):
    monkeypatch.setattr(spool, "_WINDOW", 1)
    monkeypatch.setattr(spool, "_BATCH_BYTES", data.draw(st.integers(1, 2000)))
    ranked = [
        ExportRow(**{**{name: getattr(row, name) for name in ExportRow.__slots__}, "rank": rank})
        for rank, row in enumerate(rows, start=1)
    ]
    first_keys = sorted(data.draw(st.lists(st.integers(1, 40), max_size=4)))
    writer = spool.SortedRunWriter(str(tmp_path / "run"), first_keys, data.draw(st.integers(1, 3000)))
    for row in data.draw(st.permutations(ranked)):
        writer.add(row.rank, row)
    writer.flush()
    edges = [0, *first_keys, 1000]
    for part in range(len(first_keys) + 1):
        expected = [row for row in ranked if edges[part] <= row.rank < edges[part + 1]]
        found = list(spool.merged([run.range(part) for run in writer.runs]))
        assert [(row.rank, row.turns, row.images, row.members) for row in found] == [
            (row.rank, row.turns, row.images, row.members) for row in expected
        ]
        assert found == expected
        written = [
            piece.written
            for row in found
            for turn in row.turns
            for piece in turn.content
            if isinstance(piece, ImagePlaceholder)
        ]
        assert written == [
            piece.written
            for row in expected
            for turn in row.turns
            for piece in turn.content
            if isinstance(piece, ImagePlaceholder)
        ]


def test_keys_of_128_bits(tmp_path):
    writer = spool.SortedRunWriter(str(tmp_path / "run"), [], 1)
    keys = [2**128 - 1, 0, 2**64]
    for rank, key in enumerate(keys):
        writer.add(key, ExportRow(rank, "", "", 0, None, None))
    writer.flush()
    assert [keys[row.rank] for row in spool.merged([run.range(0) for run in writer.runs])] == sorted(keys)


@pytest.mark.parametrize("kept", [0, 1, 40, 2000, -1])
def test_a_cut_run_is_an_error(tmp_path, monkeypatch, kept):
    monkeypatch.setattr(spool, "_BATCH_BYTES", 100)  # several batches: a cut between two of them looks like an end
    writer = spool.SortedRunWriter(str(tmp_path / "run"), [], 1 << 20)
    for rank in range(1, 9):
        writer.add(rank, ExportRow(rank, "", "", 0, None, None))
    writer.flush()
    (run,) = writer.runs
    data = (tmp_path / "run-0000").read_bytes()
    assert len(list(spool.merged([run.range(0)]))) == 8
    (tmp_path / "run-0000").write_bytes(data[:kept])
    with pytest.raises(StorageError, match="run-0000 ends before the rows"):
        list(spool.merged([run.range(0)]))


def test_a_run_that_is_gone_names_what_may_have_removed_it(tmp_path):
    writer = spool.SortedRunWriter(str(tmp_path / "run"), [], 1 << 20)
    writer.add(1, ExportRow(1, "", "", 0, None, None))
    writer.flush()
    (tmp_path / "run-0000").unlink()
    with pytest.raises(OutputError, match="run-0000 is gone: the same export was written twice at once"):
        list(spool.merged([writer.runs[0].range(0)]))
    with pytest.raises(OutputError, match="run-0000 is gone"):
        join_parts(io.BytesIO(), [str(tmp_path / "run-0000")])


def test_a_run_is_arrow_ipc_one_stream_for_each_part(tmp_path):
    """Read by Arrow alone, without this package's reader."""
    writer = spool.SortedRunWriter(str(tmp_path / "run"), [3, 3, 5], 1 << 20)
    for rank in (4, 1, 6, 2, 3):
        writer.add(rank, ExportRow(rank, "a", "b", 0, None, None, images=(ExportImage("x", data=b"\0png"),)))
    writer.flush()
    (run,) = writer.runs
    data = (tmp_path / "run-0000").read_bytes()
    tables = {
        part: pa.ipc.open_stream(data[run.edges[part] : run.edges[part + 1]]).read_all()
        for part in range(4)
        if run.edges[part] < run.edges[part + 1]
    }
    ranks = {
        part: [json.loads(facts)["rank"] for facts in table["facts"].to_pylist()] for part, table in tables.items()
    }
    assert ranks == {0: [1, 2], 2: [3, 4], 3: [6]}
    assert all(table.schema == spool.SCHEMA for table in tables.values())
    assert all(blobs == [b"\0png"] for table in tables.values() for blobs in table["blobs"].to_pylist())


def test_a_merge_reads_a_window_of_each_run_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(spool, "_WINDOW", 1)  # 64 KiB of each run, the least
    writer = spool.SortedRunWriter(str(tmp_path / "run"), [], 1 << 20)
    for rank in range(4000):
        writer.add(rank, ExportRow(rank, "s" * 200, "", 0, None, None))
    writer.flush()
    read: list[tuple[int, int]] = []
    whole = storage.read_bytes
    monkeypatch.setattr(
        storage, "read_bytes", lambda uri, start, stop: read.append((start, stop)) or whole(uri, start, stop)
    )
    rows = spool.merged([run.range(0) for run in writer.runs])
    assert next(rows).rank == 0
    assert sum(stop - start for start, stop in read) <= 4 * (64 << 10) * len(writer.runs)
    assert [row.rank for row in rows] == list(range(1, 4000))
    assert sum(stop - start for start, stop in read) == sum(int(run.edges[-1]) for run in writer.runs), "no byte twice"
