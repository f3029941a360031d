"""Files to slices to rows: each row once, however the file is cut, whatever is wrong with it."""

import bz2
import errno
import gzip
import io
import itertools
import json
import lzma
import tarfile
import tracemalloc
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scalselect_ray.config import CorpusConfig
from scalselect_ray.corpus import (
    Reason,
    Reject,
    Slice,
    SliceId,
    is_complete,
    list_files,
    plan_file,
    read_slices,
    reading_units,
    without_overlaps,
)
from scalselect_ray.errors import CorpusError, StorageError
from scalselect_ray.io import storage

ROWS = [
    {
        "id": f"é{n}",
        "image": "a.png",
        "conversations": [{"from": "human", "value": f'[{{"<image>{n}'}, {"from": "gpt", "value": "\\]"}],
    }
    for n in range(23)
]


@dataclass
class Source:
    paths: list[str]
    name: str = "s"
    image_root: str | None = None
    columns: dict = field(default_factory=dict)
    limit: int | None = None
    filter: str | None = None
    extra: list = field(default_factory=list)


def tar_bytes(mode: str = "w") -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode=mode) as tar:
        for number, row in enumerate(ROWS):
            for name, data in ((f"{number}.png", b"png" * 99), (f"{number}.json", json.dumps(row).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def parquet_bytes() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([{**row, "scene": "heavy"} for row in ROWS]), sink, row_group_size=6)
    return sink.getvalue()


def arrow_bytes(is_file: bool, codec: str | None = None, encode: bool = False) -> bytes:
    sink = io.BytesIO()
    table = pa.Table.from_pylist([{**row, "scene": "heavy"} for row in ROWS])
    table = table.set_column(1, "image", table["image"].dictionary_encode()) if encode else table
    options = pa.ipc.IpcWriteOptions(compression=codec)
    with (pa.ipc.new_file if is_file else pa.ipc.new_stream)(sink, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=6)
    return sink.getvalue()


LINES = "".join(json.dumps(row) + "\n\n" for row in ROWS).encode()
FILES = {
    "a.json": json.dumps(ROWS, indent=2, ensure_ascii=False).encode(),
    "bom.json": b"\xef\xbb\xbf" + json.dumps(ROWS).encode(),
    "lines.json": LINES,
    "a.jsonl": LINES,
    "a.jsonl.gz": gzip.compress(LINES),
    "a.parquet": parquet_bytes(),
    "a.tar": tar_bytes(),
    "a.tar.gz": tar_bytes("w:gz"),
    "a.arrow": arrow_bytes(is_file=False),
    "file.arrow": arrow_bytes(is_file=True, encode=True),
    "a.feather": arrow_bytes(is_file=True, codec="lz4"),
    "packed.ipc": arrow_bytes(is_file=False, codec="zstd", encode=True),
    "no-suffix": arrow_bytes(is_file=False),
    "a.jsonl.bz2": bz2.compress(LINES),
    "a.ndjson.xz": lzma.compress(LINES),
    "A.JSONL.ZST": pa.Codec("zstd").compress(LINES, asbytes=True),
    "a.tar.bz2": tar_bytes("w:bz2"),
    "a.tar.xz": tar_bytes("w:xz"),
    "a.tar.zst": pa.Codec("zstd").compress(tar_bytes(), asbytes=True),
    "object.json": json.dumps({"version": "1", "info": {"n": [1, 2]}, "data": ROWS, "license": "x"}, indent=1).encode(),
    "compact-object.json": json.dumps({"examples of mine": ROWS}).encode(),
    "list.jsonl": json.dumps(ROWS).encode(),  # by their bytes, whatever they are called
    "lines.json.gz": gzip.compress(LINES),
    "packed.jsonl": gzip.compress(LINES),
    "unpacked.jsonl.gz": LINES,
    "joined.jsonl": "\n".join(json.dumps(row, indent=2) for row in ROWS).encode(),
    "joined.json": "".join(json.dumps(row, indent=1) for row in ROWS).encode(),
    "joined.jsonl.gz": gzip.compress("\n".join(json.dumps(row, indent=2) for row in ROWS).encode()),
    "old-mac.jsonl": LINES.replace(b"\n", b"\r"),
    "commas.jsonl": LINES.replace(b"\n\n", b",\n"),
    "a.json.gz": gzip.compress(json.dumps(ROWS, ensure_ascii=False).encode()),
    "list.jsonl.bz2": bz2.compress(json.dumps(ROWS, indent=1).encode()),
    "a.json.xz": lzma.compress(b"\xef\xbb\xbf" + json.dumps(ROWS).encode()),
    "a.json.zst": pa.Codec("zstd").compress(json.dumps(ROWS).encode(), asbytes=True),
}


def slices(path: Path, rows: int = 10, size: int = 1 << 20) -> list[Slice]:
    return plan_file(list_files(CorpusConfig(sources=[Source([str(path)])], slice_rows=rows, slice_bytes=size))[0])


def read(planned: list[Slice]) -> list:
    return [row for unit in reading_units(planned) for _, rows in read_slices(unit) for row in rows]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("rows", "size"), [(1, 1 << 20), (4, 1 << 20), (7, 1 << 20), (1000, 1 << 20), (1000, 700)])
