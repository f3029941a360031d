"""Reports of real runs: the numbers against plain numpy over the whole tables, and what is shown when something is
gone."""

import json
import shutil
import urllib.request
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import GOLDEN, write_config

from scalselect_ray.cli import main
from scalselect_ray.io import storage
from scalselect_ray.io.listing import expand
from scalselect_ray.report import write
from scalselect_ray.report.data import TOKEN_COLUMNS, Limits, Report
from scalselect_ray.report.gather import gather
from scalselect_ray.store.layout import Output
from scalselect_ray.store.runs import Runs
from scalselect_ray.testing import object_store

pytestmark = pytest.mark.usefixtures("cluster")

MODEL = GOLDEN / "llava" / "model"
DATA = Path(__file__).parents[1] / "data"
ROWS = json.loads((GOLDEN / "llava" / "samples.json").read_text())
SAID = ROWS[0]["messages"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A folder with two files of samples, pictures, a model, and the config of a run with quotas over them; the run is
    done."""
    folder = tmp_path_factory.mktemp("reported")
    shutil.copytree(GOLDEN / "llava" / "images", folder / "images")
    shutil.copytree(MODEL, folder / "model")
    talk = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    bad = [{"messages": SAID, "images": ["images/nowhere.png"]}, 7, *[talk] * 4]
    (folder / "first.json").write_text(json.dumps(ROWS + bad))
    (folder / "second.json").write_text(json.dumps(ROWS[::-1] * 2))
    sources = [
        {"name": name, "paths": [str(folder / f"{name}.json")], "image_root": str(folder)}
        for name in ("first", "second")
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scalselect_ray.stages.finish.write_report", write.write_report)
        config = write_config(folder, sources, folder / "model", reduce={"leaf_rows": 20})
        assert main(["run", str(config)]) == 0
        more = ["selection.per_source.first.share=0.7", "selection.text_only=keep", "selection.text_only_share=1.0"]
        assert main(["run", str(config), "selection.budget=20", *more]) == 0
    return folder


def runs_of(folder: Path) -> tuple[Output, list[str]]:
    output = Output(str(folder / "output"))
    return output, Runs(output).names()


def reported(folder: Path, run: int = -1, **limits: int) -> tuple[Report, dict[str, object]]:
    """(report of a run, its tables by name)"""
    output, names = runs_of(folder)
    tables = {
        name: pq.read_table(f"{output.run(names[run]).uri}/{name}")
        for name in ("scores", "manifest", "rejects.parquet")
    }
    tables["features"] = pq.read_table(sorted(Path(output.uri).glob("features/*/*.parquet")))
    return gather(output, Runs(output).record(names[run]), Limits(**limits)), tables


def test_the_numbers_are_those_of_the_whole_tables(corpus):
    for run in (0, 1):
        report, tables = reported(corpus, run)
        scores, manifest = (
            tables["scores"].to_pylist(),
            [row for row in tables["manifest"].to_pylist() if row["score"] is not None],
        )
        values = np.array([row["score"] for row in scores])
        assert report.scores.scored == np.histogram(values, report.scores.edges)[0].tolist()
        assert report.scores.chosen == np.histogram([row["score"] for row in manifest], report.scores.edges)[0].tolist()
        for source in ("first", "second"):
            assert report.source_cutoffs[source] == min(row["score"] for row in manifest if row["source"] == source)
        assert report.cutoffs[0].score == max(manifest, key=lambda row: row["rank"])["score"]
        ranks = {(row["source"], row["shard"], row["row"]): row["rank"] for row in manifest}
        key = [tables["features"][name].to_pylist() for name in ("source", "shard", "row")]
        chosen = np.array([item in ranks for item in zip(*key, strict=True)])
        usable = tables["features"]["reason"].is_null().to_numpy()
        assert report.tokens_of == usable.sum() == len(scores)
        for item in report.tokens:
            counts = tables["features"][item.name].to_numpy()
            assert item.all.mean == pytest.approx(counts[usable].mean())
            assert item.chosen.count == chosen.sum() == len(manifest)
            assert item.chosen.median == np.median(counts[chosen])
        assert len(report.rows) == len(scores), "a small corpus is shown whole"
        tokens = dict(
            zip(
                zip(*key, strict=True),
                zip(*(tables["features"][name].to_pylist() for name in TOKEN_COLUMNS), strict=True),
                strict=True,
            )
        )
        for row in report.rows:
            assert (row.rank, row.tokens) == (ranks.get(row.key), tokens[row.key])
        assert {row.stratum for row in report.rows} == {"best", "just in", "just out", "worst", "random"}
        assert all(
            (row.rank is None) == (row.stratum == "just out") for row in report.rows if row.stratum.startswith("just")
        )
        assert report.spectrum.energy[-1] <= 1 + 1e-12
        assert report.spectrum.captured == pytest.approx(report.record.energy_captured)
    assert report.quotas == {"first": "share 0.7"}
    assert report.record.text_only_kept == 4
    assert {example.reason for example in report.rejects} == {"image_missing", "broken_row"}


def test_the_galleries_show_pictures_texts_and_attention(corpus):
    report, _ = reported(corpus)
    rows = {str(row["id"]): row for row in ROWS}
    assert [card.row.rank for card in report.galleries["best"]] == sorted(
        card.row.rank or 10**9 for card in report.galleries["best"]
    )
    for cards in report.galleries.values():
        for card in cards:
            assert card.note is None
            assert len(card.pictures) == len(rows[card.row.id]["images"])
            assert card.turns[-1] in {("assistant", turn["content"]) for row in ROWS for turn in row["messages"]}
            assert sum(picture.attended[0] for picture in card.pictures) == card.row.tokens[2]
            assert all(picture.overlay.startswith("data:image/png") for picture in card.pictures)


def test_a_run_leaves_its_page_and_says_where(corpus):
    output, names = runs_of(corpus)
    for name in names:
        page = Path(output.uri, "runs", name, "report.html").read_text()
        assert name in page
        assert page.count("data:image/webp") >= 10
    assert "Since the previous run" in page
    assert "share 0.7" in page


def test_the_verb_makes_a_page_anew_and_compares(corpus, capsys, tmp_path):
    output, names = runs_of(corpus)
    page = Path(output.uri, "runs", names[1], "report.html")
    before = page.read_bytes()
    page.unlink()
    assert main(["report", output.uri, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(page)}
    assert page.read_bytes() == before, "from what is stored, byte by byte"
    assert main(["report", output.uri, "--run", names[0], "--out", str(tmp_path / "other.html")]) == 0
    assert names[0] in (tmp_path / "other.html").read_text()
    assert main(["report", output.uri, "--compare", names[0], "latest"]) == 0
    text = Path(output.uri, "runs", names[0], f"compared-with-{names[1]}.html").read_text()
    manifests = [
        {(row["source"], row["row"]) for row in pq.read_table(f"{output.run(name).uri}/manifest").to_pylist()}
        for name in names
    ]
    assert f"<em>{len(manifests[0] & manifests[1])}</em> chosen in both runs" in text
    assert "share: 0.7" in text, "what differs in the configs"
    assert main(["report", output.uri, "--run", "20200101T000000000Z-00000000"]) == 2
    said = capsys.readouterr().err
    assert "is not there" in said
    assert names[1] in said


def test_what_is_gone_is_said_and_the_rest_is_shown(corpus, tmp_path):
    output, names = runs_of(corpus)
    record = Runs(output).record(names[1])
    (corpus / "model").rename(corpus / "away")
    try:
        cards = gather(output, record).galleries["best"]
    finally:
        (corpus / "away").rename(corpus / "model")
    assert all("the attention is not drawn" in card.note and "model" in card.note for card in cards)
    assert all(card.pictures and card.pictures[0].overlay is None and card.turns for card in cards)

    (corpus / "images").rename(corpus / "away")
    try:
        cards = gather(output, record).galleries["best"]
    finally:
        (corpus / "away").rename(corpus / "images")
    assert all("a picture cannot be shown" in card.note and card.turns and not card.pictures for card in cards)

    whole = (corpus / "first.json").read_bytes()
    (corpus / "first.json").write_text("[]")
    (corpus / "second.json").rename(corpus / "away")
    try:
        report = gather(output, record)
    finally:
        (corpus / "first.json").write_bytes(whole)
        (corpus / "away").rename(corpus / "second.json")
    notes = {card.note.partition(":")[0] for cards in report.galleries.values() for card in cards}
    assert notes == {"the corpus is not there any more"}
    (corpus / "first.json").write_bytes(whole + b"\n")  # another modification time
    notes = {(card.row.key.source, card.note) for cards in gather(output, record).galleries.values() for card in cards}
    assert notes == {("first", "its file has changed since the run"), ("second", None)}

    features = next(Path(output.uri, "features").iterdir())
    features.rename(tmp_path / "features")
    try:
        report = gather(output, record)
    finally:
        (tmp_path / "features").rename(features)
    assert (report.tokens, report.tokens_of) == ([], 0)
    assert all(row.tokens is None for row in report.rows)


def test_a_run_of_version_0_1_has_a_page_that_says_what_it_lacks(tmp_path, capsys):
    shutil.copytree(DATA / "output-0.1", tmp_path / "output")
    assert main(["report", str(tmp_path / "output"), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "<em>13</em> of 29 samples chosen" in page
    assert "made by scalselect 0.1" in page
    assert "did not keep of which files it was made" in page
    assert 'id="table"' in page
    assert 'id="samples"' not in page
    assert (
        main(["report", str(tmp_path / "output"), "--compare", "latest", "latest", "--out", str(tmp_path / "c")]) == 0
    )
    assert "did not keep of which files it was made" in (tmp_path / "c").read_text()


def test_a_record_of_another_version_is_refused(tmp_path, capsys):
    shutil.copytree(DATA / "output-0.1", tmp_path / "output")
    (path,) = (tmp_path / "output").glob("runs/*/run.json")
    path.write_text(path.read_text().replace("scalselect.run/1", "scalselect.run/9"))
    assert main(["report", str(tmp_path / "output"), "--out", str(tmp_path / "page.html")]) == 2
    said = capsys.readouterr().err
    assert "scalselect.run/9" in said
    assert "scalselect.run/1" in said


def test_a_report_that_fails_does_not_fail_its_run(corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("scalselect_ray.stages.finish.write_report", write.write_report)
    monkeypatch.setattr("scalselect_ray.report.gather.spectrum_of", lambda *_: 1 / 0)
    shutil.copytree(corpus / "output" / "features", tmp_path / "features")  # nothing is extracted again
    assert main(["run", str(corpus / "config.yaml"), f"output={tmp_path}"]) == 0
    said = capsys.readouterr().err
    assert "warning: the report is not made: ZeroDivisionError" in said
    assert "report.html" not in said
    assert not list(tmp_path.glob("runs/*/report.html"))


def test_a_run_in_a_bucket_has_its_page_there(s3, tmp_path, monkeypatch):
    s3.clear()
    monkeypatch.setattr("scalselect_ray.stages.finish.write_report", write.write_report)
    object_store.upload(GOLDEN / "llava" / "images", "s3://bucket/reported/images")
    storage.write("s3://bucket/reported/some.json", json.dumps(ROWS[:6]).encode())
    source = {"name": "some", "paths": ["s3://bucket/reported/some.json"]}
    assert main(["run", str(write_config(tmp_path, [source], MODEL, output="s3://bucket/reported/output"))]) == 0
    page = expand("s3://bucket/reported/output/runs/*/report.html").files[0].uri
    with urllib.request.urlopen(storage.filesystem(page)[0].sign(page)) as answer:
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8", "a browser shows it and does not save it"
    text = storage.read_bytes(page).decode()
    assert text.count("data:image/webp") >= 3
    assert "nobody-may-see" not in text
