"""The benchmarks run, small, so that they never rot."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from conftest import GOLDEN


def run(script: str, *options: str) -> dict:
    """The record that a benchmark prints last."""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    command = [sys.executable, str(Path(__file__).parents[1] / "benchmarks" / script), *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, timeout=300, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_scaling_benchmark_runs():
    record = run("scaling.py", "--dim", "16", "--rows", "2000", "--steps", "2")
    assert [result["rows"] for result in record["results"]] == [2000, 4000]


def test_prepare_benchmark_runs():
    results = run("prepare.py", "--samples", "4")["results"]
    assert [result["samples"] for result in results] == [4, 4]
    assert all(result["payload_kib_per_sample"] > 336 * 336 * 3 / 1024 for result in results)


def test_million_benchmark_runs():
    record = run("million.py", "--rows", "4000", "--dim", "8", "--ledger", "2000")
    assert record["selection"]["rows"] == 4000
    assert record["selection"]["chosen"] == 640
    assert (record["ledger"]["slices"], record["ledger"]["todo"], record["ledger"]["todo_half"]) == (2000, 0, 1000)
    assert record["ledger"]["moments_of"] == 2000


def test_soak_benchmark_runs():
    record = run("soak.py", "--slices", "12", "--every", "0")
    assert (record["slices"], record["rejected"], record["objects"]) == (12, 0, 13)
    assert record["samples"][-1]["slices"] == 12
    assert record["driver_requests"]["listings"] <= 5
    assert any(sample["actors_mib"] and sample["actor_handles"] for sample in record["samples"])


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
    done = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, env=environment, check=True)
    results = json.loads(done.stdout.splitlines()[-1])["results"]
    for name in ("disk", "s3"):
        assert [results[name][step]["extracted_slices"] for step in ("full", "before", "growth")] == [2, 1, 1]
    assert results["disk"]["full"]["requests"] == 0 < results["s3"]["full"]["requests"]
