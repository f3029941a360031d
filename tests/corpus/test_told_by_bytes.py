"""What a file is: by its bytes, where its name does not say it or says it wrongly."""

import gzip
import json
from pathlib import Path

import pytest

from scalselect_ray.config import CorpusConfig, SourceConfig
from scalselect_ray.corpus import Broken, Reason, Reject, list_files, plan_file, read_slices, reading_units
from scalselect_ray.corpus.formats import UnreadableFileError, format_of
from scalselect_ray.corpus.formats.strangers import lfs_bytes
from scalselect_ray.io import storage

TURNS = [{"from": "human", "value": "<image> a"}, {"from": "gpt", "value": "b"}]
ROWS = [{"id": str(number), "image": "a.png", "conversations": TURNS} for number in range(5)]


def lines(rows: list) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def read(path: Path) -> list:
    (file,) = list_files(CorpusConfig(sources=[SourceConfig(name="s", paths=[str(path)])], slice_rows=2))
    return [row for unit in reading_units(plan_file(file)) for _, rows in read_slices(unit) for row in rows]


def title(path: Path) -> str:
    return format_of(storage.stat(str(path))).title


JOINED = "JSON objects"
TOLD = {  # name: (content, title, rows)
    "list.json": (json.dumps(ROWS), "JSON list", 5),
    "list.jsonl": (json.dumps(ROWS) + "\n", "JSON list", 5),
    "indented.jsonl": (json.dumps(ROWS, indent=2), "JSON list", 5),
    "row-a-line.ndjson": ("[" + ",\n".join(map(json.dumps, ROWS)) + "]", "JSON list", 5),
    "joined.jsonl": (json.dumps(ROWS) + "\n" + json.dumps(ROWS), "JSON list", 10),
    "lines.json": (lines(ROWS), "JSON lines", 5),
    "turns.jsonl": (lines([TURNS] * 3), "JSON lines", 3),
    "turns.json": (lines([TURNS] * 3), "JSON lines", 3),
    "one.jsonl": (json.dumps(ROWS[0]), "JSON lines", 1),
    "broken-first.jsonl": ("oops\n" + lines(ROWS), "JSON lines", 6),
    "broken-first.json": ('{"id": oops\n' + lines(ROWS), "JSON lines", 6),
    "blank-first.jsonl": ("\n \n" + lines(ROWS), "JSON lines", 5),
    "empty.jsonl": ("", "JSON lines", 0),
    "no-suffix": (lines(ROWS), "JSON lines", 5),
    "data.json": (json.dumps({"data": ROWS}), "JSON object", 5),
    "indented.json": (json.dumps({"data": ROWS}, indent=1), "JSON object", 5),
    "mark.json": ("\ufeff" + json.dumps({"data": ROWS}, ensure_ascii=False), "JSON object", 5),
    "beside.json": (json.dumps({"é": "ü", "n": [1], "o": {"data": [{}]}, "mine": ROWS, "z": []}), "JSON object", 5),
    "lists.json": (json.dumps({"tags": ["x"], "train": ROWS, "more": [1, 2]}), "JSON object", 5),
    "row-with-lists.json": (lines([{"objects": [{"box": [1]}], **row} for row in ROWS]), "JSON lines", 5),
    "long-row.json": (lines([{"objects": [{"box": [1]}] * 500, **row} for row in ROWS]), "JSON lines", 5),
    "indented-rows.jsonl": ("\n".join(json.dumps(row, indent=2) for row in ROWS), JOINED, 5),
    "indented-rows.json": ("".join(json.dumps(row, indent=1) for row in ROWS), JOINED, 5),
    "long-indented-rows.jsonl": ("\n".join(json.dumps({"x": "y" * 5000, **row}, indent=1) for row in ROWS), JOINED, 5),
    "one-indented-row.json": (json.dumps(ROWS[0], indent=1), JOINED, 1),
    "cr.jsonl": (lines(ROWS).replace("\n", "\r"), JOINED, 5),
    "cr.json": (lines(ROWS).replace("\n", "\r"), JOINED, 5),
    "crlf.jsonl": (lines(ROWS).replace("\n", "\r\n"), "JSON lines", 5),
    "commas.jsonl": (lines(ROWS).replace("\n", ",\n"), "JSON lines", 5),
    "commas.json": (lines(ROWS).replace("\n", ",\n"), "JSON lines", 5),
    "one-row.json": (json.dumps({"id": 1, "data": [{"id": 1}], "conversations": TURNS, "image": "a"}), "JSON lines", 1),
}  # fmt: skip


