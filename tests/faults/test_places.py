"""Outputs in places where none should be, and with names that are patterns."""

import shutil
from pathlib import Path

import pytest
from conftest import GOLDEN, write_config

from scalselect_ray.cli import main
from scalselect_ray.io import storage

MODEL = GOLDEN / "llava" / "model"
RUN = "20200101T000000000Z-00000000"


def test_clean_removes_what_lies_in_the_folder_of_that_name_and_nothing_beside_it(tmp_path, capsys):
    """A run that was never finished, in `sel[1]` and in `sel1`."""
    for name in ("sel[1]", "sel1"):
        storage.write(str(tmp_path / name / "runs" / RUN / "scores" / "000000.parquet"), b"1")
    assert main(["clean", str(tmp_path / "sel[1]"), "--delete"]) == 0
    assert "runs that were never finished" in capsys.readouterr().err
    assert storage.list_tree(str(tmp_path / "sel[1]")) == []
    assert len(storage.list_tree(str(tmp_path / "sel1"))) == 1


@pytest.mark.parametrize("verb", ["run", "plan"])
@pytest.mark.parametrize("output", ["corpus/out", "corpus", ".", "link/out"])
def test_an_output_in_the_corpus_or_around_it_is_refused(verb, output, tmp_path, capsys):
    shutil.copytree(GOLDEN / "llava", tmp_path / "corpus")
    (tmp_path / "link").symlink_to(tmp_path / "corpus")
    sources = [{"name": "a", "paths": [str(tmp_path / "corpus")]}]
    before = sorted(tmp_path.rglob("*"))
    config = write_config(tmp_path, sources, MODEL, output=str(tmp_path / output))
    assert main([verb, str(config)]) == 2
    assert "the next run would read as samples what this one writes" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == sorted([*before, config])


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "CONFIG"],
        ["plan", "CONFIG"],
        ["status", "FILE"],
        ["explain", "FILE", "x"],
        ["report", "FILE"],
        ["export", "FILE", "--to", "llava", "--out", "DIR"],
        ["clean", "FILE"],
        ["clean", "FILE", "--delete"],
    ],
    ids=" ".join,
)
def test_a_file_is_no_output_for_any_verb(arguments, tmp_path: Path, capsys):
    file = tmp_path / "file"
    file.write_text("mine")
    sources = [{"name": "a", "paths": [str(GOLDEN / "llava" / "samples.json")]}]
    config = write_config(tmp_path, sources, MODEL, output=str(file))
    known = {"CONFIG": str(config), "FILE": str(file), "DIR": str(tmp_path / "dir")}
    assert main([known.get(argument, argument) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert "is a file" in said or "is no folder" in said
    assert file.read_text() == "mine"
    assert not (tmp_path / "dir").exists()
