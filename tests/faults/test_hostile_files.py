"""Broken and malicious files: what can be read is scored, the rest is one reject that names the file, and little is
spent on it."""

import gzip
import io
import json
import os
import random
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import GOLDEN, write_config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scalselect_ray.cli import main
from scalselect_ray.config import CorpusConfig, SourceConfig
from scalselect_ray.corpus import ImageRef, Reason, Reject, Sample, list_files, plan_file, read_slices, reading_units
from scalselect_ray.corpus.images import resolver
from scalselect_ray.corpus.reading import normalise
from scalselect_ray.corpus.sample import SampleRejectedError
from scalselect_ray.testing import damage

CORPUS, MODEL = GOLDEN / "llava", GOLDEN / "llava" / "model"
ROWS = json.loads((CORPUS / "samples.json").read_text())
ROW = {"image": "a.png", "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "x"}]}
FUZZED = {**damage.corpora(), **damage.pictures()}


def read(path: Path) -> list[Sample | Reject]:
    planned = plan_file(
        list_files(
            CorpusConfig(sources=[SourceConfig(name="s", paths=[str(path)])], slice_rows=5, slice_bytes=1 << 20)
        )[0]
    )
    return [row for unit in reading_units(planned) for _, rows in read_slices(unit) for row in rows]


def tar_of(members: dict[str, bytes], **fields: object) -> bytes:
    """A tar; `fields` are set on every header."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in fields.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def members_of(rows: list[dict], prefix: str = "") -> dict[str, bytes]:
    """The tar members of golden rows."""
    members = {}
    for row in rows:
        members[f"{prefix}{row['id']}.json"] = json.dumps({**row, "images": None}).encode()
        for number, name in enumerate(row["images"]):
            members[f"{prefix}{row['id']}.{number}.{name.rpartition('.')[2]}"] = (CORPUS / name).read_bytes()
    return members


def with_size(tar: bytes, member: int, size: int, kind: bytes | None = None) -> bytes:
    """`tar` with another size (and type) in the header of one member; the checksum is right."""
    data = bytearray(tar)
    at = [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"][member]
    data[at + 124 : at + 136] = b"\x80" + size.to_bytes(11, "big") if size >= 1 << 33 else b"%011o\0" % size
    if kind:
        data[at + 156 : at + 157] = kind
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    return bytes(data)


def gzip_bomb(head: bytes, block: bytes, blocks: int) -> bytes:
    """Gigabytes in few bytes: gzip members one behind the other are one stream."""
    return gzip.compress(head) + gzip.compress(block) * blocks


def broken_group(rows: list[dict]) -> bytes:
    """A Parquet file whose second row group is overwritten."""
    structs = [
        {**row, "images": [{"bytes": (CORPUS / n).read_bytes(), "path": n} for n in row["images"]]} for row in rows
    ]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(structs), sink, row_group_size=len(rows) // 2, compression="zstd")
    data = bytearray(sink.getvalue())
    group = pq.ParquetFile(pa.BufferReader(bytes(data))).metadata.row_group(1)
    start = min(
        group.column(n).dictionary_page_offset or group.column(n).data_page_offset for n in range(group.num_columns)
    )
    data[start : start + 400] = b"\xff" * 400
    return bytes(data)


@pytest.mark.usefixtures("cluster")
def test_a_broken_file_is_one_reject_and_what_lies_before_the_break_is_scored(tmp_path, capsys):
    """All golden rows are there once, in files that are fine, escape, break off or lie; their scores are those of the
    golden corpus."""
    first, second, third, fourth = ROWS[:6], ROWS[6:12], ROWS[12:18], ROWS[18:]
    whole = tar_of(members_of(second)).rstrip(b"\0")  # without its end mark
    whole += bytes(-len(whole) % 512)
    files = {
        "a.json": json.dumps(first).encode(),
        "b-cut.tar": whole + tar_of(members_of(ROWS[:1]))[:900],
        "c-group.parquet": broken_group(third + ROWS[:6]),
        "d-escape.tar": tar_of(members_of(fourth, "../../../")),
        "e-noise.parquet": random.Random(0).randbytes(5000),
        "f-page.json": b"<html>404</html>",
        "g-empty.tar.gz": b"",
        "h-bomb.jsonl.gz": gzip_bomb(b"", bytes(1 << 24), 8),
        "i-claim.tar": with_size(tar_of(members_of(ROWS[:1])), 0, 10 << 30),
        "j-device.tar": tar_of({"0.json": b"", "0.png": b""}, type=tarfile.CHRTYPE),
    }  # fmt: skip
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    sources = [{"name": "files", "paths": [str(tmp_path / name) for name in files], "image_root": str(CORPUS)}]

    assert main(["run", str(write_config(tmp_path, sources, MODEL)), "rejects.max_fraction=0.9"]) == 0

    assert "Traceback" not in capsys.readouterr().err
    run = next((tmp_path / "output" / "runs").iterdir())
    rejects = pq.read_table(run / "rejects.parquet").to_pylist()
    assert {row["reason"] for row in rejects} == {"unreadable_file"}
    by_file = {name: [row["message"] for row in rejects if row["shard"] == str(tmp_path / name)] for name in files}
    counts = dict.fromkeys(files, 1) | {"a.json": 0, "c-group.parquet": 6, "d-escape.tar": 0, "j-device.tar": 0}
    assert {name: len(messages) for name, messages in by_file.items()} == counts
    lost = json.loads((run / "run.json").read_text())["lost"]
    unread = [name for name, messages in by_file.items() if len(messages) == 1 and files[name]]
    assert {item["shard"]: item["rows"] >= 1 for item in lost} == {str(tmp_path / name): True for name in unread}
    assert all(name in message for name, messages in by_file.items() if counts[name] == 1 for message in messages)
    words = {"b-cut.tar": "cut", "e-noise.parquet": "broken Parquet", "f-page.json": "HTML",
             "g-empty.tar.gz": "begins b''", "h-bomb.jsonl.gz": "a bomb", "i-claim.tar": "cut"}  # fmt: skip
    assert {name for name, word in words.items() if word not in by_file[name][0]} == set()
    scores = {row["id"]: row["score"] for row in pq.read_table(run / "scores").to_pylist()}
    assert set(scores) == {row["id"] for row in ROWS}
    np.testing.assert_allclose(
        [scores[row["id"]] for row in ROWS], np.load(CORPUS / "expected.npz")["scores"], atol=1e-6
    )


LINE = json.dumps(ROW).encode() + b"\n"
MEMBERS = {"0.png": b"x" * 600, "0.json": json.dumps(ROW).encode()}
BOMBS = {
    "lines.jsonl.gz": (gzip_bomb(LINE, bytes(1 << 24), 8), "a bomb"),
    "blank.jsonl.gz": (gzip_bomb(LINE, b"\n" * (1 << 24), 8), "a bomb"),
    "member.tar.gz": (gzip_bomb(with_size(tar_of(MEMBERS), 0, 1 << 31)[:512], bytes(1 << 24), 8), "0.png claims"),
    "members.tar.gz": (
        gzip_bomb(b"", with_size(tar_of({"0.png": b""}), 0, 1 << 24)[:512] + bytes(1 << 24), 8),
        "0.png claims",
    ),
    "name.tar.gz": (
        gzip_bomb(with_size(tar_of(MEMBERS), 0, 1 << 31, b"L")[:512], b"x" * (1 << 24), 8),
        "a header claims 2,147,483,648",
    ),
    "tail.tar.gz": (gzip_bomb(tar_of(MEMBERS), bytes(1 << 24), 8), "a bomb"),
    "claim.tar": (with_size(tar_of(MEMBERS), 1, 10 << 30), "cut"),
    "pax.tar": (with_size(tar_of(MEMBERS), 0, 10 << 30, b"x"), "a header claims 10,737,418,240"),
    "sparse.tar": (with_size(tar_of(MEMBERS), 1, 10 << 30, b"S"), "cut"),
    "negative.tar": (tar_of(MEMBERS).replace(b"00000001130\0", b"\xff" * 11 + b"\x00", 1), "broken"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_costs_little_memory_and_is_one_reject(name, tmp_path):
    data, words = BOMBS[name]
    (tmp_path / name).write_bytes(data)
    tracemalloc.start()
    *_, last = read(tmp_path / name)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200 << 20, f"{peak:,} bytes for a file of {len(data):,}"
    assert isinstance(last, Reject)
    assert last.reason == Reason.UNREADABLE_FILE
    assert name in last.message
    assert words in last.message


def test_a_huge_member_that_is_really_there_is_a_reject_of_its_own(tmp_path):
    """A hole on disk makes the file: 10 GB that nobody reads."""
    tar = tar_of({"0.json": b"{}", **{f"1{name[1:]}": data for name, data in MEMBERS.items()}})
    size = 10 << 30
    with (tmp_path / "huge.tar").open("wb") as file:
        file.write(with_size(tar, 0, size)[:512])
        file.seek(512 + size)
        file.write(tar[1024:])
    assert os.stat(tmp_path / "huge.tar").st_blocks * 512 < 1 << 20
    tracemalloc.start()
    huge, good = read(tmp_path / "huge.tar")
    assert tracemalloc.get_traced_memory()[1] < 50 << 20
    tracemalloc.stop()
    assert isinstance(huge, Reject)
    assert "10,737,418,240 bytes" in huge.message or "10,737,418,752 bytes" in huge.message
    assert isinstance(good, Sample)


def test_tars_joined_by_cat_are_not_silently_cut(tmp_path):
    for name, data in (("a.tar", tar_of(MEMBERS) * 2), ("a.tar.gz", gzip.compress(tar_of(MEMBERS) * 2))):
        (tmp_path / name).write_bytes(data)
        good, reject = read(tmp_path / name)
        assert isinstance(good, Sample)
        assert "several tars joined" in reject.message


def test_a_footer_that_claims_billions_of_rows_is_no_file(tmp_path):
    """Equal rows take no space in Parquet: a few kilobytes could plan slices without end."""
    table = pa.table({"id": pa.DictionaryArray.from_arrays(pa.array(np.zeros(3_000_000, np.int8)), ["x"])})
    pq.write_table(table, tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 100_000
    (reject,) = read(tmp_path / "a.parquet")
    assert "claims 3,000,000 rows" in reject.message


def test_a_parquet_file_of_something_else_says_which_columns_it_has(tmp_path):
    pq.write_table(pa.table({"price": [1, 2, 3], "title": ["a", "b", "c"]}), tmp_path / "a.parquet")
    found = read(tmp_path / "a.parquet")
    assert [row.row for row in found] == [0, 1, 2]
    assert all("not read: price, title" in row.message for row in found)


def test_one_bad_value_of_a_row_group_is_one_reject(tmp_path):
    texts = pa.array([json.dumps(n).encode() for n in range(10)]).cast(pa.binary())
    bad = pa.array([b"\xff\xfe" if n == 4 else value.as_py() for n, value in enumerate(texts)], pa.binary())
    turns = pa.array([ROW["conversations"]] * 10)
    table = pa.table(
        {"id": pa.Array.from_buffers(pa.string(), 10, bad.buffers()), "image": ["a.png"] * 10, "conversations": turns}
    )
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False)
    found = read(tmp_path / "a.parquet")
    assert [type(row) for row in found] == [Sample] * 4 + [Reject] + [Sample] * 5
    assert found[4].reason == Reason.BROKEN_ROW


def test_one_row_of_a_json_list_in_another_encoding_is_one_reject(tmp_path):
    rows = [
        json.dumps({**ROW, "id": f"é{n}"}, ensure_ascii=False).encode("latin-1" if n == 2 else "utf-8")
        for n in range(4)
    ]
    (tmp_path / "a.json").write_bytes(b"[" + b",\n".join([*rows, b"[" * 900 + b"]" * 900]) + b"]")
    found = read(tmp_path / "a.json")
    assert [row.id for row in found] == ["é0", "é1", None, "é3", None]
    assert [isinstance(row, Reject) for row in found] == [False, False, True, False, True]


@pytest.mark.parametrize("name", FUZZED)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(dice=st.randoms(use_true_random=False))
def test_a_mutated_file_gives_rows_and_rejects_and_no_other_error(name, dice, tmp_path):
    content = damage.mutated(name, FUZZED[name], dice)
    if name in damage.pictures():
        assert damage.picture_outcome(content)
    else:
        assert damage.file_outcome(tmp_path, name, content)


FIELDS = st.sampled_from(
    ["messages", "conversations", "texts", "role", "content", "from", "value", "image", "images", "id"]
)
LEAVES = (
    st.none()
    | st.integers()
    | st.floats()
    | st.sampled_from(["human", "gpt", "<image>", "text", "../x", "data:x,%", "s3://b/x"])
)
INNER = st.sampled_from(["bytes", "path", "url", "image_url", "type", "text", "user", "assistant", "human"])
JSON = st.recursive(
    LEAVES | st.text(st.characters(), max_size=4) | st.sampled_from(["\ud800", "\0", "x" * 5000]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(FIELDS | INNER, inner, max_size=4),
    max_leaves=25,
)


def outcome_of(record: object) -> Sample | str:
    try:
        return normalise(0, record, resolver("/root/images"))
    except SampleRejectedError as error:
        return error.message


@settings(deadline=None)
@given(JSON)
def test_any_json_is_a_sample_or_a_reject_with_real_paths(record):
    outcome = outcome_of(record)
    if isinstance(outcome, str):
        assert outcome.encode()
        assert len(outcome) <= 1000
        return
    sample = outcome
    assert (sample.id or "").encode() is not None
    assert all(isinstance(image, ImageRef) and (image.data is None) != (image.uri is None) for image in sample.images)
    assert all(image.uri is None or image.uri.startswith("/root/images/") for image in sample.images)
