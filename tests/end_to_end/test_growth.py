"""Selection again on a corpus that grows, changes and shrinks, with other settings, and twice at once."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import GOLDEN, write_config
from records import record_of

from scalselect_ray.cli import main
from scalselect_ray.io import storage
from scalselect_ray.stages import extract, payload
from scalselect_ray.store import garbage
from scalselect_ray.store.layout import Output
from scalselect_ray.store.runs import Runs
from scalselect_ray.store.subspace import read_subspace
from scalselect_ray.subspace import principal_angles

pytestmark = pytest.mark.usefixtures("cluster")

CORPUS, MODEL = GOLDEN / "llava", GOLDEN / "llava" / "model"
ROWS = json.loads((CORPUS / "samples.json").read_text())


@pytest.fixture
def corpus(tmp_path) -> Path:
    """A folder with `a.json` and `b.json`, ten samples each in slices of five."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name, rows in (("a", ROWS[:10]), ("b", ROWS[10:20])):
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture
def config(tmp_path, corpus) -> Path:
    return config_in(tmp_path, [{"name": "made", "paths": [str(corpus)], "image_root": str(CORPUS)}])


def config_in(folder: Path, sources: list[dict[str, object]]) -> Path:
    return write_config(folder, sources, MODEL, corpus={"sources": sources, "slice_rows": 5})


def run(config: Path, *overrides: str) -> tuple[dict, Path]:
    """(run.json, folder of the run)"""
    assert main(["run", str(config), *overrides]) == 0
    output = config.parent / "output"
    folder = output / "runs" / json.loads((output / "latest.json").read_text())["run_id"]
    return json.loads((folder / "run.json").read_text()), folder


def objects(output: Path) -> dict[str, tuple[int, str]]:
    """What lies below features and moments: name to (mtime, hash)."""
    files = [path for kind in ("features", "moments") for path in (output / kind).rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files}


def scores(folder: Path) -> dict[tuple[str, int], float]:
    return {(row["shard"], row["row"]): row["score"] for row in pq.read_table(folder / "scores").to_pylist()}


def chosen(folder: Path) -> set[tuple[str, int]]:
    return {(row["shard"], row["row"]) for row in pq.read_table(folder / "manifest").to_pylist()}


def from_scratch(config: Path) -> dict[tuple[str, int], float]:
    """Scores of the same corpus by a run that finds nothing done."""
    folder = config.parent / "scratch"
    folder.mkdir()
    fresh = json.loads(config.read_text()) | {"output": str(folder / "output")}
    (folder / "config.yaml").write_text(json.dumps(fresh))
    return scores(run(folder / "config.yaml")[1])


def agree(ours: dict[tuple[str, int], float], theirs: dict[tuple[str, int], float]) -> None:
    assert ours.keys() == theirs.keys()
    np.testing.assert_allclose([ours[key] for key in sorted(ours)], [theirs[key] for key in sorted(ours)], rtol=1e-9)


def test_a_grown_corpus_costs_its_growth_and_says_how_the_selection_changed(config, corpus, capsys):
    first, before = run(config)
    kept = objects(config.parent / "output")
    (corpus / "c.json").write_text(json.dumps(ROWS[20:]))
    second, after = run(config)
    assert (second["slices"]["extracted"], second["slices"]["moments_reused"], second["slices"]["total"]) == (1, 4, 5)
    now = objects(config.parent / "output")
    assert {name: now[name] for name in kept} == kept, "what was committed is not written again"
    assert len(now) == len(kept) + 2, "a feature file and the moments of the grown set"
    agree(scores(after), from_scratch(config))

    old, new, change = chosen(before), chosen(after), second["change"]
    assert first["change"] is None
    assert change["previous"] == first["run_id"]
    assert (change["kept"], change["entered"], change["left"]) == (len(old & new), len(new - old), len(old - new))
    bases = [read_subspace(str(folder / "subspace.safetensors")).basis_DK for folder in (before, after)]
    degrees = np.degrees(principal_angles(*bases))
    assert change["principal_angles_degrees"]["largest"] == pytest.approx(degrees.max(), abs=1e-3)
    assert "kept" in capsys.readouterr().err


def test_a_changed_file_is_redone_and_a_removed_one_is_left_out_of_the_merge(config, corpus):
    run(config)
    kept = objects(config.parent / "output")
    (corpus / "a.json").write_text(json.dumps(ROWS[10:19]))
    changed, folder = run(config)
    assert changed["slices"] == {"total": 4, "extracted": 2, "moments_reused": 0}
    agree(scores(folder), from_scratch(config))
    shutil.rmtree(config.parent / "scratch")
    (corpus / "a.json").unlink()
    removed, folder = run(config)
    assert removed["slices"] == {"total": 2, "extracted": 0, "moments_reused": 0}
    agree(scores(folder), from_scratch(config))
    assert objects(config.parent / "output").items() >= kept.items(), "nothing committed is lost"


