"""The Python interface: what `import scalselect_ray` offers."""

import doctest
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import GOLDEN
from mixed_corpus import ROWS, Selected
from PIL import Image
from records import record_of

import scalselect_ray
from scalselect_ray import api
from scalselect_ray.errors import ConfigError, ModelError

MODEL = scalselect_ray.ExtractorConfig(model=str(GOLDEN / "llava" / "model"), dtype="float32")


def features_of_run(mixed: Selected, source: str) -> dict[int, list[float]]:
    """What the run over the mixed corpus extracted, by row."""
    import pyarrow.parquet as pq

    tables = [pq.read_table(path) for path in sorted(mixed.output.glob("features/*/*.parquet"))]
    return {
        row["row"]: row["feature"]
        for table in tables
        for row in table.to_pylist()
        if row["source"] == source and row["feature"]
    }


@pytest.mark.heavy
def test_importing_the_package_imports_none_of_its_libraries():
    libraries = ("torch", "ray", "numpy", "transformers", "pyarrow")
    code = f"import sys, scalselect_ray; print([name for name in {libraries} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    assert {"leverage_scores", "represent", "AddFeatures", "run"} <= set(dir(scalselect_ray))
    with pytest.raises(AttributeError, match="has no attribute 'select'"):
        scalselect_ray.select  # noqa: B018


def test_the_examples_in_the_docstrings_come_out(cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(api, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.attempted >= 20
    assert found.failed == 0


@pytest.mark.parametrize(
    "settings",
    [{}, {"energy": 0.5}, {"standardize": True}, {"l2_normalize": True}, {"standardize": True, "l2_normalize": True}],
)
def test_scores_are_those_of_an_svd_of_all_features(settings: dict[str, Any]):
    features = np.random.default_rng(1).normal(size=(5000, 12)) @ np.random.default_rng(2).normal(size=(12, 12)) + 5
    scores = scalselect_ray.leverage_scores(features, **settings)
    centred = features - features.mean(axis=0)
    if settings.get("standardize"):
        centred /= features.std(axis=0)
    if settings.get("l2_normalize"):
        centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    k = int(np.searchsorted(np.cumsum(s**2) / np.sum(s**2), settings.get("energy", 0.9))) + 1
    np.testing.assert_allclose(scores, np.square(u[:, :k]).sum(axis=1), rtol=1e-8)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros(3), r"shape \(N, D\)"),
        (np.zeros((0, 3)), "at least one row"),
        (np.array([["a"]]), "must be numbers"),
        (np.where(np.arange(5000)[:, None] == 4321, np.nan, np.ones((5000, 2))), "row 4321 holds a NaN"),
    ],
)
def test_features_that_cannot_be_scored_are_refused(features: np.ndarray, message: str):
    with pytest.raises(ValueError, match=message):
        scalselect_ray.leverage_scores(features)
    with pytest.raises(ValueError, match="energy is 90"):
        scalselect_ray.leverage_scores(np.eye(3), energy=90)


def test_representations_are_those_of_a_run(mixed: Selected):
    expected = features_of_run(mixed, "parquet")
    samples = []
    for row in ROWS[:6]:
        pictures = [Image.open(GOLDEN / "llava" / name) for name in row["images"]]
        samples.append({**row, "images": pictures})  # as the pictures, and ...
        samples.append(row)  # as paths
    features = scalselect_ray.represent(MODEL, samples, image_root=GOLDEN / "llava")
    assert features.dtype == np.float32
    for place, feature in enumerate(features):
        np.testing.assert_allclose(feature, expected[place // 2], rtol=1e-5, atol=1e-6)


def test_a_sample_that_cannot_be_used_is_named():
    with pytest.raises(ValueError, match=r"samples\[1\] cannot be used: image_refused: .*no image root"):
        scalselect_ray.represent(
            MODEL, [{**ROWS[0], "images": [image_bytes(name) for name in ROWS[0]["images"]]}, ROWS[1]]
        )
    with pytest.raises(ConfigError, match=r"attention_threshold is 5"):
        scalselect_ray.represent(scalselect_ray.ExtractorConfig(model="x", attention_threshold=5), [])
    with pytest.raises(ConfigError, match="dtype"):
        scalselect_ray.represent(scalselect_ray.ExtractorConfig(model="x", dtype="float8"), [])  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="no such folder: nowhere"):
        scalselect_ray.represent("nowhere", [])


def image_bytes(name: str) -> bytes:
    return (GOLDEN / "llava" / name).read_bytes()


@pytest.mark.parametrize("batch_format", ["numpy", "pyarrow"])
def test_a_data_set_of_ray_gets_features_and_reasons(mixed: Selected, batch_format: str):
    import ray

    structs = [
        {**row, "images": [{"bytes": image_bytes(name), "path": None} for name in row["images"]]} for row in ROWS[:6]
    ]
    structs[2]["images"] = [{"bytes": b"no picture", "path": None}] * len(structs[2]["images"])
    dataset = ray.data.from_arrow(pa.Table.from_pylist(structs))
    added = dataset.map_batches(
        scalselect_ray.AddFeatures, fn_constructor_args=(MODEL,), batch_size=4, concurrency=1, batch_format=batch_format
    )
    rows = {row["id"]: row for row in added.take_all()}
    expected = features_of_run(mixed, "parquet")
    for place, struct in enumerate(structs):
        row = rows[struct["id"]]
        if place == 2:
            assert row["reject"] == "image_unreadable"
            assert row["feature"] is None or np.isnan(row["feature"]).all()
        else:
            assert row["reject"] is None
            np.testing.assert_allclose(row["feature"], expected[place], rtol=1e-5, atol=1e-6)


def test_a_run_takes_a_path_a_dict_or_a_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    seen: list[Any] = []
    monkeypatch.setattr("scalselect_ray.commands.run.run", lambda config, console: seen.append(config) or record_of())
    given = {
        "corpus": {"sources": [{"name": "a", "paths": [tmp_path / "a.json"]}]},
        "extractor": {"model": "owner/model"},
        "selection": {"budget": 0.5},
        "output": tmp_path / "out",
    }
    text = json.dumps(given, default=str)
    (tmp_path / "config.yaml").write_text(text)
    for config in (given, tmp_path / "config.yaml", str(tmp_path / "config.yaml")):
        scalselect_ray.run(config, ["selection.budget=7"])
    scalselect_ray.run(seen[0])
    assert seen[0].selection.budget == 7
    assert all(config == seen[0] for config in seen)
    with pytest.raises(ConfigError, match=r"selection\.budget is -1"):
        scalselect_ray.run(given, ["selection.budget=-1"])


def test_a_picture_in_memory_is_seen_as_it_is():
    picture = Image.effect_mandelbrot((40, 30), (-2, -1.5, 1, 1.5), 50).convert("RGB")
    sink = io.BytesIO()
    picture.save(sink, "PNG")
    turns = [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "A set."}]
    a, b = scalselect_ray.represent(
        MODEL, [{"image": value, "conversations": turns} for value in (picture, sink.getvalue())]
    )
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
