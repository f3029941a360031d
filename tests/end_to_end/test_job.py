"""The whole job: invariance, formats, edges, bad input, interruption."""

import base64
import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import GOLDEN, write_config

from scalselect_ray import AddFeatures, ExtractorConfig, job
from scalselect_ray.cli import main
from scalselect_ray.stages import extract

pytestmark = pytest.mark.usefixtures("cluster")

CORPUS, MODEL = GOLDEN / "llava", GOLDEN / "llava" / "model"
ROWS = json.loads((CORPUS / "samples.json").read_text())


def run(config: Path, *overrides: str) -> tuple[dict, pa.Table, pa.Table, pa.Table]:
    """(run.json, scores, manifest, rejects)"""
    assert main(["run", str(config), *overrides]) == 0
    output = Path(json.loads(config.read_text())["output"])
    folder = output / "runs" / json.loads((output / "latest.json").read_text())["run_id"]
    tables = (pq.read_table(folder / name) for name in ("scores", "manifest", "rejects.parquet"))
    return json.loads((folder / "run.json").read_text()), *tables


def golden_config(folder: Path, **more: object) -> Path:
    return write_config(folder, [{"name": "golden", "paths": [str(CORPUS / "samples.json")]}], MODEL, **more)


def corpus_of(folder: Path, rows: list, **more: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "rows.json").write_text(json.dumps(rows))
    source = {"name": "made", "paths": [str(folder / "rows.json")], "image_root": str(CORPUS)}
    return write_config(folder, [source], MODEL, **more)


@pytest.fixture(scope="module")
def golden_run(cluster, tmp_path_factory) -> tuple[pa.Table, pa.Table]:
    """Scores and manifest of the golden corpus, with as many leaves as slices."""
    _, scores, manifest, _ = run(golden_config(tmp_path_factory.mktemp("golden")), "reduce.leaf_rows=1")
    return scores, manifest


@pytest.mark.parametrize(
    "overrides",
    [
        ["corpus.slice_rows=3", "reduce.fan_in=2"],
        ["corpus.slice_rows=100", "extractor.batch_tokens=200"],
        ["workers.max_extractors=2"],
    ],
    ids=" ".join,
)
def test_how_the_work_is_cut_changes_nothing(overrides, golden_run, tmp_path):
    scores, manifest = golden_run
    _, other_scores, other_manifest, _ = run(golden_config(tmp_path), "reduce.leaf_rows=1", *overrides)
    np.testing.assert_allclose(other_scores["score"], scores["score"], atol=1e-6)
    assert other_manifest["row"].equals(manifest["row"])
    if overrides == ["workers.max_extractors=2"]:
        assert other_scores["score"].equals(scores["score"]), "the same slices must give the same bits"


def test_one_corpus_in_every_format_gives_the_same_scores(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    images = {name: (CORPUS / name).read_bytes() for row in ROWS for name in row["images"]}
    (folder / "list.json").write_text(json.dumps(ROWS, indent=1))
    (folder / "lines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    with gzip.open(folder / "packed.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps(row) + "\n\n" for row in ROWS))
    uris = [
        {**row, "images": ["data:image/png;base64," + base64.b64encode(images[n]).decode() for n in row["images"]]}
        for row in ROWS
    ]
    (folder / "inline.jsonl").write_text("".join(json.dumps(row) + "\n" for row in uris))
    structs = [
        {**row, "id": str(row["id"]), "images": [{"bytes": images[n], "path": n} for n in row["images"]], "scene": "x"}
        for row in ROWS
    ]
    pq.write_table(pa.Table.from_pylist(structs), folder / "rows.parquet", row_group_size=7)
    roles = {"user": "human", "assistant": "gpt"}
    for name in ("shard.tar", "shard2.tar.gz"):
        with tarfile.open(folder / name, "w:gz" if name.endswith("gz") else "w") as tar:
            for number, row in enumerate(ROWS):
                record = {"conversations": [{"from": roles[m["role"]], "value": m["content"]} for m in row["messages"]]}
                members = {f"{number:04d}.json": json.dumps(record).encode()}
                members |= {
                    f"{number:04d}.img{i}.{n.rpartition('.')[2]}": images[n] for i, n in enumerate(row["images"])
                }
                for member, data in members.items():
                    info = tarfile.TarInfo(member)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    files = sorted(path.name for path in folder.iterdir())
    sources = [{"name": name, "paths": [str(folder / name)], "image_root": str(CORPUS)} for name in files]
    record, scores, _, rejects = run(write_config(tmp_path, sources, MODEL))
    assert rejects.num_rows == 0
    assert record["scored"] == len(files) * len(ROWS)
    frame = {name: [] for name in files}
    for row in scores.sort_by([("source", "ascending"), ("row", "ascending")]).to_pylist():
        frame[row["source"]].append(row["score"])
    for name in files:
        np.testing.assert_allclose(frame[name], frame["list.json"], atol=1e-6, err_msg=name)