def test_moments_of_features_that_are_made_anew_are_not_used(tmp_path, corpus):
    """The features of a slice are lost, and when they are made anew an image of it is away."""
    shutil.copytree(CORPUS / "images", tmp_path / "images")
    config = config_in(tmp_path, [{"name": "made", "paths": [str(corpus)], "image_root": str(tmp_path)}])
    record, _ = run(config)
    (tmp_path / ROWS[0]["images"][0]).unlink()
    held = {
        path: pq.read_table(path)["shard"][0].as_py() for path in (tmp_path / "output").glob("features/*/*.parquet")
    }
    lost = next(path for path in held if held[path].endswith("a.json") and "-000000000-" in path.name)
    lost.unlink()
    again, folder = run(config, "rejects.max_fraction=0.5")
    assert (again["slices"]["extracted"], again["scored"]) == (1, record["scored"] - 1)
    agree(scores(folder), from_scratch(config))


def test_other_settings_of_subspace_budget_and_quota_extract_nothing(config):
    run(config)
    for override in (
        "subspace.energy=0.5",
        "selection.budget=7",
        "selection.per_source.made.cap=3",
        "subspace.standardize=true",
    ):
        record, _ = run(config, override)
        assert (record["slices"]["extracted"], record["slices"]["moments_reused"]) == (0, 4), override
        assert record["samples_per_second"] is None


def test_another_extractor_setting_is_told_before_it_is_paid_for(config, capsys):
    first, _ = run(config)
    capsys.readouterr()
    second, _ = run(config, "extractor.attention_threshold=0.8")
    assert first["extractor"] != second["extractor"]
    assert second["slices"]["extracted"] == 4
    said = capsys.readouterr().err
    assert "attention_threshold is 0.8 and was 0.9" in said
    assert said.index("attention_threshold") < said.index("extract ")
    assert second["change"] is None, "another extractor's run is nothing to compare with"


def test_two_runs_at_once_may_waste_but_not_corrupt(config):
    """Each in a process of its own, on a Ray of its own."""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    commands = [
        [sys.executable, "-m", "scalselect_ray", "run", str(config), f"selection.budget={budget}"] for budget in (3, 4)
    ]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) for command in commands]
    for process in running:
        _, said = process.communicate(timeout=400)
        assert process.returncode == 0, said
    output = config.parent / "output"
    runs = Runs(Output(str(output)))
    assert len(runs.names()) == 2
    assert runs.latest() == runs.names()[-1], "the newest, whoever ended last"
    records = [runs.record(name) for name in runs.names()]
    assert records[0].chosen != records[1].chosen
    one, two = (scores(Path(runs.folder(name).uri)) for name in runs.names())
    assert one == two
    agree(one, from_scratch(config))


def test_latest_moves_only_forward(tmp_path):
    runs = Runs(Output(str(tmp_path)))
    old, new = "20260101T000000000Z-aaaaaaaa", "20260102T000000000Z-bbbbbbbb"
    runs.finish(record_of(new))
    runs.finish(record_of(old))
    assert runs.latest() == new