def test_each_row_once_however_the_file_is_cut(name, rows, size, tmp_path):
    (tmp_path / name).write_bytes(FILES[name])
    planned = slices(tmp_path / name, rows, size)
    found = read(planned)
    assert [(row.row, row.id) for row in found] == [(number, row["id"]) for number, row in enumerate(ROWS)]
    assert all(part.rows <= rows for part in planned)
    assert is_complete([part.id for part in planned])
    assert not is_complete([part.id for part in planned[1:]])
    assert len(planned) > 1 or rows == 1000


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_gives_rows_and_rejects_and_no_other_error(name, data, tmp_path):
    content = bytearray(FILES[name])
    if data.draw(st.booleans(), "cut"):
        del content[data.draw(st.integers(1, len(content) - 1)) :]
    for _ in range(data.draw(st.integers(0, 4), "flips")):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / name).write_bytes(content)
    try:
        found = read(slices(tmp_path / name, 5))
    except CorpusError:
        return
    assert [row.row for row in found] == list(range(len(found)))


def test_rows_before_the_break_are_kept_and_the_rest_is_one_reject(tmp_path):
    for name, keep in (("a.json", 0.5), ("a.tar", 0.5), ("a.jsonl.gz", 0.9)):
        (tmp_path / name).write_bytes(FILES[name][: int(len(FILES[name]) * keep)])
        *good, last = read(slices(tmp_path / name))
        assert 0 < len(good) < 23 or name.endswith("gz")
        assert isinstance(last, Reject)
        assert last.reason == (Reason.UNREADABLE_FILE)
        assert name in last.message


