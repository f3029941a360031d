"""Rows and files that would take gigabytes or hours to read: what they cost is bounded, and grows with their bytes
alone."""

import gzip
import io
import itertools
import json
import sys
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scalselect_ray.config import CorpusConfig, SourceConfig
from scalselect_ray.corpus import CorpusFile, Reason, Reject, Sample, list_files, plan_file, read_slices, reading_units
from scalselect_ray.corpus.formats import base, json_list, jsonl, parquet, webdataset

TURNS = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "x"}]
ROW = {"image": "a.png", "conversations": TURNS}


def listed(path: Path, rows: int) -> CorpusFile:
    source = SourceConfig(name="s", paths=[str(path)])
    return list_files(CorpusConfig(sources=[source], slice_rows=rows, slice_bytes=1 << 28))[0]


def read(path: Path, rows: int = 256) -> list[Sample | Reject]:
    file = listed(path, rows)
    return [row for unit in reading_units(plan_file(file)) for _, some in read_slices(unit) for row in some]


def tar_of(members: list[tuple[str, bytes]], mode: str = "w") -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode=mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def table(rows: list[dict], path: Path, **options) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path, compression="zstd", **options)


# The kinds of files that were quadratic: a long row, a long string, deep brackets, blanks, a line above the limit, many
# members of one key. Each makes a file of about `size` bytes.
LONG = {
    "text.json": lambda size: json.dumps([{**ROW, "pad": "x\\" * size}, ROW]).encode(),
    "list.json": lambda size: json.dumps([{**ROW, "pad": ["y"] * (size // 5)}, ROW]).encode(),
    "deep.json": lambda size: b"[" + b"[" * (size // 2) + b"]" * (size // 2) + b"," + json.dumps(ROW).encode() + b"]",
    "open.json": lambda size: b'[{"a": "' + b"[" * size,
    "rows.json": lambda size: json.dumps([ROW] * (size // 100)).encode(),
    "blank.json": lambda size: b"[" + b" \n" * (size // 2) + json.dumps(ROW).encode() + b"]",
    "line.jsonl": lambda size: json.dumps({**ROW, "pad": "x" * size}).encode() + b"\n" + json.dumps(ROW).encode(),
    "blank.jsonl": lambda size: json.dumps(ROW).encode() + b"\n \r\n" * (size // 4) + json.dumps(ROW).encode(),
    "rows.jsonl": lambda size: (json.dumps(ROW).encode() + b"\n") * (size // 100),
    "line.jsonl.gz": lambda size: gzip.compress(json.dumps({**ROW, "pad": "x" * size}).encode()),
    "blank.jsonl.gz": lambda size: gzip.compress(json.dumps(ROW).encode() + b"\n" * size + json.dumps(ROW).encode()),
    "key.tar": lambda size: tar_of([("a.txt", b"")] * (size // 512)),
    "key.tar.gz": lambda size: tar_of([("a.txt", b"")] * (size // 512), "w:gz"),
    "images.tar.gz": lambda size: tar_of([(f"a.{n}.png", b"x") for n in range(size // 512)], "w:gz"),
}  # fmt: skip


class Work:
    """Counts Python's calls, and the bytes that expressions and the JSON parser go through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done = 0
        for module in (json_list, jsonl):
            for name in ("_BLANKS", "_SCALAR", "_STRING", "_INSIDE", "_WHOLE"):
                if hasattr(module, name):
                    monkeypatch.setattr(module, name, _Counted(getattr(module, name), self))
        monkeypatch.setattr(json, "loads", lambda data, loads=json.loads: self.of(len(data)) or loads(data))

    def of(self, amount: int) -> None:
        self.done += amount

    def __call__(self, action: Callable[[], object]) -> int:
        self.done = 0
        sys.setprofile(lambda *_: self.of(1))
        try:
            action()
        finally:
            sys.setprofile(None)
        return self.done


class _Counted:
    def __init__(self, pattern, work: Work) -> None:
        self._pattern, self._work = pattern, work

    def match(self, data: bytes, at: int):
        found = self._pattern.match(data, at)
        self._work.of((found.end() if found else len(data)) - at)
        return found


@pytest.mark.parametrize("name", LONG)
def test_work_grows_with_the_bytes_of_a_file_alone(name, tmp_path, monkeypatch):
    for module, window in ((json_list, "WINDOW"), (jsonl, "_WINDOW"), (jsonl, "_PACKED_WINDOW")):
        monkeypatch.setattr(module, window, 1 << 8)
    work = Work(monkeypatch)
    done = []
    for doubling in range(4):
        path = tmp_path / f"{doubling}-{name}"
        path.write_bytes(LONG[name](1 << 14 + doubling))
        done.append(work(lambda path=path: read(path)))
    assert done[-1] > done[0], "nothing is counted"
    growth = [after / before for before, after in itertools.pairwise(done)]
    assert max(growth) < 2.3, f"doubling the file makes the work {growth}"


WIDE = b'{"image": "a.png", "pad": [' + b"[]," * (5 << 18) + b"0]}"
BLOW_UPS = {
    "a.jsonl.gz": gzip.compress(json.dumps(ROW).encode() + b"\n" + WIDE + b"\n" + json.dumps(ROW).encode()),
    "a.jsonl": json.dumps(ROW).encode() + b"\n" + WIDE + b"\n" + json.dumps(ROW).encode(),
    "a.json": b"[" + json.dumps(ROW).encode() + b"," + WIDE + b"," + json.dumps(ROW).encode() + b"]",
    "a.tar": tar_of([(f"{n}.json", WIDE if n == 1 else json.dumps(ROW).encode()) for n in range(3)]),
    "a.tar.gz": tar_of([(f"{n}.json", WIDE if n == 1 else json.dumps(ROW).encode()) for n in range(3)], "w:gz"),
}


@pytest.mark.parametrize("name", BLOW_UPS)
def test_a_row_of_millions_of_values_is_refused_before_they_are_made(name, tmp_path):
    (tmp_path / name).write_bytes(BLOW_UPS[name])
    tracemalloc.start()
    found = read(tmp_path / name)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * len(WIDE), f"{peak:,} bytes for a row of {len(WIDE):,}"
    assert [getattr(row, "reason", None) == Reason.TOO_COSTLY for row in found] == [False, True, False]
    assert "2,621,4" in found[1].message
    assert f"{base.MAX_ROW_VALUES:,}" in found[1].message


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json"])
@pytest.mark.parametrize("rows", [1, 2, 100])
def test_a_row_above_the_limit_is_one_reject_and_reading_goes_on_after_it(name, rows, tmp_path, monkeypatch):
    for module in (base, jsonl, json_list):
        monkeypatch.setattr(module, "MAX_ROW_BYTES", 1000)
    lines = [json.dumps({**ROW, "id": n, "pad": "x" * (5000 if n in (2, 3, 6) else 0)}).encode() for n in range(7)]
    data = b"[" + b",".join(lines) + b"]" if name == "a.json" else b"\n".join(lines)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    found = read(tmp_path / name, rows)
    assert [row.row for row in found] == list(range(7))
    assert [row.row for row in found if isinstance(row, Reject)] == [2, 3, 6]
    assert {found[n].reason for n in (2, 3, 6)} == {Reason.TOO_COSTLY}
    assert "5,1" in found[2].message
    assert "1,000" in found[2].message


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_what_follows_a_megabyte_of_blank_lines_is_read(name, tmp_path):
    data = (json.dumps(ROW).encode() + b"\n" + b" \t\r\n\n" * 200_000) * 3
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert [type(row) for row in read(tmp_path / name)] == [Sample] * 3


def test_a_key_of_too_many_members_is_one_reject(tmp_path, monkeypatch):
    monkeypatch.setattr(webdataset, "_MAX_MEMBERS", 10)
    members = [(f"{n}.json", json.dumps({"conversations": TURNS}).encode()) for n in range(3)]
    many = [(f"1.{n}.png", b"x") for n in range(10)]
    for name, mode in (("a.tar", "w"), ("a.tar.gz", "w:gz")):
        (tmp_path / name).write_bytes(tar_of([*members[:2], *many, members[2]], mode))
        found = read(tmp_path / name)
        assert [row.reason for row in found] == ["placeholder_mismatch", "too_costly", "placeholder_mismatch"]
        assert "11 members" in found[1].message


BIG = "x" * (4 << 20)
SHARED = {
    "caption": [{"image": "a.png", "caption": BIG}] * 256,
    "turn": [{"image": "a.png", "conversations": [TURNS[0], {"from": "gpt", "value": BIG}]}] * 256,
    "user": [{"image": "a.png", "conversations": [{"from": "human", "value": f"<image>{BIG}"}, TURNS[1]]}] * 256,
    "image": [{"image": {"bytes": BIG.encode(), "path": "a.png"}, "conversations": TURNS}] * 256,
}


@pytest.mark.heavy
@pytest.mark.parametrize("name", SHARED)
def test_a_value_that_stands_in_many_rows_is_in_memory_once(name, tmp_path):
    table(SHARED[name], tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 10_000
    pool, before = pa.proxy_memory_pool(pa.default_memory_pool()), pa.default_memory_pool()
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        found = read(tmp_path / "a.parquet")
        peak = tracemalloc.get_traced_memory()[1] + pool.max_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)
    assert [type(row) for row in found] == [Sample] * 256
    assert peak < 20 * len(BIG), f"{peak:,} bytes, and {256 * len(BIG):,} with a copy for each row"


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        pytest.param([ROW | {"id": str(n) + BIG} for n in range(64)], {"use_dictionary": False}, "a bomb", id="plain"),
        pytest.param([ROW | {"images": ["x"] * 3_000_000}], {}, "3,000,00", id="list"),
    ],
)
def test_a_row_group_that_would_take_far_more_memory_than_it_has_bytes_is_not_decoded(rows, options, words, tmp_path):
    table(rows, tmp_path / "a.parquet", **options)
    found = read(tmp_path / "a.parquet")
    assert {row.reason for row in found} == {Reason.TOO_COSTLY}
    assert len(found) == len(rows)
    assert words in found[0].message


def test_a_row_that_repeats_a_large_value_is_one_reject(tmp_path):
    turns = [TURNS[0], {"from": "gpt", "value": BIG}]
    table([ROW, ROW | {"conversations": turns * 80}, ROW | {"conversations": turns}], tmp_path / "a.parquet")
    found = read(tmp_path / "a.parquet")
    assert [type(row) for row in found] == [Sample, Reject, Sample]
    assert found[1].reason == Reason.TOO_COSTLY
    assert "336,0" in found[1].message


@pytest.mark.parametrize("shared", [0, 1 << 40])
def test_values_of_a_dictionary_are_those_that_stand_in_the_file(shared, tmp_path, monkeypatch):
    """Read as a dictionary and without it, with nulls, empty lists and other types in between."""
    monkeypatch.setattr(parquet, "_SHARED_BYTES", shared)
    rows = [
        {
            "id": None if n % 5 == 0 else f"id-{n % 3}",
            "uid": n,
            "image": None if n % 4 == 0 else {"bytes": f"b{n % 2}".encode(), "path": None if n % 3 else "p"},
            "images": None if n % 7 == 0 else [None if k == 1 else f"i{k}" for k in range(n % 4)],
            "messages": [{"role": "user", "content": [{"type": "text", "text": f"t{n % 2}"}] * (n % 3)}],
            "audio": {"a": 1.5, "b": [n, None]},
        }
        for n in range(200)
    ]
    table(rows, tmp_path / "a.parquet", row_group_size=70)
    file = listed(tmp_path / "a.parquet", 30)
    form = parquet.Parquet()
    ranges = list(form.scan(file.file, base.Cutting(30, 1 << 28)))
    assert [row for _, records in form.read(file.file, ranges) for row in records] == rows
    assert [row for _, records in form.read(file.file, ranges[2:4]) for row in records] == rows[
        ranges[2].first_row : ranges[3].stop_row
    ]
