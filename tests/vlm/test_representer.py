"""Samples on which a model's own code fails, in whatever way."""

import json

import numpy as np
import pytest
from conftest import GOLDEN

from scalselect_ray.config import ExtractorConfig
from scalselect_ray.corpus import Reason, SampleRejectedError, normalise, resolver
from scalselect_ray.errors import ModelError, StorageError
from scalselect_ray.vlm import Extractor, Preparer
from scalselect_ray.vlm.representer import Representer, prepare_sample

FOLDER = GOLDEN / "llava"
ROWS = json.loads((FOLDER / "samples.json").read_text())[:3]
SAMPLES = [normalise(row, record, resolver(str(FOLDER))) for row, record in enumerate(ROWS)]


@pytest.fixture(scope="module")
def represent() -> Representer:
    return Representer(ExtractorConfig(model=str(FOLDER / "model"), dtype="float32"))


ERRORS = [KeyError("rope"), TypeError("NoneType"), AttributeError("x"), ZeroDivisionError(), MemoryError()]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_a_sample_on_which_the_processor_fails_is_rejected_alone(represent, monkeypatch, error):
    call = Preparer.__call__

    def fails(self, sample, images):
        if sample.row == 1:
            raise error
        return call(self, sample, images)

    whole = represent(SAMPLES)
    monkeypatch.setattr(Preparer, "__call__", fails)
    agree(represent(SAMPLES), whole)


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_a_sample_on_which_the_model_fails_is_rejected_alone(represent, monkeypatch, error):
    compute = Extractor._represent
    failing = prepare_sample(represent._prepare, SAMPLES[1]).outcome.input_ids

    def fails(self, samples):
        if any(np.array_equal(sample.input_ids, failing) for sample in samples):
            raise error
        return compute(self, samples)

    whole = represent(SAMPLES)
    monkeypatch.setattr(Extractor, "_represent", fails)
    agree(represent(SAMPLES), whole)


def agree(found, whole):
    """The same but for the second, which is rejected with what was raised."""
    assert isinstance(found[1], SampleRejectedError)
    assert found[1].reason == Reason.EXTRACTION_FAILED
    for one in (0, 2):
        np.testing.assert_allclose(found[one].feature, whole[one].feature, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("error", [StorageError("the store fails"), ModelError("no template")], ids=repr)
def test_what_is_no_fault_of_the_sample_rejects_none(represent, monkeypatch, error):
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(Preparer, "__call__", fails)
    with pytest.raises(type(error)):
        represent(SAMPLES)
