"""Names of corpus files that are no UTF-8, as a disk may have them: the file is read like any other, and its name is
written with escapes."""

import json
import os
import shutil

import pyarrow.parquet as pq
import pytest
from conftest import GOLDEN, write_config

from scalselect_ray.cli import main

CORPUS, MODEL = GOLDEN / "llava", GOLDEN / "llava" / "model"
ROWS = json.loads((CORPUS / "samples.json").read_text())


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("named", ["folder", "file"])
def test_a_file_whose_name_is_no_utf8_is_read_and_its_name_is_escaped(named, tmp_path, capsys):
    folder = os.fsencode(tmp_path / "corpus")
    os.mkdir(folder)
    odd = os.path.join(folder, b"n\xe9e\xff" if named == "folder" else b"n\xe9e\xff.json")
    paths = [str(tmp_path / "corpus")]
    shutil.copy(CORPUS / "samples.json", tmp_path / "corpus" / "a.json")
    (tmp_path / "corpus" / "a.json").write_text(json.dumps(ROWS[:12]))
    if named == "folder":
        os.mkdir(odd)
        odd = os.path.join(odd, b"b.json")
    with open(odd, "wb") as file:
        file.write(json.dumps([*ROWS[12:], {"oops": 1}]).encode())
    sources = [{"name": "s", "paths": paths, "image_root": str(CORPUS)}]
    config = write_config(tmp_path, sources, MODEL)
    (tmp_path / "corpus" / "notes.csv").touch()
    assert main(["run", str(config), "rejects.max_fraction=0.9", "selection.budget=24"]) == 0
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "s: passed over: 1 .csv" in said
    run = next((tmp_path / "output" / "runs").iterdir())
    assert json.loads((run / "run.json").read_text())["passed_over"] == {"s": {".csv": 1}}
    shown = os.fsdecode(odd).encode(errors="backslashreplace").decode()
    assert {row["shard"] for row in pq.read_table(run / "scores").to_pylist()} == {
        str(tmp_path / "corpus" / "a.json"),
        shown,
    }
    assert [row["shard"] for row in pq.read_table(run / "rejects.parquet").to_pylist()] == [shown]
    assert main(["export", str(tmp_path / "output"), "--to", "llava", "--out", str(tmp_path / "export")]) == 0
    exported = json.loads(next((tmp_path / "export").glob("*.json")).read_text())
    assert sorted(row["id"] for row in exported) == sorted(row["id"] for row in ROWS if len(row["images"]) == 1)
