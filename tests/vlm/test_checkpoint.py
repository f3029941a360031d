"""A checkpoint as it is found: what it is called by, how it gets here, and what of it is believed."""

import shutil
from pathlib import Path

import pytest
from conftest import GOLDEN

from scalselect_ray.config import ExtractorConfig
from scalselect_ray.vlm.representer import description_of, id_of, preparing_of

MODEL = GOLDEN / "llava" / "model"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    shutil.copytree(MODEL, tmp_path / "model")
    return tmp_path / "model"


def test_the_id_of_an_extractor_is_that_of_version_0_1():
    """Features that are there are paid for: another id would have them extracted anew."""
    assert id_of(description_of(ExtractorConfig(model=str(MODEL), dtype="float32"))) == "73c444a66844a0dd"


@pytest.mark.parametrize("name", sorted(path.name for path in MODEL.iterdir() if path.suffix != ".safetensors"))
def test_a_change_of_a_description_file_changes_both_fingerprints(name, model):
    extractor = ExtractorConfig(model=str(model))
    before = preparing_of(extractor), id_of(description_of(extractor))
    (model / name).write_text((model / name).read_text() + " ")
    after = preparing_of(extractor), id_of(description_of(extractor))
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_preparing_is_the_same_with_other_weights(model):
    extractor = ExtractorConfig(model=str(model))
    before = preparing_of(extractor), id_of(description_of(extractor))
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    assert preparing_of(extractor) == before[0]
    assert id_of(description_of(extractor)) != before[1]
