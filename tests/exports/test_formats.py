"""Each export, loaded as its trainer loads it: the chosen samples in rank order, every text and every image byte for
byte."""

import csv
import io
import json
import posixpath
import re
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import webdataset
import yaml
from conftest import GOLDEN, write_config
from mixed_corpus import Selected, Turns

from scalselect_ray.cli import main
from scalselect_ray.exports import FORMATS
from scalselect_ray.exports.base import Format, ImagePaths, PartReport
from scalselect_ray.exports.formats.hf import HuggingFace
from scalselect_ray.exports.formats.webdataset import WebDatasetShards
from scalselect_ray.store.tables import MANIFEST

ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
Sample = tuple[Turns, list[bytes]]
datasets.disable_progress_bars()


@pytest.fixture
def export(mixed: Selected, tmp_path: Path) -> Callable[..., Path]:
    """Exports the mixed corpus by the command line; answers the folder."""

    def to(name: str, *options: str) -> Path:
        target = tmp_path / name
        assert main(["export", str(mixed.output), "--to", name, "--out", str(target), *options]) == 0
        return target

    return to


def said(row: dict[str, Any]) -> Turns:
    if "messages" in row:
        return [(turn["role"], turn["content"]) for turn in row["messages"]]
    return [(ROLES[turn["from"]], turn["value"]) for turn in row["conversations"]]


def seen(row: dict[str, Any], folder: str) -> list[bytes]:
    """The images of a row, found as trainers find them: joined to the folder that the usage names."""
    named = row.get("image", row.get("images", []))
    return [Path(posixpath.join(folder, path)).read_bytes() for path in ([named] if isinstance(named, str) else named)]


def without_system(samples: list[Sample]) -> list[Sample]:
    return [([turn for turn in turns if turn[0] != "system"], images) for turns, images in samples]


def llava(target: Path) -> Iterator[tuple[dict[str, Any], str]]:
    folder = json.loads((target / "export.json").read_text())["image_folder"]
    for row in json.loads((target / "data.json").read_text()):
        assert "image" not in row or isinstance(row["image"], str)
        yield row, folder


def llava_next(target: Path) -> Iterator[tuple[dict[str, Any], str]]:
    (listed,) = yaml.safe_load((target / "datasets.yaml").read_text())["datasets"]
    assert listed["sampling_strategy"] == "all"
    folder = json.loads((target / "export.json").read_text())["image_folder"]
    for line in Path(listed["json_path"]).read_text(encoding="ascii").splitlines():
        yield json.loads(line), folder


def qwen_vl(target: Path) -> Iterator[tuple[dict[str, Any], str]]:
    data_dict: dict[str, dict[str, str]] = {}
    exec((target / "data_dict.txt").read_text(), {"data_dict": data_dict})
    entry = data_dict["scalselect"]
    for line in Path(entry["annotation_path"]).read_text().splitlines():
        yield json.loads(line), entry["data_path"]


def internvl(target: Path) -> Iterator[tuple[dict[str, Any], str]]:
    meta = json.loads((target / "meta.json").read_text())["scalselect"]
    lines = Path(meta["annotation"]).read_text().splitlines()
    assert meta["length"] == len(lines)
    for line in lines:
        row = json.loads(line)
        assert isinstance(row.get("image", []), list) or "<image>" in row["conversations"][0]["value"]
        yield row, meta["root"]


def llama_factory(target: Path) -> Iterator[tuple[dict[str, Any], str]]:
    entry = json.loads((target / "dataset_info.json").read_text())["scalselect"]
    assert entry["columns"] == {"messages": "messages", "images": "images"}
    folder = json.loads((target / "export.json").read_text())["image_folder"]
    for row in datasets.load_dataset(
        "json", data_files=str(target / entry["file_name"]), split="train", cache_dir=str(target / "cache")
    ):
        assert sum(turn["content"].count("<image>") for turn in row["messages"]) == len(row["images"])
        yield row, folder


