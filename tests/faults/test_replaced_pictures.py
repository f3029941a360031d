"""Pictures that are replaced under their names: the corpus files that name them stay as they are, so a run notices
nothing. `plan --verify` finds them, and an export of pictures stops."""

import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import GOLDEN, write_config
from PIL import Image, ImageOps

from scalselect_ray.cli import main
from scalselect_ray.corpus import images_digest
from scalselect_ray.io import storage
from scalselect_ray.testing import object_store

pytestmark = pytest.mark.usefixtures("cluster")

ROWS = json.loads((GOLDEN / "llava" / "samples.json").read_text())
FIRST = ROWS[0]["images"][0]


def negative(data: bytes) -> bytes:
    sink = io.BytesIO()
    ImageOps.invert(Image.open(io.BytesIO(data)).convert("RGB")).save(sink, "PNG")
    return sink.getvalue()


class Corpus:
    """A run over two JSON files, of which each row has its pictures beside it: of row 4 of the second file none."""

    def __init__(self, folder: Path, uri: str = "") -> None:
        self.folder, self.uri = folder, uri or str(folder)
        (folder / "corpus").mkdir(parents=True)
        shutil.copytree(GOLDEN / "llava" / "images", folder / "corpus" / "images")
        second = [*ROWS[12:16], {**ROWS[16], "images": ["images/nowhere.png"]}, *ROWS[17:]]
        (folder / "corpus" / "a.json").write_text(json.dumps(ROWS[:12]))
        (folder / "corpus" / "b.json").write_text(json.dumps(second))
        self.rows = {("a.json", row): record["images"] for row, record in enumerate(ROWS[:12])}
        self.rows |= {("b.json", row): record["images"] for row, record in enumerate(second)}
        self.upload()
        source: dict[str, Any] = {"name": "s", "paths": [f"{self.uri}/corpus/*.json"]}
        corpus = {"sources": [source], "slice_rows": 5}
        self.config = str(
            write_config(
                folder,
                [],
                GOLDEN / "llava" / "model",
                corpus=corpus,
                output=f"{self.uri}/output",
                selection={"budget": 1.0},
            )
        )
        assert main(["run", self.config]) == 0

    def upload(self) -> None:
        if self.uri.startswith("s3://"):
            object_store.upload(self.folder / "corpus", f"{self.uri}/corpus")

    def samples_of(self, name: str) -> set[str]:
        """The samples that have a picture, as they are shown."""
        return {f"{self.uri}/corpus/{file}:{row}" for (file, row), names in self.rows.items() if name in names}

    @contextmanager
    def replaced(self, *names: str) -> Iterator[None]:
        """Pictures are their negatives for a while, with the same name and time."""
        paths = [self.folder / "corpus" / name for name in names]
        before = [path.read_bytes() for path in paths]
        others = [negative(data) for data in before]
        for contents in (others, before):
            for path, content in zip(paths, contents, strict=True):
                times = path.stat()
                path.write_bytes(content)
                os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            self.upload()
            if contents is others:
                yield

    def verified(self, capsys: pytest.CaptureFixture[str], *share: str) -> tuple[dict[str, Any], str]:
        capsys.readouterr()
        assert main(["plan", self.config, "--json", "--verify", *share]) == 0
        said = capsys.readouterr()
        return json.loads(said.out)["verified"], " ".join(said.err.split())