def test_real_corpora_in_three_formats(tmp_path, shared):
    nlvr = shared / "data" / "nlvr"
    sources = [
        {"name": "dev", "paths": [str(nlvr / "parquet" / "*.parquet")]},
        {"name": "test", "paths": [str(nlvr / "webdataset")]},
        {"name": "hidden", "paths": [str(nlvr / "sharegpt" / "hidden.json")]},
    ]
    record, scores, manifest, rejects = run(
        write_config(tmp_path, sources, MODEL), "corpus.slice_rows=256", "selection.budget=0.16"
    )
    assert record["samples"] == 12_859 == scores.num_rows + rejects.num_rows
    assert rejects.num_rows == 0
    assert np.sum(scores["score"].to_numpy()) == pytest.approx(record["k"], rel=1e-9)
    assert manifest.num_rows == int(0.16 * 12_859)
    best = np.sort(scores["score"].to_numpy())[::-1][: manifest.num_rows]
    assert np.array_equal(manifest.sort_by("rank")["score"].to_numpy(), best)


def test_a_plan_says_what_growth_costs(tmp_path, capsys):
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps(ROWS[:10]))
    source = {"name": "made", "paths": [str(folder)], "image_root": str(CORPUS)}
    config = write_config(tmp_path, [source], MODEL, corpus={"sources": [source], "slice_rows": 5})
    first, *_ = run(config)
    (folder / "b.json").write_text(json.dumps(ROWS[10:]))
    assert main(["plan", str(config), "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert (planned["rows"], planned["todo_rows"], planned["sources"]["made"]["rows to do"]) == (24, 14, 14)
    assert planned["seconds"] == pytest.approx(14 / first["samples_per_second"])


@pytest.mark.parametrize(("budget", "chosen"), [(0, 0), (1, 24), (1.0, 24), (5, 5), (500, 24), (0.5, 12)])
def test_budgets(budget, chosen, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "budgets"
    folder.mkdir(exist_ok=True)
    record, _, manifest, _ = run(golden_config(folder), f"selection.budget={budget}")
    assert record["chosen"] == chosen == manifest.num_rows
    assert manifest["rank"].to_pylist() == list(range(1, chosen + 1))


def test_one_sample_has_no_subspace(tmp_path):
    record, scores, manifest, _ = run(corpus_of(tmp_path / "one", ROWS[:1]))
    assert (record["k"], scores["score"].to_pylist(), manifest.num_rows) == (0, [0.0], 1)


def test_equal_rows_tie_and_the_first_are_taken(tmp_path):
    record, scores, manifest, _ = run(
        corpus_of(tmp_path / "equal", [ROWS[0]] * 25), "selection.budget=7", "corpus.slice_rows=4"
    )
    assert record["k"] == 0
    assert set(scores["score"].to_pylist()) == {0.0}
    assert manifest["row"].to_pylist() == list(range(7))
    assert len(set(manifest["id"].to_pylist())) == 1, "a sample is known by its row, not by its id"


def test_fewer_samples_than_dimensions(tmp_path):
    record, scores, *_ = run(corpus_of(tmp_path / "few", ROWS[:5]), "subspace.energy=1.0")
    assert record["k"] == 4
    assert np.sum(scores["score"].to_numpy()) == pytest.approx(4)


def test_bad_samples_are_rejected_with_their_reason_and_good_ones_are_scored_as_if_alone(tmp_path):
    said = ROWS[0]["messages"]
    (tmp_path / "bad").mkdir()
    bad = {
        "image_missing": {"messages": said, "images": ["images/nowhere.png"]},
        "image_refused": {"messages": said, "images": ["../../conftest.py"]},
        "placeholder_mismatch": {"messages": said, "images": ROWS[0]["images"] * 2},
        "text_only": {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
        "bad_conversation": {"messages": [{"role": "wizard", "content": "Hi"}], "images": ROWS[0]["images"]},
        "broken_row": 7,
        "special_token": {
            "messages": [*said, {"role": "assistant", "content": "an <image> here"}],
            "images": ROWS[0]["images"],
        },
        "image_unreadable": {"messages": said, "images": ["samples.json"]},
        "unsupported_media": {"messages": said, "video": "a.mp4"},
        "too_long": {
            "messages": [said[0], {"role": "assistant", "content": "long " * 5000}],
            "images": ROWS[0]["images"],
        },
    }
    mixed = [row for pair in zip(bad.values(), ROWS[: len(bad)], strict=True) for row in pair]
    _, scores, _, rejects = run(corpus_of(tmp_path / "bad", mixed), "rejects.max_fraction=0.6", "corpus.slice_rows=50")
    assert rejects["reason"].to_pylist() == list(bad)
    assert all(rejects["message"].to_pylist())
    _, clean, *_ = run(corpus_of(tmp_path / "clean", ROWS[: len(bad)]), "corpus.slice_rows=50")
    np.testing.assert_allclose(scores["score"], clean["score"], atol=1e-6)
    kept, _, manifest, rejects = run(
        tmp_path / "bad" / "config.yaml",
        "rejects.max_fraction=0.6",
        "corpus.slice_rows=50",
        "selection.text_only=keep",
        "selection.text_only_share=1.0",
        "selection.budget=2",
    )
    assert kept["text_only_kept"] == 1
    assert "text_only" not in rejects["reason"].to_pylist()
    last = manifest.sort_by("rank").to_pylist()[-1]
    assert (last["rank"], last["row"], last["score"]) == (3, 6, None)
    assert main(["run", str(tmp_path / "bad" / "config.yaml"), "corpus.slice_rows=50"]) == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["selection.budgett=0.1"], ["selection.budgett", "selection.budget'"]),
        (["subspace.energy=1.5"], ["subspace.energy", "1.5"]),
        (["extractor.model=/no/such/model"], ["/no/such/model"]),
        (["corpus.sources.0.paths=[/no/such/*.json]"], ["golden", "/no/such/*.json"]),
        (["selection.budget=1.5"], ["selection.budget", "1.5"]),
        (["output"], ["output", "key=value"]),
    ],
)
def test_unusable_input_is_said_with_exit_code_2(change, words, tmp_path, capsys):
    assert main(["run", str(golden_config(tmp_path)), *change]) == 2
    said = capsys.readouterr()
    assert all(word in said.err.replace("\n", " ") for word in words), said.err
    assert "Traceback" not in said.err
    assert said.out == ""


@pytest.mark.parametrize(("name", "text"), [("empty.json", "[]"), ("html.json", "<html>"), ("nothing.json", "")])
def test_a_corpus_without_rows_is_unusable(name, text, tmp_path, capsys):
    (tmp_path / name).write_text(text)
    assert main(["run", str(write_config(tmp_path, [{"name": "s", "paths": [str(tmp_path / name)]}], MODEL))]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("worker", ["extractor", "preparer"])
def test_a_worker_that_finds_another_model_refuses(worker, tmp_path, monkeypatch, capsys):
    """Another revision on one node, or a folder that a training job goes on writing to: its features would be stored as
    the run's."""
    if worker == "extractor":
        original = job.description_of
        monkeypatch.setattr(job, "description_of", lambda extractor: original(extractor) | {"weights": "others"})
    else:
        monkeypatch.setattr(extract, "preparing_of", lambda extractor: "another template")
    assert main(["run", str(golden_config(tmp_path))]) == 2
    assert "is not the same in every place" in capsys.readouterr().err
    assert not list((tmp_path / "output" / "features").rglob("*.parquet"))


def test_two_runs_in_one_session_with_a_template_changed_between_them(tmp_path):
    """Workers live on from one run to the next: what they hold of the model must not."""
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)

    def features(output: str) -> np.ndarray:
        settings = f"extractor.model={model}", f"output={tmp_path / output}"
        assert main(["run", str(golden_config(tmp_path)), *settings]) == 0
        tables = [pq.read_table(path) for path in sorted((tmp_path / output).glob("features/*/*.parquet"))]
        table = pa.concat_tables(tables).sort_by("row")
        return np.array([feature for feature in table["feature"].to_pylist() if feature is not None])

    def fresh() -> np.ndarray:
        worker = AddFeatures(ExtractorConfig(model=str(model), dtype="float32"), CORPUS)
        return np.array([answer.feature for answer in worker.outcomes(ROWS) if not isinstance(answer, Exception)])

    first = features("one")
    np.testing.assert_allclose(first, fresh(), atol=1e-6)
    template = model / "chat_template.jinja"
    template.write_text("A preamble that all samples share. " + template.read_text())
    second = features("two")
    assert np.abs(second - first).max() > 1e-3
    np.testing.assert_allclose(second, fresh(), atol=1e-6)


def test_a_filter_leaves_rows_out_and_what_is_kept_scores_as_if_it_were_the_corpus(tmp_path, capsys):
    rows = [{**row, "score": number} for number, row in enumerate(ROWS)]
    config, keep = corpus_of(tmp_path / "made", rows), "corpus.sources.0.filter=score < 3 or score >= 12"
    record, scores, _, rejects = run(config, keep, "corpus.slice_rows=4")
    assert "filtered out" in capsys.readouterr().err
    assert record["filtered_out"] == {"made": 9}
    assert record["samples"] == len(ROWS)
    assert scores["row"].to_pylist() == [number for number in range(len(ROWS)) if not 3 <= number < 12]
    assert len(rejects) == 0
    assert main(["explain", str(tmp_path / "made" / "output"), "rows.json:5"]) == 2
    assert "its filters left out 9 rows" in capsys.readouterr().err.replace("\n", " ")
    again, *_ = run(config, keep.replace(" < ", "<"), "corpus.slice_rows=4")
    assert again["slices"]["extracted"] == 0
    assert again["filtered_out"] == {"made": 9}
    _, alone, *_ = run(corpus_of(tmp_path / "alone", rows[:3] + rows[12:]))
    np.testing.assert_allclose(scores["score"], alone["score"], atol=1e-6)
    whole, *_ = run(config, "corpus.slice_rows=4")
    assert whole["filtered_out"] == {}
    assert whole["scored"] == len(ROWS)
    assert main(["run", str(config), "corpus.sources.0.filter=scores < 3"]) == 2
    assert "no column 'scores'" in capsys.readouterr().err.replace("\n", " ")


def test_a_run_of_rejects_alone_says_so_each_time(tmp_path, capsys):
    rows = [{"messages": ROWS[0]["messages"], "images": ["images/nowhere.png"]}] * 3
    config = corpus_of(tmp_path / "made", rows)
    for _ in range(2):
        assert main(["run", str(config)]) == 3
        assert "3 of 3 samples are rejected" in capsys.readouterr().err


def test_a_file_that_cannot_be_read_is_named(tmp_path, capsys):
    config = corpus_of(tmp_path / "made", ROWS)
    (tmp_path / "made" / "torn.jsonl").write_bytes(b"[" * 10)
    (tmp_path / "made" / "torn.parquet").write_bytes(b"PAR1 and no more")
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"rejects": {"max_fraction": 0.5}}).replace("rows.json", "*")
    )
    _, _, _, rejects = run(config)
    said = capsys.readouterr().err.replace("\n", "")
    assert "torn.parquet from byte 0 (row 0) on: broken Parquet" in said
    assert "unreadable_file" in rejects["reason"].to_pylist()


