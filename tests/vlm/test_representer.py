"""Samples on which a model's own code fails, in whatever way."""

import json
import re

import numpy as np
import pytest
from conftest import GOLDEN

from scalselect_ray.config import ExtractorConfig
from scalselect_ray.corpus import Reason, Sample, SampleRejectedError, normalise, resolver
from scalselect_ray.errors import ModelError, StorageError
from scalselect_ray.testing import checkpoints
from scalselect_ray.vlm import Extractor, Prepared, Preparer, layers
from scalselect_ray.vlm.representer import Representer, make_preparer, prepare_sample

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


@pytest.mark.parametrize("text", ["word " * 400_000, "a" * 2_000_000, "é\n" * 1_000_000], ids=len)
def test_a_text_that_is_far_too_long_is_left_in_the_midst(text):
    """Of two million characters that may be 131,072 tokens no more than those are tokenized twice."""
    preparer = make_preparer(ExtractorConfig(model=str(FOLDER / "model"), max_length=131_072))
    answer = prepare_sample(preparer, sample_of(f"{text}x")).outcome
    assert isinstance(answer, SampleRejectedError)
    assert answer.reason == Reason.TOO_LONG
    first = int(re.search(r"the first are ([\d,]+) tokens", answer.message)[1].replace(",", ""))
    assert 2 * 131_072 < first < 3 * 131_072


def test_a_long_text_of_few_tokens_is_prepared():
    """The longest token of the vocabulary, again and again."""
    preparer = make_preparer(ExtractorConfig(model=str(FOLDER / "model"), max_length=3000))
    longest = max(preparer._processor.tokenizer.get_vocab(), key=len)
    text = longest.replace("\u0120", " ") * 2800
    tokens = len(preparer._processor.tokenizer(text, add_special_tokens=False)["input_ids"])
    answer = prepare_sample(preparer, sample_of(text)).outcome
    assert tokens < 2900, longest
    assert isinstance(answer, Prepared)


def sample_of(text: str) -> Sample:
    turns = [{"from": "human", "value": f"<image>\n{text}"}, {"from": "gpt", "value": "."}]
    return normalise(0, {"image": ROWS[0]["images"][0], "conversations": turns}, resolver(str(FOLDER)))


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_vl"])
def test_pixels_become_floats_piece_by_piece_to_the_same_bits(family, tmp_path, monkeypatch):
    checkpoints.MAKERS[family](tmp_path)
    represent = Representer(ExtractorConfig(model=str(tmp_path), dtype="float32"))
    whole = [answer.feature for answer in represent(SAMPLES)]
    monkeypatch.setattr(layers, "_PATCHES", 1 if family != "qwen2_vl" else 37)
    assert np.array_equal([answer.feature for answer in represent(SAMPLES)], whole)