def ms_swift(target: Path) -> Iterator[tuple[dict[str, Any], str]]:
    folder = json.loads((target / "export.json").read_text())["image_folder"]
    for row in datasets.load_dataset(
        "json", data_files=str(target / "data.jsonl"), split="train", cache_dir=str(target / "cache")
    ):
        yield row, folder


LOADERS = {
    "llava": llava,
    "llava-next": llava_next,
    "qwen-vl": qwen_vl,
    "internvl": internvl,
    "llama-factory": llama_factory,
    "ms-swift": ms_swift,
}


@pytest.mark.parametrize("images", ["reference", "copy"])
@pytest.mark.parametrize("name", LOADERS)
def test_trainers_of_json_files(name, images, mixed, export):
    target = export(name, "--images", images)
    loaded = [(said(row), seen(row, folder)) for row, folder in LOADERS[name](target)]
    expected = mixed.expected if name in ("internvl", "llama-factory", "ms-swift") else without_system(mixed.expected)
    if name == "llava":
        left_out = [json.loads(line) for line in (target / "left-out.jsonl").read_text().splitlines()]
        several = [row["rank"] for row, (_, shown) in zip(mixed.manifest, expected, strict=True) if len(shown) > 1]
        assert [row["rank"] for row in left_out] == several
        expected = [sample for sample in expected if len(sample[1]) < 2]
    assert loaded == expected
    assert not any(shown for _, shown in loaded[-4:]), "the text-only samples stand last"
    files = {path for path in (target / "images").rglob("*") if path.is_file()}
    assert all(
        re.fullmatch(r"[0-9a-f]{16}/\d{6}/\d{9}-\d\.(png|jpg)", str(path.relative_to(target / "images")))
        for path in files
    )
    assert sum(len(shown) for _, shown in loaded) == len(files) or images == "reference"


def features_of(output: Path, source: str) -> dict[tuple[str, int], list[float]]:
    """By the name of the file and the row."""
    found = {}
    for path in output.glob("features/*/*.parquet"):
        for row in pq.read_table(path, columns=["source", "shard", "row", "feature"]).to_pylist():
            if row["source"] == source and row["feature"] is not None:
                found[posixpath.basename(row["shard"]), row["row"]] = row["feature"]
    return found


def test_what_is_selected_from_an_export_has_the_same_features(mixed, export, tmp_path):
    """Every export that a run can read, read by a run: row n of one in rank order is the sample of rank n + 1."""
    ranked = {"ms-swift": "data.jsonl", "llama-factory": "data.jsonl", "hf": "data", "webdataset": "00000.tar"}
    sources: list[dict[str, Any]] = []
    for name, file in ranked.items():
        target = export(name, *(["--images", "copy"] if name == "hf" else []))
        folder = json.loads((target / "export.json").read_text())["image_folder"]
        sources.append({"name": name, "paths": [str(target / file)], "image_root": folder or str(target)})
    own = yaml.safe_load((export("source") / "sources.yaml").read_text())["corpus"]["sources"]
    assert [source["name"] for source in own] == ["list", "parquet", "tar"]
    config = write_config(tmp_path, sources + own, GOLDEN / "llava" / "model", selection={"budget": 1.0})
    assert main(["run", str(config), "rejects.max_fraction=0"]) == 0

    sent = {name: features_of(mixed.output, name) for name in ("list", "parquet", "tar")}
    by_rank = [sent[row["source"]].get((posixpath.basename(row["shard"]), row["row"])) for row in mixed.manifest]
    assert sum(feature is not None for feature in by_rank) == len(by_rank) - 4, "four are text-only"
    for name in ranked:
        found = features_of(tmp_path / "output", name)
        read = [next((found[key] for key in found if key[1] == row), None) for row in range(len(by_rank))]
        assert [feature is None for feature in read] == [feature is None for feature in by_rank]
        np.testing.assert_allclose(
            [feature for feature in read if feature], [feature for feature in by_rank if feature], atol=1e-6
        )
    for name, features in sent.items():
        rows = sorted(row["row"] for row in mixed.manifest if row["source"] == name and row["score"] is not None)
        wanted = [
            feature for row, feature in sorted((key[1], feature) for key, feature in features.items()) if row in rows
        ]
        found = features_of(tmp_path / "output", name)
        np.testing.assert_allclose([found[key] for key in sorted(found)], wanted, atol=1e-6)