def test_garbage_is_shown_by_status_and_removed_only_when_told_to(config, corpus, capsys, monkeypatch):
    output = config.parent / "output"
    monkeypatch.chdir(config.parent)
    run(config)
    time.sleep(0.01)
    (corpus / "b.json").unlink()
    abandoned = output / "runs" / "20200101T000000000Z-00000000"
    storage.write(str(abandoned / "scores" / "00000.parquet"), b"x")
    storage.write(str(output / "features" / "half" / "x"), b"x")
    half = output / "features" / "half" / f".{'0' * 32}.tmp"
    half.write_bytes(b"half")
    long_ago = time.time() - 3 * 86400
    os.utime(half, (long_ago, long_ago))
    record, folder = run(config)
    everything = {path for path in output.rglob("*") if path.is_file()}

    monkeypatch.chdir("/")
    capsys.readouterr()
    assert main(["status", str(output), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["garbage"]
    assert [heap["objects"] for heap in told] == [1, 2, 1, 1]  # a run, two slices, moments, a half-written file
    assert main(["clean", str(output)]) == 0
    assert "would remove" in capsys.readouterr().err
    assert {path for path in output.rglob("*") if path.is_file()} == everything

    assert main(["clean", str(output), "--delete"]) == 0
    left = {path for path in output.rglob("*") if path.is_file()}
    assert len(everything - left) == 5
    again, _ = run(config)
    assert (again["slices"]["extracted"], again["slices"]["moments_reused"]) == (0, record["slices"]["total"]), (
        "what is in use is still there"
    )
    assert garbage.find_garbage(Output(str(output))) == []
    assert folder.exists()


def test_slices_of_another_size_are_cut_around_what_is_committed(config, corpus):
    (corpus / "b.json").unlink()
    before, folder = run(config)
    features = sorted((config.parent / "output" / "features" / before["extractor"]).glob("*.parquet"))
    assert run(config, "corpus.slice_rows=3")[0]["slices"] == {"total": 2, "extracted": 0, "moments_reused": 2}
    features[1].unlink()
    again, other = run(config, "corpus.slice_rows=3")
    assert again["slices"] == {"total": 3, "extracted": 2, "moments_reused": 0}
    assert scores(other) == pytest.approx(scores(folder), abs=1e-9)
    features[0].unlink()
    assert run(config, "corpus.slice_rows=50")[0]["slices"]["extracted"] == 1


def test_rejects_are_tried_again_once_they_are_cleaned(tmp_path, capsys):
    """Images that were not there yet: the JSON that names them has not changed."""
    shutil.copytree(GOLDEN / "llava" / "images", tmp_path / "images")
    shutil.copy(GOLDEN / "llava" / "samples.json", tmp_path)
    late = tmp_path / "images" / Path(json.loads((tmp_path / "samples.json").read_text())[0]["images"][0]).name
    late.rename(tmp_path / "late")
    config = write_config(
        tmp_path, [{"name": "s", "paths": [str(tmp_path / "samples.json")]}], GOLDEN / "llava" / "model"
    )
    before, _ = run(config, "rejects.max_fraction=0.5")
    (tmp_path / "late").rename(late)
    assert run(config, "rejects.max_fraction=0.5")[0]["rejected"] == before["rejected"] != {}
    output = str(tmp_path / "output")
    assert main(["clean", output, "--rejected", "no_such_reason"]) == 2
    assert main(["clean", output, "--rejected", "image_missing"]) == 0
    assert "slices with rejects of the reason image_missing: 1 object" in capsys.readouterr().err
    assert main(["clean", output, "--rejected", "image_missing", "--delete"]) == 0
    record, _ = run(config)
    assert (record["rejected"], record["slices"]["extracted"], record["slices"]["moments_reused"]) == ({}, 1, 0)
    assert main(["clean", output, "--rejected", "image_missing"]) == 0
    assert "nothing to remove" in capsys.readouterr().err


def test_a_source_that_cannot_be_seen_is_not_called_garbage(config, corpus, capsys):
    run(config)
    shutil.rmtree(corpus)
    assert main(["clean", str(config.parent / "output"), "--delete"]) == 2
    assert "told by the corpus of the newest run" in capsys.readouterr().err
    assert main(["status", str(config.parent / "output")]) == 0


def test_several_budgets_are_first_ranks_of_one_manifest(config):
    record, folder = run(config, "selection.budget=[0.1,7,0.5]")
    assert record["budgets"] == {"0.1": 2, "7": 7, "0.5": 10}
    best = sorted(scores(folder).items(), key=lambda item: -item[1])
    ranked = [(row["shard"], row["row"]) for row in pq.read_table(folder / "manifest").sort_by("rank").to_pylist()]
    assert ranked == [key for key, _ in best[:10]]


def test_quotas_are_exact_and_the_best_of_each_source_is_taken(config, corpus):
    sources = [
        {"name": name, "paths": [str(corpus / f"{name}.json")], "image_root": str(CORPUS)} for name in ("a", "b")
    ]
    config = config_in(config.parent, sources)
    record, folder = run(config, "selection.budget=10", "selection.per_source.a.share=0.3")
    assert {name: item["chosen"] for name, item in record["sources"].items()} == {"a": 3, "b": 7}
    table = pq.read_table(folder / "scores").to_pylist()
    for name, count in (("a", 3), ("b", 7)):
        best = sorted((row for row in table if row["source"] == name), key=lambda row: -row["score"])[:count]
        assert {(row["shard"], row["row"]) for row in best} == {
            key for key in chosen(folder) if f"/{name}.json" in key[0]
        }
    ranks = pq.read_table(folder / "manifest").sort_by("rank")["score"].to_numpy()
    assert (np.diff(ranks) <= 0).all(), "one rank order over all sources"
    assert main(["run", str(config), "selection.budget=4", "selection.per_source={a: {floor: 3}, b: {floor: 3}}"]) == 2
    assert main(["run", str(config), "selection.per_source.nobody.cap=3"]) == 2


def test_slices_of_large_pictures_are_committed_in_pieces_and_stay_so(config, monkeypatch):
    """A payload is bounded by its pictures; what was cut for it is no more work for the next run."""
    prepare = extract.prepare_unit

    def prepare_unit(batch, *arguments, **more):
        with mock.patch.object(payload, "MAX_BYTES", 20_000):  # in the worker: two or three pictures
            yield from prepare(batch, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(extract, "prepare_unit", prepare_unit)
        record, folder = run(config)
    assert record["slices"]["total"] > 4
    assert record["scored"] == 20
    again, _ = run(config)
    assert again["slices"]["extracted"] == 0
    assert again["slices"]["total"] == record["slices"]["total"]
    agree(scores(folder), from_scratch(config))
