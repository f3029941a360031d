"""An output folder that version 0.1 wrote (`tests/data/output-0.1`) goes on: its features are not paid twice and its
scores come out again. A run of a version to come is refused by every verb."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import GOLDEN
from threadpoolctl import threadpool_info

from scalselect_ray.cli import main
from scalselect_ray.io import storage
from scalselect_ray.testing import object_store

pytestmark = pytest.mark.usefixtures("cluster")

KEPT = Path(__file__).parents[1] / "data" / "output-0.1"
PROCESSOR = KEPT.with_name("processor-of-output-0.1.json")  # which one computed what is kept
RUN = next((KEPT / "runs").iterdir()).name
CONFIG = f"{KEPT}/runs/{RUN}/config.yaml"


def processor() -> dict[str, object]:
    """What decides which kernels compute, and so the last bits."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return {
        "torch": torch.backends.cpu.get_cpu_capability(),
        "blas": sorted({found["architecture"] for found in threadpool_info() if "architecture" in found}),
        "model": next(line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
    }


def check_equal(found: pa.ChunkedArray, kept: pa.ChunkedArray) -> None:
    """Numbers: bit for bit on the processor of the kept ones, and within a millionth on another."""
    if processor() == json.loads(PROCESSOR.read_text()):
        assert found.equals(kept)
    else:
        found_N, kept_N = (np.array(column.to_pylist(), dtype=np.float64) for column in (found, kept))
        np.testing.assert_allclose(found_N, kept_N, rtol=1e-6, atol=1e-6)


def table(folder: str) -> pa.Table:
    """All Parquet files of a folder, in the order of their names."""
    names = [name for name in storage.list_names(folder) if name.endswith(".parquet")]
    files = [storage.read_bytes(storage.join(folder, name)) for name in sorted(names)]
    return pa.concat_tables(pq.read_table(io.BytesIO(file)) for file in files).combine_chunks()


def latest(output: str) -> str:
    return storage.join(output, "runs", json.loads(storage.read_bytes(f"{output}/latest.json"))["run_id"])


@pytest.fixture(scope="module")
def corpus(s3: object_store.ObjectStore) -> None:
    """The corpus of the kept run, byte for byte: its features hang on the URI, size and checksum of each file."""
    s3.clear()
    golden = GOLDEN / "llava"
    rows = json.loads((golden / "samples.json").read_text())
    broken = [
        {**rows[0], "images": ["images/nowhere.png"]},
        {"id": "text", "messages": rows[1]["messages"][1:]},
        *rows[2:5],
    ]
    storage.write("s3://bucket/kept/samples.json", (golden / "samples.json").read_bytes())
    storage.write("s3://bucket/kept/broken.jsonl", "".join(json.dumps(row) + "\n" for row in broken).encode())
    object_store.upload(golden / "images", "s3://bucket/kept/images")
    object_store.upload(golden / "model", "s3://bucket/kept/model")


@pytest.fixture
def output(corpus: None, request: pytest.FixtureRequest) -> str:
    """A copy of the kept output folder in the bucket."""
    uri = f"s3://bucket/copies/{request.node.name.translate(str.maketrans('[] ', '---'))}"
    object_store.upload(KEPT, uri)
    return uri


def test_a_run_over_it_extracts_nothing_and_gives_its_scores_again(output):
    assert main(["run", CONFIG, f"output={output}"]) == 0
    run = latest(output)
    assert not run.endswith(RUN)
    record = json.loads(storage.read_bytes(f"{run}/run.json"))
    before = json.loads((KEPT / "runs" / RUN / "run.json").read_text())
    assert (record["slices"]["extracted"], record["slices"]["total"]) == (0, 4)
    same = ("extractor", "moments", "samples", "scored", "rejected", "budgets", "sources", "k", "dim")
    assert {name: record[name] for name in same} == {name: before[name] for name in same}
    assert record["change"] | {"principal_angles_degrees": None} == {
        "previous": RUN,
        "kept": 13,
        "entered": 0,
        "left": 0,
        "principal_angles_degrees": None,
    }
    scores, kept = table(f"{run}/scores"), table(f"{KEPT}/runs/{RUN}/scores")
    assert scores.drop_columns("score").equals(kept.drop_columns("score"))
    check_equal(scores["score"], kept["score"])
    names = ["source", "shard", "row", "id", "rank"]
    assert table(f"{run}/manifest").select(names).equals(table(f"{KEPT}/runs/{RUN}/manifest").select(names))