def test_a_broken_line_is_its_own_reject(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(LINES.replace(b'{"id": "\\u00e93"', b'{"id": oops', 1) + b"\xff\xfe\n[]\n")
    found = read(slices(tmp_path / "a.jsonl"))
    assert [row.row for row in found if isinstance(row, Reject)] == [3, 23, 24]
    assert found[3].reason == Reason.BROKEN_ROW


def test_a_large_json_list_is_never_in_memory(tmp_path):
    with (tmp_path / "large.json").open("w") as file:
        file.write("[" + ",\n".join(json.dumps({**ROWS[0], "pad": "x" * 5000}) for _ in range(8000)) + "]")
    tracemalloc.start()
    planned = slices(tmp_path / "large.json", 100)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(part.rows for part in planned) == 8000
    assert peak < 25 << 20, "the file has 42 MB"


def test_wrong_paths_are_named(tmp_path):
    with pytest.raises(CorpusError, match=r"source 's': nothing matches .*nowhere"):
        list_files(
            CorpusConfig(sources=[Source([str(tmp_path / "nowhere" / "*.json")])], slice_rows=10, slice_bytes=10)
        )


def test_a_changed_file_gets_new_slices(tmp_path):
    (tmp_path / "a.json").write_bytes(FILES["a.json"])
    before = slices(tmp_path / "a.json")
    (tmp_path / "a.json").write_bytes(FILES["a.json"] + b" ")
    assert before[0].file_key != slices(tmp_path / "a.json")[0].file_key


def test_the_order_of_paths_does_not_matter(tmp_path):
    for name in FILES:
        (tmp_path / name).write_bytes(FILES[name])
    paths = [str(tmp_path / name) for name in FILES]
    assert list_files(CorpusConfig(sources=[Source(paths)], slice_rows=10, slice_bytes=10)) == list_files(
        CorpusConfig(sources=[Source([*paths[::-1], str(tmp_path)])], slice_rows=10, slice_bytes=10)
    )


@pytest.mark.parametrize("name", FILES)
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_slices_that_are_there_stay_and_the_rest_is_cut_around_them(name, data, tmp_path):
    (tmp_path / name).write_bytes(FILES[name])
    edges = sorted(data.draw(st.sets(st.integers(0, len(ROWS)), max_size=6)))
    ranges = [pair for pair in itertools.pairwise(edges) if data.draw(st.booleans())]
    rows, size = data.draw(st.integers(1, 30)), data.draw(st.sampled_from([300, 1 << 20]))
    file = list_files(CorpusConfig(sources=[Source([str(tmp_path / name)])], slice_rows=rows, slice_bytes=size))[0]
    kept = [SliceId(file.key, first, stop, len(ROWS)) for first, stop in ranges]
    planned = plan_file(file, kept)
    assert [part.first_row for part in planned] == [0, *(part.stop_row for part in planned[:-1])]
    assert set(kept) <= {part.id for part in planned}
    assert is_complete([part.id for part in planned])
    assert all(part.rows <= file.slice_rows for part in planned if part.id not in kept)
    todo = [part for part in planned if part.id not in kept]
    rows = [row.row for row in read(todo)]
    assert rows == [row for row in range(len(ROWS)) if not any(first <= row < stop for first, stop in ranges)]
    ids = [part.id for part in planned]
    assert [part.id for part in plan_file(replace(file, slice_rows=7), ids)] == ids


def test_of_slices_that_overlap_the_first_ones_count():
    def named(*ranges):
        return [SliceId("k", first, stop, 20) for first, stop in ranges]

    assert without_overlaps(named((5, 12), (10, 20), (0, 5), (12, 20), (0, 10))) == named((0, 5), (5, 12), (12, 20))
    assert is_complete(named((0, 5), (5, 12), (12, 20)))
    assert without_overlaps(named((0, 10), (5, 20))) == named((0, 10))
    assert not is_complete(named((0, 10)))


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_trouble_of_a_disk_while_a_file_is_planned_is_not_the_files_own(name, tmp_path, monkeypatch):
    """As a reject of the whole file it would stay when the trouble is over."""
    (tmp_path / name).write_bytes(FILES[name])
    file = list_files(CorpusConfig(sources=[Source([str(tmp_path / name)])], slice_rows=5, slice_bytes=1 << 20))[0]

    class Disk(io.BytesIO):
        def read(self, *_):
            raise OSError(errno.EIO, "Input/output error")

        read1 = readinto = read

    with monkeypatch.context() as patch:
        patch.setattr(storage, "open_read", lambda uri: Disk(FILES[name]))
        patch.setattr(storage, "open_random", lambda uri: Disk(FILES[name]))
        with pytest.raises(StorageError, match="Input/output error"):
            plan_file(file)
    assert plan_file(file)[-1].stop_row == len(ROWS)


@pytest.mark.parametrize("said", [{"path": "all/called.so"}, {"size": "7"}, {"comment": "by git archive"}])
@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_what_a_tar_says_of_all_that_follows_is_not_heeded(name, said, tmp_path):
    """A slice is read from the midst of the tar, where nobody has seen it."""
    whole, header = tar_bytes(), tarfile.TarInfo.create_pax_global_header(said)
    for at in (0, 8 * 1024):  # before the first sample, and before the third or so
        data = whole[:at] + header + whole[at:]
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
        planned = slices(tmp_path / name, rows=2)
        assert [row.id for row in read(planned)] == [str(row["id"]) for row in ROWS]
        for slice_ in planned:
            assert len(read([slice_])) == slice_.rows