@pytest.mark.parametrize("images", ["reference", "copy"])
def test_hugging_face_datasets(images, mixed, export, monkeypatch):
    monkeypatch.setattr(HuggingFace, "part_rows", 20)
    target = export("hf", "--images", images)
    assert len(list((target / "data").iterdir())) == 3
    loaded = datasets.load_dataset(str(target), split="train", cache_dir=str(target / "cache"))
    assert loaded.features["images"] == datasets.List(datasets.Image())
    for row, manifest, (turns, _) in zip(loaded, mixed.manifest, mixed.expected, strict=True):
        assert all(picture.load() for picture in row["images"])
        assert (row["rank"], row["source"], row["score"], row["id"]) == tuple(
            manifest[key] for key in ("rank", "source", "score", "id")
        )
        assert [turn["role"] for turn in row["messages"]] == [role for role, _ in turns]
        for turn, (_, text) in zip(row["messages"], turns, strict=True):
            assert "".join("<image>" if part["type"] == "image" else part["text"] for part in turn["content"]) == text
            assert all((part["text"] is None) == (part["type"] == "image") for part in turn["content"])
    stored = loaded.cast_column("images", datasets.List(datasets.Image(decode=False)))
    for row, (_, shown) in zip(stored, mixed.expected, strict=True):
        assert [item["bytes"] or Path(item["path"]).read_bytes() for item in row["images"]] == shown
        assert images == "reference" or all(item["bytes"] for item in row["images"])


def test_webdataset(mixed, export, monkeypatch):
    monkeypatch.setattr(WebDatasetShards, "part_rows", 20)
    target = export("webdataset")
    assert sorted(path.name for path in target.glob("*.tar")) == ["00000.tar", "00001.tar", "00002.tar"]
    samples = list(webdataset.WebDataset(str(target / "{00000..00002}.tar"), shardshuffle=False, empty_check=False))
    assert [int(sample["__key__"]) for sample in samples] == [row["rank"] for row in mixed.manifest]
    with tarfile.open(mixed.folder / "shard.tar") as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
    for sample, manifest, (turns, shown) in zip(samples, mixed.manifest, mixed.expected, strict=True):
        found = {name: data for name, data in sample.items() if not name.startswith("__")}
        if manifest["source"] == "tar":
            original = {
                name.partition(".")[2]: data for name, data in members.items() if name.startswith(f"{manifest['id']}.")
            }
            assert found == original
        else:
            record = json.loads(found.pop("json"))
            assert said(record) == turns
            assert list(found.values()) == shown
            named = record.get("images", record.get("image", []))
            assert [f"{sample['__key__']}.{name}" for name in found] == ([named] if isinstance(named, str) else named)
            assert manifest["source"] != "list" or not shown or record["stray"] == [1]


def test_energon_excludes_what_is_not_chosen_and_nothing_else(mixed, export):
    split = yaml.safe_load((export("energon") / "split.yaml").read_text())
    chosen = {row["row"] for row in mixed.manifest if row["source"] == "tar"}
    assert split["split_parts"] == {"train": ["shard.tar"]}
    assert split["exclude"] == [f"shard.tar/sample{row:04d}" for row in range(24) if row not in chosen]
    assert 0 < len(chosen) < 24