@pytest.mark.parametrize("name", TOLD)
def test_json_is_told_by_its_bytes(name, tmp_path):
    content, expected, count = TOLD[name]
    (tmp_path / name).write_text(content)
    assert title(tmp_path / name) == expected
    found = read(tmp_path / name)
    assert len(found) == count
    broken = [row for row in found if isinstance(row, Reject) and row.reason == Reason.BROKEN_ROW]
    assert len(broken) == name.startswith("broken")
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress(content.encode()))
    if expected == "JSON object":
        (row,) = read(packed)
        assert "one packed JSON object that holds the rows under a key: unpack it" in row.message
        assert row.lost_bytes == packed.stat().st_size
    else:
        assert title(packed) == expected
        assert len(read(packed)) == count


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"images": [{"id": 1}], "annotations": [{"id": 1}]}, "over several lines"),
        ({"data": ROWS, "test": ROWS}, "other lists of objects as well (test)"),
        ({"a": 1, "b": {"c": ROWS}}, "over several lines"),
    ],
)
def test_an_object_whose_rows_are_not_plain_is_said_so(content, said, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(content, indent=1))
    (row,) = read(tmp_path / "a.json")
    assert row.reason == Reason.UNREADABLE_FILE
    assert said in row.message


def test_an_object_that_breaks_off_keeps_the_rows_before_and_a_broken_row_is_one_reject(tmp_path):
    text = json.dumps({"v": 1, "data": ROWS}, indent=1)
    (tmp_path / "a.json").write_text(text[: text.index('"4"')])
    *rows, last = read(tmp_path / "a.json")
    assert [row.id for row in rows] == ["0", "1", "2", "3"]
    assert "breaks off after row 3" in last.message
    (tmp_path / "b.json").write_text(text.replace('"id": "2"', '"id": oops'))
    found = read(tmp_path / "b.json")
    assert [isinstance(row, Reject) for row in found] == [False, False, True, False, False]
    (tmp_path / "c.json").write_text(text + text)
    assert "goes on after its list of rows" in read(tmp_path / "c.json")[0].message


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 146946961\n"
STRANGERS = {
    POINTER: "a Git LFS pointer to 146,946,961 bytes, and not the file itself: fetch it with 'git lfs pull'",
    "<!DOCTYPE html>\n<html><body>404</body></html>": "an HTML page",
    "\n<HTML>\n": "an HTML page",
    '<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>': "the answer of a store, AccessDenied,",
    "\0" * 70000: "nothing but zeros",
    "/annex/objects/SHA256E-s123--abc.tar\n": "a pointer of git-annex",
}


@pytest.mark.parametrize(
    "suffix", ["json", "jsonl", "jsonl.gz", "json.zst", "parquet", "tar", "tar.gz", "tgz", "tar.xz"]
)
@pytest.mark.parametrize("content", STRANGERS, ids=lambda content: content[:12].strip())
def test_what_stands_where_a_corpus_file_should_is_named(content, suffix, tmp_path):
    (tmp_path / f"a.{suffix}").write_text(content)
    (row,) = read(tmp_path / f"a.{suffix}")
    assert row.reason == Reason.UNREADABLE_FILE
    assert STRANGERS[content] in row.message
    assert row.lost_bytes == (146946961 if content == POINTER else len(content))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_text_of_utf_16_is_named(name, encoding, tmp_path):
    (tmp_path / name).write_bytes((lines(ROWS) if name == "a.jsonl" else json.dumps(ROWS)).encode(encoding))
    (row,) = read(tmp_path / name)
    assert "UTF-16" in row.message


@pytest.mark.parametrize("name", ["a.tar", "a.parquet"])
def test_a_packed_file_that_is_not_called_so_is_named(name, tmp_path):
    (tmp_path / name).write_bytes(gzip.compress(bytes(range(256)) * 8))
    (row,) = read(tmp_path / name)
    assert "it is packed" in row.message


def test_an_empty_tar_is_none(tmp_path):
    (tmp_path / "a.tar").write_bytes(bytes(10240))
    assert read(tmp_path / "a.tar") == []


def test_a_pointer_is_none_where_it_stands_in_a_row():
    assert lfs_bytes(json.dumps({"id": POINTER}).encode()) is None
    assert lfs_bytes(b"") is None


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b\x08\x00"])
def test_an_empty_or_cut_file_is_said(content, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UnreadableFileError, match=r"the file is empty|broken gzip"):
        format_of(storage.stat(str(tmp_path / "a.json")))
    assert not isinstance(read(tmp_path / "a.json")[0], Broken)
