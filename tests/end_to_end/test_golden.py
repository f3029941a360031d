"""The golden corpora through the whole job, by its command line."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import GOLDEN, write_config

from scalselect_ray.cli import main

pytestmark = pytest.mark.usefixtures("cluster")

SETTINGS = {
    "": [],
    "_energy_99": ["subspace.energy=0.99"],
    "_standardized_l2": ["subspace.standardize=true", "subspace.l2_normalize=true"],
}


def latest(output: Path) -> tuple[Path, dict]:
    folder = output / "runs" / json.loads((output / "latest.json").read_text())["run_id"]
    return folder, json.loads((folder / "run.json").read_text())


def check(corpus: Path, model: Path, folder: Path) -> None:
    expected = np.load(corpus / "expected.npz")
    count = len(expected["scores"])
    config = write_config(folder, [{"name": "golden", "paths": [str(corpus / "samples.json")]}], model)
    budgets = 0.05, 0.16, 0.5, 1.0, 3
    for tag, overrides in SETTINGS.items():
        assert main(["run", str(config), *overrides, f"selection.budget={list(budgets)}"]) == 0
        run, record = latest(folder / "output")
        scores = pq.read_table(run / "scores").sort_by("row")["score"].to_numpy()
        np.testing.assert_allclose(scores, expected[f"scores{tag}"], rtol=1e-5)
        assert record["k"] == expected[f"k{tag}"]
        assert scores.sum() == pytest.approx(record["k"])
        manifest = pq.read_table(run / "manifest").sort_by("rank")
        assert manifest["row"].to_pylist() == np.argsort(-expected[f"scores{tag}"], kind="stable").tolist()
        assert manifest["rank"].to_pylist() == list(range(1, count + 1))
        sizes = [int(budget * count) if budget <= 1 else budget for budget in budgets]
        assert list(record["budgets"].values()) == sizes
        assert (record["slices"]["extracted"] > 0) == (tag == ""), "another subspace must extract nothing"
        assert (record["slices"]["moments_reused"] == 0) == (tag == "")
    store = next((folder / "output" / "features").iterdir())
    features = pq.read_table(sorted(store.glob("*.parquet"))).sort_by("row")
    x = np.array(features["feature"].to_pylist(), dtype=np.float32)
    np.testing.assert_allclose(x, expected["representations"], atol=1e-5)
    for name in ("num_vision_tokens", "num_query_tokens", "num_attended_tokens"):
        assert features[name].to_pylist() == expected[name].tolist()


@pytest.mark.parametrize("name", ["llava", "qwen3"])
def test_golden_corpus_that_comes_with_the_project(name, tmp_path):
    check(GOLDEN / name, GOLDEN / name / "model", tmp_path)


@pytest.mark.parametrize("name", ["llava", "qwen3"])
def test_golden_corpus(name, tmp_path, shared):
    check(shared / "golden" / name, shared / "golden" / name / "model", tmp_path)