def test_energon_keeps_what_the_dataset_says_of_its_splits(mixed, export, capsys):
    own = mixed.folder / ".nv-meta" / "split.yaml"
    own.parent.mkdir()
    try:
        own.write_text("split_parts: {train: ['shard{,}.tar'], val: [other.tar]}\nexclude: [other.tar/bad]\n")
        split = yaml.safe_load((export("energon") / "split.yaml").read_text())
        own.write_text("nothing")
        assert main(["export", str(mixed.output), "--to", "energon", "--out", str(mixed.folder / "no")]) == 2
        assert "is no split file" in capsys.readouterr().err
    finally:
        shutil.rmtree(own.parent)
        shutil.rmtree(mixed.folder / "no", ignore_errors=True)
    assert split["split_parts"] == {"train": ["shard{,}.tar"], "val": ["other.tar"]}
    assert split["exclude"][0] == "other.tar/bad"
    assert len(split["exclude"]) > 1


def test_datacomp(mixed, export):
    subset = np.load(export("datacomp") / "subset.npy", mmap_mode="r")
    assert subset.dtype == np.dtype("u8,u8")
    assert subset.shape == (len(mixed.manifest),)
    pairs = [tuple(pair) for pair in subset.tolist()]
    assert pairs == sorted(set(pairs))


def test_csv(mixed, export):
    table = pyarrow.csv.read_csv(
        export("csv") / "chosen.csv", convert_options=pyarrow.csv.ConvertOptions(column_types={"id": "string"})
    )
    assert table.select(list(mixed.manifest[0])).to_pylist() == mixed.manifest


STARTS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"]
HARMLESS = ["1", "a=1", " =1", "'=1", "", '"=1"', "é", "\n=1", "x\n=1", "a\r=1"]


def written_csv(form: Format, ids: list[str | None]) -> tuple[list[list[str]], Counter[str]]:
    """(cells by row, notes) of a manifest with these ids; shards and sources are harmless."""
    count = len(ids)
    columns = {
        "rank": range(1, count + 1), "source": ["s"] * count, "shard": ["/c"] * count, "row": range(count), "id": ids,
        "score": [0.5] * count,
    }  # fmt: skip
    table = pa.table(columns, pa.schema([(name, MANIFEST.field(name).type) for name in columns]))
    report, sink = PartReport(ImagePaths("/x", "/x", False)), io.BytesIO()
    assert form.write(iter([table.slice(0, 3), table.slice(3)]), report, sink) == count
    return list(csv.reader(io.StringIO(sink.getvalue().decode(), newline=""))), report.notes


def test_a_cell_is_no_formula_to_a_spreadsheet_unless_it_is_wanted_raw():
    rows, notes = written_csv(FORMATS["csv"], [*STARTS, *HARMLESS, None])
    assert [row[4] for row in rows] == [*(f"'{start}" for start in STARTS), *HARMLESS, ""]
    assert list(notes.values()) == [len(STARTS)]
    assert "apostrophe" in next(iter(notes))
    raw, notes = written_csv(FORMATS["csv"].raw, [*STARTS, *HARMLESS, None])
    assert [row[4] for row in raw] == [*STARTS, *HARMLESS, ""]
    assert not notes


def test_the_member_order_of_a_tar_follows_what_its_record_says(tmp_path):
    """Renamed members lose the names by which the record gave their order."""
    from scalselect_ray.corpus.formats import RowRange
    from scalselect_ray.corpus.formats.webdataset import WebDataset
    from scalselect_ray.io import storage

    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in (
            ("k.b.jpg", b"b"),
            ("k.json", b'{"images": ["k.a.jpg", "k.b.jpg"], "conversations": []}'),
            ("k.a.jpg", b"a"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    file = storage.stat(str(tmp_path / "a.tar"))
    ((_, (members,)),) = WebDataset().members(file, [RowRange(0, 1, 0, file.size)])
    assert [name for name, _ in members] == ["k.json", "k.a.jpg", "k.b.jpg"]
