"""The benchmarks run, small, so that they never rot."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import GOLDEN

pytestmark = pytest.mark.heavy


def run(script: str, *options: str) -> dict:
    """The record that a benchmark prints last."""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    command = [sys.executable, str(Path(__file__).parents[1] / "benchmarks" / script), *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, timeout=300, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_extraction_benchmark_runs():
    options = (
        "--shapes",
        "small",
        "--layers",
        "2",
        "--samples",
        "4",
        "--plain-samples",
        "2",
        "--ways",
        "ours",
        "plain-8",
    )
    record = run("extraction.py", *options)
    assert record["ratios"]["plain-8"]["worst_cosine"] > 0.999, "the straightforward way gives the same features"
    ours = record["results"]["ours"]
    assert 0 < ours["gflop_done_in_linear_layers"] < ours["gflop_whole_model_per_sample"]
    assert ours["tokens"]["attended"] < ours["tokens"]["vision"] == 576


@pytest.mark.benchmark
@pytest.mark.cluster
def test_scaling_benchmark_runs():
    record = run("scaling.py", "--dim", "16", "--rows", "2000", "4000", "--speedup-rows", "2000")
    assert [result["rows"] for result in record["results"]] == [2000, 4000]
    assert record["workers"][0]["cpus"] == 1


def test_reduce_benchmark_runs():
    options = (
        "--dims",
        "64",
        "--rows",
        "1000",
        "--peer-dim",
        "32",
        "--peer-rows",
        "1000",
        "--repeats",
        "1",
        "--memory-gib",
        "2",
    )
    record = run("reduce.py", *options)
    assert {step["share_cpu"] > 0 for step in record["ceilings"][0]["steps"].values()} == {True}
    assert [single["same_k"] for single in record["float32"]] == [True] * 5
    methods = record["peers"][0]["methods"]
    assert len({found["k"] for found in methods.values()}) == 1
    for exact in ("numpy.linalg.svd", "dask.array.linalg.svd"):
        assert methods[exact]["off_by"] < 1e-12


def test_pairwise_benchmark_runs(tmp_path):
    record = run(
        "pairwise.py",
        "--dim",
        "16",
        "--rows",
        "256",
        "512",
        "1024",
        "--iterations",
        "2",
        "--plot",
        str(tmp_path / "plot.png"),
    )
    assert set(record["slopes"]) == {"ours", "clusters", "pairwise"}
    assert (tmp_path / "plot.png").stat().st_size < 60_000


def test_extrapolation_is_of_the_records_that_are_there():
    record = run("extrapolate.py", "--samples", "1e8", "1e9")
    small, large = record["tables"]
    assert large["reduce_and_score_h"] == pytest.approx(10 * small["reduce_and_score_h"])
    assert small["feature_files"] == 390_625


def test_prepare_benchmark_runs():
    results = run("prepare.py", "--samples", "4")["results"]
    assert [result["samples"] for result in results] == [4, 4]
    assert all(result["payload_kib_per_sample"] > 336 * 336 * 3 / 1024 for result in results)


@pytest.mark.benchmark
@pytest.mark.cluster
def test_million_benchmark_runs():
    record = run("million.py", "--rows", "4000", "--dim", "8", "--ledger", "2000")
    assert record["selection"]["rows"] == 4000
    assert record["selection"]["chosen"] == 640
    assert (record["ledger"]["slices"], record["ledger"]["todo"], record["ledger"]["todo_half"]) == (2000, 0, 1000)
    assert record["ledger"]["moments_of"] == 2000


@pytest.mark.benchmark
@pytest.mark.cluster
def test_soak_benchmark_runs():
    record = run("soak.py", "--slices", "12", "--every", "0")
    assert (record["slices"], record["rejected"], record["objects"]) == (12, 0, 13)
    assert record["samples"][-1]["slices"] == 12
    assert record["driver_requests"]["listings"] <= 5
    assert any(sample["actors_mib"] and sample["actor_handles"] for sample in record["samples"])


@pytest.mark.benchmark
@pytest.mark.cluster
def test_input_benchmark_runs():
    small = ("--pictures", "32", "--copies", "2", "--store-copies", "1", "--only", "tar")
    results = run("input.py", *small, "--readers", "bare", "job")["results"]
    assert [(result["from"], result["reader"], result["samples"]) for result in results] == [
        ("disk", "bare", 64), ("disk", "job", 64), ("s3", "bare", 32), ("s3", "job", 32),
    ]  # fmt: skip


@pytest.mark.benchmark
@pytest.mark.cluster
def test_startup_benchmark_runs():
    record = run("startup.py", "--layers", "2", "--width", "64", "--repeat", "1", "--models", "large")
    found = record["runs"][0]
    steps = found["steps"]
    assert steps["config checked"] <= steps["Ray up"] <= steps["planned"] <= steps["the actor has its model"]
    assert steps["the actor has committed"] <= steps["first slice committed"]
    assert found["needed_mib"] < found["checkpoint_mib"]


@pytest.mark.benchmark
@pytest.mark.cluster
def test_storage_benchmark_runs(tmp_path):
    rows = json.loads((GOLDEN / "llava" / "samples.json").read_text())
    for number in range(2):
        records = [
            {
                **row,
                "id": str(row["id"]),
                "images": [{"bytes": (GOLDEN / "llava" / name).read_bytes(), "path": name} for name in row["images"]],
            }
            for row in rows[12 * number : 12 * number + 12]
        ]
        pq.write_table(pa.Table.from_pylist(records), tmp_path / f"{number}.parquet")
    script = Path(__file__).parents[1] / "benchmarks" / "storage.py"
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, env=environment, check=True
    )
    results = json.loads(done.stdout.splitlines()[-1])["results"]
    for name in ("disk", "s3"):
        assert [results[name][step]["extracted_slices"] for step in ("full", "before", "growth")] == [2, 1, 1]
    assert results["disk"]["full"]["requests"] == 0 < results["s3"]["full"]["requests"]


def test_quality_benchmark_runs_and_goes_on_from_what_is_done(shared, tmp_path):
    options = (
        "quality",
        str(shared / "data" / "nlvr"),
        "--small",
        "--out",
        str(tmp_path),
        "--chart",
        str(tmp_path / "chart.png"),
    )
    record = run(*options)
    assert {(one["method"], one["budget"]) for one in record["subsets"]} == {
        (method, budget)
        for method in ("ScalSelect", "all tokens", "random", "longest", "k-means")
        for budget in (0.1, 0.3)
    }
    assert len(record["results"]) == 2 * (1 + len(record["subsets"]))
    assert all(0 <= one["mean"] <= 1 for one in record["results"])
    assert record["whole"]["energy"] >= max(one["energy"] for one in record["subsets"])
    assert (tmp_path / "chart.png").stat().st_size
    trainings = (tmp_path / "trainings.jsonl").read_text()
    assert run(*options)["results"] == record["results"]
    assert (tmp_path / "trainings.jsonl").read_text() == trainings


def test_fuzzed_checkpoints_are_used_or_refused(tmp_path):
    options = ("--cases", "150", "--seed", "5", "--family", "llava", "qwen2_vl", "--keep", str(tmp_path))
    record = run("fuzz_checkpoints.py", *options)  # a finding is an exit code
    assert sum(record["outcomes"].values()) == 150
    assert min(record["outcomes"]["refused"], record["outcomes"]["represented"]) > 20


@pytest.mark.benchmark
@pytest.mark.cluster
def test_small_node_benchmark_runs():
    record = run("small_node.py", "--photos", "2", "--width", "400")
    assert record["same_features"]
    assert {found["exit"] for found in record["runs"].values()} == {0}
    assert all(found["largest_mib"]["driver"] > 0 for found in record["runs"].values())