def test_extracted_anew_its_features_come_out_again(corpus):
    assert main(["run", CONFIG, "output=s3://bucket/copies/anew"]) == 0
    record = json.loads(storage.read_bytes(f"{latest('s3://bucket/copies/anew')}/run.json"))
    assert record["slices"]["extracted"] == 4
    anew = table(f"s3://bucket/copies/anew/features/{record['extractor']}")
    (before,) = (KEPT / "features").iterdir()
    assert record["extractor"] != before.name, "an id of this version, which hashes less of a model"
    kept = table(str(before))
    assert set(anew.column_names) - set(kept.column_names) == {"images_digest", "lost_bytes"}, "no columns of 0.1"
    told = ["feature", "message"]  # messages have become clearer
    assert anew.select(kept.column_names).drop_columns(told).equals(kept.drop_columns(told))
    assert anew["feature"].is_null().equals(kept["feature"].is_null())
    check_equal(anew["feature"].drop_null(), kept["feature"].drop_null())


def test_it_goes_on_when_files_that_change_no_feature_come_to_the_model(output, capsys):
    model = output.replace("copies", "models")
    object_store.upload(GOLDEN / "llava" / "model", model)
    for _ in range(2):
        assert main(["plan", CONFIG, f"output={output}", f"extractor.model={model}", "--json"]) == 0
        planned = json.loads(capsys.readouterr().out)
        (before,) = (KEPT / "features").iterdir()
        assert (planned["extractor"], planned["todo_rows"]) == (before.name, 0)
        storage.write(f"{model}/README.txt", b"What this model is.")
        storage.write(f"{model}/generation_config.json", b"{}")


def test_its_pictures_cannot_be_compared_and_nothing_says_that_they_changed(output, capsys):
    assert main(["plan", CONFIG, f"output={output}", "--verify", "--json"]) == 0
    said = capsys.readouterr()
    verified = json.loads(said.out)["verified"]
    assert {name: verified[name] for name in ("slices", "compared", "unknown", "changed")} == {
        "slices": 4,
        "compared": 0,
        "unknown": 27,
        "changed": 0,
    }
    assert "27 samples could not be compared" in " ".join(said.err.split())


def verbs(output: str, folder: Path) -> dict[str, list[str]]:
    """Every verb that looks at a run."""
    return {
        "status": ["status", output],
        "explain": ["explain", output, "p07"],
        "clean": ["clean", output],
        "export by reference": ["export", output, "--to", "qwen-vl", "--out", str(folder / "reference")],
        "export with images": ["export", output, "--to", "hf", "--out", str(folder / "copy")],
        "report": ["report", output, "--out", str(folder / "page.html")],
        "comparison": ["report", output, "--compare", "latest", RUN, "--out", str(folder / "page.html")],
    }


VERBS = list(verbs("", Path()))


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_reads_it_or_says_what_it_lacks(verb, output, tmp_path, capsys):
    code = main(verbs(output, tmp_path)[verb])
    said = " ".join(capsys.readouterr().err.split())
    if verb in ("status", "clean"):
        assert code == 0, said
    elif verb in ("report", "comparison"):
        assert code == 0, said
        assert "scalselect 0.1" in (tmp_path / "page.html").read_text(), "the page says what it lacks"
    else:
        assert code == 2, said
        assert "is a run of scalselect 0.1, which did not keep of which files it was made: run again" in said
    assert "Traceback" not in said


@pytest.fixture(scope="module")
def run_again(corpus: None) -> str:
    """A copy of the kept output folder with a run of this version beside that of version 0.1."""
    object_store.upload(KEPT, "s3://bucket/copies/again")
    assert main(["run", CONFIG, "output=s3://bucket/copies/again"]) == 0
    return "s3://bucket/copies/again"


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "comparison"])
def test_after_another_run_every_verb_works(verb, run_again, tmp_path, capsys):
    code = main(verbs(run_again, tmp_path)[verb])
    said = " ".join(capsys.readouterr().err.split())
    assert code == 0, said


@pytest.mark.parametrize("verb", [*VERBS, "run"])
def test_a_run_of_a_later_version_is_refused_with_both_versions(verb, output, tmp_path, capsys):
    uri = f"{output}/runs/{RUN}/run.json"
    storage.write(uri, storage.read_bytes(uri).replace(b"scalselect.run/1", b"scalselect.run/9"))
    code = main({**verbs(output, tmp_path), "run": ["run", CONFIG, f"output={output}"]}[verb])
    said = " ".join(capsys.readouterr().err.split())
    assert code == (0 if verb == "status" else 2), said  # the other runs are shown, and what is wrong with this one
    assert "scalselect.run/9" in said
    assert "scalselect.run/1" in said
    assert "Traceback" not in said