def test_more_extractors_than_leave_room_for_their_input_still_get_it(tmp_path):
    record, *_ = run(golden_config(tmp_path), "workers.min_extractors=3")
    assert record["scored"] == len(ROWS)


def test_interrupted_run_goes_on_from_what_is_committed(tmp_path):
    config = corpus_of(
        tmp_path / "long",
        ROWS * 40,
        corpus={
            "sources": [{"name": "made", "paths": [str(tmp_path / "long" / "rows.json")], "image_root": str(CORPUS)}],
            "slice_rows": 8,
        },
    )
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    process = subprocess.Popen(
        [sys.executable, "-m", "scalselect_ray", "run", str(config)], stderr=subprocess.PIPE, text=True, env=environment
    )
    features = tmp_path / "long" / "output" / "features"
    deadline = time.monotonic() + 120
    while len(list(features.glob("*/*.parquet"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    committed = len(list(features.glob("*/*.parquet")))
    assert 3 <= committed < 120
    assert not (tmp_path / "long" / "output" / "latest.json").exists()
    record, *_ = run(config)
    assert record["slices"]["extracted"] <= 120 - 3
    assert record["scored"] == 960


def test_an_error_of_ours_inside_a_task_comes_out_as_itself(tmp_path, capsys, monkeypatch):
    """A file that changes between plan and read, each time."""
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps(ROWS))

    def change(*_: object) -> str:
        rows.write_text(rows.read_text() + " ")
        return ""

    monkeypatch.setattr("scalselect_ray.stages.plan._what_is_to_do", change)
    assert main(["run", str(write_config(tmp_path, [{"name": "s", "paths": [str(rows)]}], MODEL))]) == 2
    said = capsys.readouterr().err
    assert "error: " in said
    assert "changed or went away" in said
    assert "UDF" not in said
    assert "Traceback" not in said