@pytest.fixture(scope="module")
def corpus(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """For tests that leave it as it was."""
    return Corpus(tmp_path_factory.mktemp("replaced"))


def shown(verified: dict[str, Any]) -> set[str]:
    return {f"{sample['shard']}:{sample['row']}" for sample in verified["first"]}


def scores(output: str) -> list[float]:
    run_id = json.loads(storage.read_bytes(f"{output}/latest.json"))["run_id"]
    return pq.read_table(io.BytesIO(storage.read_bytes(f"{output}/runs/{run_id}/scores/00000.parquet")))[
        "score"
    ].to_pylist()


def test_each_row_has_the_digest_of_its_pictures(corpus):
    found = {}
    for path in (corpus.folder / "output" / "features").glob("*/*.parquet"):
        for row in pq.read_table(path).to_pylist():
            found[Path(row["shard"]).name, row["row"]] = row["images_digest"]
    folder = corpus.folder / "corpus"
    expected = {
        key: images_digest((folder / name).read_bytes() for name in names)
        for key, names in corpus.rows.items()
        if "images/nowhere.png" not in names
    }
    assert found == {**expected, ("b.json", 4): None}


@pytest.mark.parametrize("where", ["local", "bucket"])
def test_a_replaced_picture_is_found_and_what_is_said_of_it_helps(where, tmp_path, s3, capsys):
    s3.clear()
    corpus = Corpus(tmp_path, "s3://bucket/replaced" if where == "bucket" else "")
    verified, said = corpus.verified(capsys)
    assert (verified["slices"], verified["compared"], verified["unknown"], verified["changed"]) == (6, 23, 0, 0)
    assert verified["first"] == verified["feature_files"] == []
    assert verified["files"] == {}
    assert "next:" not in said
    before = scores(f"{corpus.uri}/output")

    changed = corpus.samples_of(FIRST)
    assert changed
    with corpus.replaced(FIRST):
        verified, said = corpus.verified(capsys)
        assert (verified["compared"], verified["changed"]) == (23, len(changed))
        assert shown(verified) == changed
        assert all(sample in said for sample in changed)
        assert all(name in said for name in verified["feature_files"])
        if where == "local":
            assert main(["run", corpus.config]) == 0
            assert corpus.verified(capsys)[0]["changed"] == len(changed), "a run notices nothing by itself"
        storage.delete(verified["feature_files"])
        assert main(["run", corpus.config]) == 0
        verified, _ = corpus.verified(capsys)
        assert (verified["compared"], verified["changed"]) == (23, 0)
        if where == "local":
            alone = str(tmp_path / "alone")
            assert main(["run", corpus.config, f"output={alone}"]) == 0
            assert scores(f"{corpus.uri}/output") == pytest.approx(scores(alone), rel=1e-9), "as of a run from scratch"
        assert scores(f"{corpus.uri}/output") != pytest.approx(before, rel=1e-6)


def test_a_picture_that_is_gone_is_another_one(corpus, capsys):
    path = corpus.folder / "corpus" / FIRST
    path.rename(path.with_suffix(".away"))
    try:
        assert shown(corpus.verified(capsys)[0]) == corpus.samples_of(FIRST)
    finally:
        path.with_suffix(".away").rename(path)


def test_a_share_of_the_slices_is_spread_over_the_corpus_and_the_same_each_time(corpus, capsys):
    names = sorted({name for names in corpus.rows.values() for name in names} - {"images/nowhere.png"})
    with corpus.replaced(*names):
        half, _ = corpus.verified(capsys, "0.5")
        assert half["slices"] == 3
        assert half["changed"] == half["compared"] < 23
        assert {Path(uri).name for uri in half["files"]} == {"a.json", "b.json"}
        assert corpus.verified(capsys, "0.5")[0] == half
        assert corpus.verified(capsys, "0.0001")[0]["slices"] == 1, "a share is at least one slice"
        assert corpus.verified(capsys)[0]["changed"] == 23


@pytest.mark.parametrize("share", ["0", "-1", "1.1", "nan", "all"])
def test_a_share_that_is_none_is_refused(share, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["plan", "config.yaml", "--verify", share])
    assert stopped.value.code == 2
    assert f"above 0 and at most 1, found '{share}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "options"), [("llava-next", ["--images", "copy"]), ("hf", ["--images", "copy"]), ("webdataset", [])]
)
def test_an_export_of_pictures_stops_where_one_was_replaced(name, options, corpus, tmp_path, capsys):
    command = ["export", str(corpus.folder / "output"), "--to", name, "--out"]
    assert main([*command, str(tmp_path / "before"), *options]) == 0
    with corpus.replaced(FIRST):
        capsys.readouterr()
        assert main([*command, str(tmp_path / "after"), *options]) == 2
        check_said(corpus, FIRST, capsys)
        assert not (tmp_path / "after" / "export.json").exists()
        if name == "llava-next":
            assert main([*command, str(tmp_path / "reference"), "--images", "reference"]) == 0, "reads no pictures"
    assert main([*command, str(tmp_path / "after"), *options]) == 0, "the same command goes through with the old one"


def check_said(corpus: Corpus, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = " ".join(capsys.readouterr().err.split())
    assert any(f"{sample.replace('json:', 'json row ')}: its images (" in said for sample in corpus.samples_of(name))
    assert name in said
    assert "'scalselect plan CONFIG --verify'" in said
    assert "Traceback" not in said


def test_an_export_finds_digests_however_files_are_cut_now(corpus, tmp_path, capsys):
    """Of the run that it exports nothing was extracted: its slices are those of an earlier one."""
    assert main(["run", corpus.config, "corpus.slice_rows=7"]) == 0
    command = ["export", str(corpus.folder / "output"), "--to", "hf", "--images", "copy", "--out"]
    assert main([*command, str(tmp_path / "before")]) == 0
    with corpus.replaced(ROWS[11]["images"][0]):
        capsys.readouterr()
        assert main([*command, str(tmp_path / "after")]) == 2
        check_said(corpus, ROWS[11]["images"][0], capsys)


def test_an_export_of_features_without_digests_goes_on_as_it_did(corpus, tmp_path):
    paths = list((corpus.folder / "output" / "features").glob("*/*.parquet"))
    before = [path.read_bytes() for path in paths]
    for path in paths:
        pq.write_table(pq.read_table(path).drop_columns("images_digest"), path)
    command = ["export", str(corpus.folder / "output"), "--to", "hf", "--images", "copy", "--out"]
    try:
        with corpus.replaced(FIRST):
            assert main([*command, str(tmp_path / "x")]) == 0
    finally:
        for path, data in zip(paths, before, strict=True):
            path.write_bytes(data)
