"""Exports as a whole: any cut of the work gives the same bytes, what fails leaves nothing half, stores are as good as
disks."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from conftest import GOLDEN
from mixed_corpus import Selected

from scalselect_ray.cli import main
from scalselect_ray.console import Console
from scalselect_ray.errors import OutputError
from scalselect_ray.exports import flow, parts, sorting
from scalselect_ray.exports.formats.webdataset import WebDatasetShards
from scalselect_ray.io import storage
from scalselect_ray.store.layout import Output
from scalselect_ray.testing import object_store

DATA = Path(__file__).parents[1] / "data"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def export(mixed: Selected, name: str, target: Path | str, *options: str) -> int:
    return main(["export", str(mixed.output), "--to", name, "--out", str(target), *options])


@pytest.mark.parametrize("name", ["llava", "webdataset", "datacomp", "csv"])
def test_how_the_work_is_cut_changes_no_byte(name, mixed, tmp_path, monkeypatch):
    monkeypatch.setattr(WebDatasetShards, "part_rows", 20)
    images = ["--images", "copy"] if name == "llava" else []
    assert export(mixed, name, tmp_path / "a" / "x", *images) == 0
    monkeypatch.setattr(sorting, "_TASK_ROWS", 3)
    monkeypatch.setattr(parts, "_PART_ROWS", 7)
    assert export(mixed, name, tmp_path / "b" / "x", *images) == 0
    first, second = files(tmp_path / "a" / "x"), files(tmp_path / "b" / "x")
    first.pop("export.json"), second.pop("export.json")
    assert first == second
    assert len(first) >= 1


def test_a_prefix_is_called_a_smaller_budget_only_where_it_is_one(mixed, tmp_path, capsys):
    assert export(mixed, "csv", tmp_path / "x") == 0
    assert "a smaller budget: the first lines" in capsys.readouterr().err
    quotas = tmp_path / "output"
    shutil.copytree(mixed.output, quotas)
    for path in quotas.glob("runs/*/config.yaml"):
        path.write_text(path.read_text().replace("per_source: {}", "per_source: {list: {floor: 1}}"))
    assert main(["export", str(quotas), "--to", "csv", "--out", str(tmp_path / "y")]) == 0
    assert "a smaller budget" not in capsys.readouterr().err


def test_a_changed_corpus_file_stops_the_export(mixed, tmp_path, capsys):
    path = mixed.folder / "shard.tar"
    data, times = path.read_bytes(), path.stat()
    path.write_bytes(data + bytes(512))
    try:
        assert export(mixed, "llava-next", tmp_path / "x") == 2
        assert f"{path} (source 'tar') has changed since the run" in capsys.readouterr().err
        path.unlink()
        assert export(mixed, "llava-next", tmp_path / "x") == 2
        assert str(path) in capsys.readouterr().err
    finally:
        path.write_bytes(data)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not (tmp_path / "x" / "data.jsonl").exists()
    assert export(mixed, "llava-next", tmp_path / "x") == 0, "the same command goes through once the file is back"


@pytest.mark.parametrize(
    ("name", "written"), [("llava-next", "data.jsonl"), ("hf", "data/train-00000-of-00001.parquet")]
)
def test_an_image_that_is_gone_stops_a_copy_and_leaves_nothing_half(name, written, mixed, tmp_path, capsys):
    chosen = next(
        row for row in mixed.manifest if row["source"] == "list" and row["row"] not in (3,) and row["score"] is not None
    )
    record = json.loads((mixed.folder / "list" / "list.json").read_text())[chosen["row"]]["image"]
    image = mixed.folder / "list" / (record if isinstance(record, str) else record[0])
    image.rename(image.with_suffix(".away"))
    try:
        assert export(mixed, name, tmp_path / "x", "--images", "copy") == 2
        said = capsys.readouterr().err
        assert f"list.json row {chosen['row']}" in said
        assert "Traceback" not in said
        left = files(tmp_path / "x")
        assert written not in left
        assert "export.json" not in left
        assert not [path for path in left if path.endswith(".tmp")]
    finally:
        image.with_suffix(".away").rename(image)
    assert export(mixed, name, tmp_path / "x", "--images", "copy") == 0
    assert {written, "export.json"} <= set(files(tmp_path / "x"))
    assert not (tmp_path / "x" / ".spool").exists()


def test_a_folder_in_use_is_refused(mixed, tmp_path, capsys):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine.txt").write_text("mine")
    assert export(mixed, "csv", tmp_path / "x") == 2
    assert "not empty" in capsys.readouterr().err
    assert export(mixed, "csv", tmp_path / "y") == 0
    before = files(tmp_path / "y")
    assert export(mixed, "datacomp", tmp_path / "y") == 2
    assert "holds another export (csv of run" in capsys.readouterr().err
    assert export(mixed, "csv", tmp_path / "y") == 0
    assert files(tmp_path / "y") == before


@pytest.mark.parametrize("where", ["local", "bucket"])
def test_of_two_different_exports_at_once_one_ends_well(where, mixed, s3, tmp_path):
    """Both may be handed to people as finished otherwise, with files of either."""
    s3.clear()
    folder = str(tmp_path / "x") if where == "local" else f"s3://bucket{tmp_path}/x"
    begun, images = Barrier(2), {"llava": "copy", "csv": None}

    def begin(name: str) -> dict[str, Any] | OutputError:
        begun.wait()
        try:
            return flow.export(Output(str(mixed.output)), "latest", name, folder, images[name], Console())
        except OutputError as error:
            return error

    with ThreadPoolExecutor(2) as threads:
        ended = list(threads.map(begin, images))
    (record,) = (each for each in ended if isinstance(each, dict))
    (error,) = (each for each in ended if isinstance(each, OutputError))
    assert f"holds another export ({record['to']} of run {mixed.run_id})" in str(error)
    kept = json.loads(storage.read_bytes(f"{folder}/export.json"))
    assert kept == record
    options = ["--images", "copy"] if record["images"] else []
    assert export(mixed, record["to"], tmp_path / "alone", *options) == 0
    names = {file.uri.removeprefix(folder) for file in storage.list_tree(folder)}
    assert names == {f"/{name}" for name in files(tmp_path / "alone")}


def test_where_an_export_may_not_lie(mixed, tmp_path, capsys):
    for folder, words in (
        (mixed.output / "chosen", "lies in the output folder"),
        (mixed.folder / "list" / "list.json" / "x", "lies below"),
    ):
        assert export(mixed, "csv", folder) == 2
        assert words in capsys.readouterr().err
        assert not folder.exists()
    (tmp_path / "a file").write_text("mine")
    for folder in (tmp_path / "a file", tmp_path / "a file" / "x"):
        assert export(mixed, "csv", folder) == 2
        assert "is no folder" in capsys.readouterr().err
    assert (tmp_path / "a file").read_text() == "mine"


def test_a_refused_export_leaves_the_folder_to_others(mixed, tmp_path, monkeypatch):
    monkeypatch.setattr(flow, "list_files", lambda corpus: [])
    assert export(mixed, "llava", tmp_path / "x") == 2
    monkeypatch.undo()
    assert export(mixed, "csv", tmp_path / "x") == 0


def test_a_run_of_version_0_1_is_refused_with_what_to_do(tmp_path, capsys):
    shutil.copytree(DATA / "output-0.1", tmp_path / "output")
    assert main(["export", str(tmp_path / "output"), "--to", "csv", "--out", str(tmp_path / "x")]) == 2
    said = capsys.readouterr().err
    assert "is a run of scalselect 0.1" in said
    assert "run again" in said
    assert not (tmp_path / "x").exists()


def test_raw_is_another_export_and_only_for_tables(mixed, tmp_path, capsys):
    assert export(mixed, "llava", tmp_path / "x", "--raw") == 2
    assert "does not support --raw" in capsys.readouterr().err
    assert export(mixed, "csv", tmp_path / "x", "--raw") == 0
    assert json.loads((tmp_path / "x" / "export.json").read_text())["raw"] is True
    assert export(mixed, "csv", tmp_path / "x") == 2
    assert "holds another export" in capsys.readouterr().err


def test_what_cannot_be_is_named(mixed, tmp_path, capsys):
    for arguments, words in (
        ([str(mixed.output), "--to", "nothing"], "llava-next"),
        ([str(mixed.output), "--to", "csv", "--run", "20200101T000000000Z-00000000"], mixed.run_id),
        ([str(mixed.output), "--to", "csv", "--images", "copy"], "it names no images"),
        ([str(mixed.output), "--to", "webdataset", "--images", "reference"], "only copy"),
        ([str(tmp_path / "nowhere"), "--to", "csv"], "no finished run"),
    ):
        assert main(["export", *arguments, "--out", str(tmp_path / "x")]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_the_config_stands_for_its_output(mixed, tmp_path, capsys):
    arguments = ["--to", "csv", "--run", mixed.run_id, "--json"]
    assert main(["export", str(mixed.folder / "config.yaml"), *arguments, "--out", str(tmp_path / "x")]) == 0
    answered = json.loads(capsys.readouterr().out)
    assert answered == json.loads((tmp_path / "x" / "export.json").read_text())
    assert answered["written"] == len(mixed.manifest)


def test_an_export_to_a_bucket(mixed, s3, tmp_path):
    s3.clear()
    for name in ("llava", "webdataset"):
        images = ["--images", "copy"]
        assert export(mixed, name, f"s3://bucket/exports/{name}", *images) == 0
        assert export(mixed, name, tmp_path / name, *images) == 0
        here = files(tmp_path / name)
        here.pop("export.json")
        listed = {
            file.uri.removeprefix(f"s3://bucket/exports/{name}/")
            for file in storage.list_tree(f"s3://bucket/exports/{name}")
        }
        assert listed == {*here, "export.json"}
        assert all(storage.read_bytes(f"s3://bucket/exports/{name}/{path}") == data for path, data in here.items())


def test_the_golden_corpus_on_a_bucket_by_reference(cluster, s3, tmp_path):
    s3.clear()
    object_store.upload(GOLDEN / "qwen3", "s3://bucket/golden")
    config = {
        "corpus": {"sources": [{"name": "golden", "paths": ["s3://bucket/golden/samples.json"]}], "slice_rows": 10},
        "extractor": {"model": str(GOLDEN / "qwen3" / "model"), "dtype": "float32"},
        "selection": {"budget": 1.0},
        "output": "s3://bucket/golden-output",
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    assert main(["run", str(tmp_path / "config.yaml")]) == 0
    target = "s3://bucket/golden-export"
    assert main(["export", str(tmp_path / "config.yaml"), "--to", "qwen-vl", "--out", target]) == 0
    source = json.loads((GOLDEN / "qwen3" / "samples.json").read_text())
    entry = json.loads(storage.read_bytes(f"{target}/export.json"))
    assert entry["image_folder"] == "s3://bucket/golden"
    lines = [json.loads(line) for line in storage.read_bytes(f"{target}/data.jsonl").splitlines()]
    assert sorted(line["id"] for line in lines) == sorted(row["id"] for row in source)
    rows = {row["id"]: row for row in source}
    for line in lines:
        row = rows[line["id"]]
        assert [turn["value"] for turn in line["conversations"]] == [
            turn["content"] for turn in row["messages"] if turn["role"] != "system"
        ]
        assert ([line["image"]] if isinstance(line["image"], str) else line["image"]) == row["images"]
