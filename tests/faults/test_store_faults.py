"""An object store that fails once on each request for what a run writes and lists, in every stage."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import GOLDEN, write_config

from scalselect_ray.cli import main
from scalselect_ray.io import storage
from scalselect_ray.testing import object_store

pytestmark = pytest.mark.usefixtures("cluster")

CORPUS, MODEL = GOLDEN / "llava", GOLDEN / "llava" / "model"
STAGES = [
    "features",
    "moments",
    "subspace.safetensors",
    "scores",
    "manifest",
    "rejects.parquet",
    "config.yaml",
    "run.json",
    "latest.json",
]


def read(folder: str) -> pa.Table:
    return pa.concat_tables(
        pq.read_table(pa.BufferReader(storage.read_bytes(f"{folder}/{name}"))) for name in storage.list_names(folder)
    )


def results(output: str) -> tuple[pa.Table, pa.Table]:
    run = f"{output}/runs/{json.loads(storage.read_bytes(f'{output}/latest.json'))['run_id']}"
    return read(f"{run}/scores"), read(f"{run}/manifest")


def test_each_request_for_the_output_may_fail_once(tmp_path: Path, s3: object_store.ObjectStore):
    s3.clear()
    sources = [{"name": "golden", "paths": [str(CORPUS / "samples.json")]}]
    config = str(write_config(tmp_path, sources, MODEL, output="s3://bucket/each/well"))
    assert main(["run", config]) == 0
    expected = results("s3://bucket/each/well")
    kinds = ["500", "503", "reset", "cut"]
    failed: dict[tuple[str, str], str] = {}

    def once(method: str, path: str) -> str | None:
        """The first time that a request for the output, or a listing of it, is seen."""
        if "each/unwell" not in path.replace("%2F", "/") or (method, path) in failed:
            return None
        return failed.setdefault((method, path), kinds[len(failed) % len(kinds)])

    s3.fault = once
    assert main(["run", config, "output=s3://bucket/each/unwell"]) == 0
    s3.clear()
    for scores, others in zip(results("s3://bucket/each/unwell"), expected, strict=True):
        assert scores.equals(others)
    written = " ".join(path for method, path in failed if method == "PUT")
    assert not [stage for stage in STAGES if f"/{stage}" not in written]
    assert [path for method, path in failed if method == "GET" and "list-type" in path]
    assert set(failed.values()) == set(kinds)
