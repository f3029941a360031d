"""A container format is one file: nothing else has to know it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import scalselect_ray
from scalselect_ray.corpus.formats import FORMATS, UnreadableFileError, format_of, is_corpus_file
from scalselect_ray.io import storage

TOY = '''
"""Rows of JSON with a bar between them."""

import json

from scalselect_ray.corpus.formats.base import Format, cut
from scalselect_ray.io import storage


class Toy(Format):
    title = "toy rows"
    suffixes = (".toy", ".json")

    def begins(self, head):
        return head.startswith(b"TOY|")

    def scan(self, file, cutting):
        at, edges = 4, []
        for row in storage.read_bytes(file.uri)[4:].split(b"|"):
            edges.append((at, at + len(row)))
            at += len(row) + 1
        return cut(iter(edges), cutting)

    def read(self, file, ranges, fields=()):
        for range_ in ranges:
            block = storage.read_bytes(file.uri, range_.start_byte, range_.stop_byte)
            yield range_, [json.loads(row) for row in block.split(b"|")]


FORMATS = (Toy(),)
'''

READ = """
import json, sys
from scalselect_ray.commands.init import init
from scalselect_ray.console import Console
from scalselect_ray.config import CorpusConfig
from scalselect_ray.corpus import list_files, plan_file, read_slices, reading_units
from scalselect_ray.corpus.formats import format_of
from types import SimpleNamespace

folder = sys.argv[1]
source = SimpleNamespace(name="s", paths=[folder], image_root=None, columns={}, limit=None, filter=None)
files = list_files(CorpusConfig(sources=[source], slice_rows=2, slice_bytes=1 << 20))
seen = init([folder], None, folder + "/config.yaml", Console())
print(json.dumps({
    "files": [file.file.uri for file in files],
    "titles": [format_of(file.file).title for file in files],
    "rows": [[row.id for _, rows in read_slices(unit) for row in rows]
             for file in files for unit in reading_units(plan_file(file))],
    "seen": seen["sources"][0]["formats"],
    "name": seen["sources"][0]["name"],
}))
"""


@pytest.mark.heavy
def test_a_format_is_added_by_one_file(tmp_path: Path):
    package = tmp_path / "copy" / "scalselect_ray"
    shutil.copytree(Path(scalselect_ray.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "corpus" / "formats" / "toy.py").write_text(TOY)
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "x"}]
    rows = b"|".join(json.dumps({"id": n, "image": "a.png", "conversations": turns}).encode() for n in range(5))
    corpus = tmp_path / "corpus.toy"
    corpus.mkdir()
    (corpus / "a.toy").write_bytes(b"TOY|" + rows)
    (corpus / "b.json").write_bytes(b"TOY|" + rows)  # a suffix that it shares: told by the first bytes
    (corpus / "c.txt").write_bytes(b"TOY|" + rows)
    done = subprocess.run(
        [sys.executable, "-c", READ, str(corpus)],
        cwd=tmp_path / "copy",
        env={"PYTHONPATH": str(tmp_path / "copy"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        check=True,
        timeout=120,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["files"] == [str(corpus / "a.toy"), str(corpus / "b.json")]
    assert found["titles"] == ["toy rows", "toy rows"]
    assert found["rows"] == [["0", "1"], ["2", "3"], ["4"]] * 2
    assert found["seen"] == ["toy rows"]
    assert found["name"] == "corpus"


@pytest.mark.parametrize("known", FORMATS, ids=lambda known: type(known).__name__)
def test_a_format_says_what_it_is(known):
    assert known.title
    assert all(suffix.startswith(".") and is_corpus_file(f"/folder/a{suffix}") for suffix in known.suffixes)
    assert not known.begins(b"")


@pytest.mark.parametrize("head", [b"", b"<html>", b"\x00" * 600, b"\x1f\x8b\x08broken"])
def test_what_is_of_no_format_names_those_there_are(head, tmp_path):
    (tmp_path / "a.json").write_bytes(head)
    with pytest.raises(
        UnreadableFileError,
        match=r"broken gzip|JSON lines, JSON list, JSON object, JSON objects, Parquet or "
        "WebDataset tar",
    ):
        format_of(storage.stat(str(tmp_path / "a.json")))
