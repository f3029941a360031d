"""Rows by files to rows by ranks, through sorted runs."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scalselect_ray.corpus import ImagePlaceholder, Turn
from scalselect_ray.errors import StorageError
from scalselect_ray.exports import spool
from scalselect_ray.exports.base import ExportImage, ExportRow

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
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROWS, max_size=30), data=st.data())
def test_each_part_has_its_rows_in_order_however_runs_are_cut(rows, data, tmp_path, monkeypatch):
    monkeypatch.setattr(spool, "_WINDOW", 1)
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


def test_a_cut_run_is_an_error(tmp_path):
    writer = spool.SortedRunWriter(str(tmp_path / "run"), [], 1 << 20)
    writer.add(1, ExportRow(1, "", "", 0, None, None))
    writer.flush()
    (run,) = writer.runs
    data = (tmp_path / "run-0000").read_bytes()
    (tmp_path / "run-0000").write_bytes(data[:-1])
    with pytest.raises(StorageError, match="cut"):
        list(spool.merged([run.range(0)]))
