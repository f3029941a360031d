"""A family that is read while its own forward runs, and a higher layer, through the whole job."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import GOLDEN, write_config
from forward_checkpoints import FORWARD_MAKERS

from scalselect_ray.cli import main
from scalselect_ray.config import ExtractorConfig
from scalselect_ray.corpus import normalise, resolver
from scalselect_ray.testing.checkpoints import MAKERS
from scalselect_ray.vlm.representer import Representer

pytestmark = pytest.mark.usefixtures("cluster")


ROWS = json.loads((GOLDEN / "llava" / "samples.json").read_text())[:12]


def test_features_of_other_families_and_layers_are_those_of_one_process_and_stand_apart(tmp_path):
    corpus = tmp_path / "rows.json"
    corpus.write_text(json.dumps(ROWS))
    source = {"name": "golden", "paths": [str(corpus)], "image_root": str(GOLDEN / "llava")}
    samples = [normalise(row, record, resolver(str(GOLDEN / "llava"))) for row, record in enumerate(ROWS)]
    seen: set[Path] = set()
    for name, layer in (("qwen2_5_vl", 0), ("qwen2_5_vl", 2), ("internvl", 0)):
        model = tmp_path / name
        if not model.exists():
            (MAKERS | FORWARD_MAKERS)[name](model)
        assert main(["run", str(write_config(tmp_path, [source], model)), f"extractor.layer={layer}"]) == 0
        (new,) = set((tmp_path / "output" / "features").iterdir()) - seen
        seen.add(new)
        features = pq.read_table(sorted(new.glob("*.parquet"))).sort_by("row")
        answers = Representer(ExtractorConfig(model=str(model), dtype="float32", layer=layer))(samples)
        expected = np.stack([answer.feature for answer in answers])
        np.testing.assert_allclose(np.array(features["feature"].to_pylist(), np.float32), expected, atol=1e-5)
