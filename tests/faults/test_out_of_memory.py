"""Memory that does not suffice, on a device or for one sample, and a device that fails: who pays for it."""

import weakref
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from ray.exceptions import OutOfMemoryError, RayTaskError, WorkerCrashedError

from scalselect_ray.cluster.session import own_errors
from scalselect_ray.config import ExtractorConfig
from scalselect_ray.corpus import SampleRejectedError, plan_file
from scalselect_ray.corpus.planning import CorpusFile
from scalselect_ray.corpus.reading import read_slices
from scalselect_ray.errors import ClusterError
from scalselect_ray.io.storage import stat
from scalselect_ray.vlm import DeviceLostError, Extractor, Prepared, Representation, open_checkpoint
from scalselect_ray.vlm.representer import make_preparer, prepare_sample

pytestmark = pytest.mark.heavy

CORPUS, MODEL = GOLDEN / "llava", GOLDEN / "llava" / "model"
SETTINGS = ExtractorConfig(model=str(MODEL), dtype="float32")


def rows(name: str = "samples.json") -> list:
    """The samples of the golden corpus, prepared as a task does it."""
    file = CorpusFile("golden", stat(str(CORPUS / name)), str(CORPUS), 100, 1 << 26)
    preparer = make_preparer(SETTINGS)
    return [
        prepare_sample(preparer, sample).outcome for _, samples in read_slices(plan_file(file)) for sample in samples
    ]


@pytest.fixture(scope="module")
def prepared() -> list[Prepared]:
    return rows()


@pytest.fixture
def extractor() -> Extractor:
    return Extractor(
        open_checkpoint(str(MODEL)),
        dtype=torch.float32,
        device=torch.device("cpu"),
        attention_threshold=0.9,
        batch_tokens=1 << 20,
    )


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), MemoryError()])
def test_a_batch_too_large_for_memory_is_halved_until_each_sample_fits_or_stands_alone(
    error, extractor, prepared, monkeypatch
):
    expected = extractor(prepared)
    longest = max(len(sample.input_ids) for sample in prepared)
    tried = []

    def limited(samples):
        tried.append(len(samples))
        if sum(len(sample.input_ids) for sample in samples) >= longest:
            raise error
        return represent(samples)

    represent = extractor._represent
    monkeypatch.setattr(extractor, "_represent", limited)
    answers = extractor(prepared)
    assert tried[:2] == [len(prepared), len(prepared) // 2]
    for sample, answer, other in zip(prepared, answers, expected, strict=True):
        if len(sample.input_ids) == longest:
            assert isinstance(answer, SampleRejectedError)
            assert answer.reason == "extraction_failed"
            assert type(error).__name__ in answer.message or "out of memory" in answer.message
        else:
            assert isinstance(answer, Representation)
            np.testing.assert_allclose(answer.feature, other.feature, atol=1e-6)


def test_memory_of_the_device_is_given_back_before_the_next_try(extractor, prepared, monkeypatch):
    """The tensors of the failed batch are let go first: else there would be nothing to give back."""
    happened: list[object] = []
    held: list[weakref.ref] = []

    def too_large(samples):
        batch = torch.zeros(len(samples))
        held.append(weakref.ref(batch))
        happened.append(len(samples))
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(extractor, "_represent", too_large)
    monkeypatch.setattr(extractor, "device", mock.Mock(type="cuda"))
    monkeypatch.setattr(torch, "ones", mock.Mock())
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: happened.append(["emptied", *(ref() for ref in held)]))
    assert len(extractor(prepared[:2])) == 2
    assert happened == [2, ["emptied", None], 1, ["emptied", None, None], 1, ["emptied", None, None, None]]


def test_a_device_that_fails_on_everything_rejects_nothing(extractor, prepared, monkeypatch):
    error = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(extractor, "_represent", fail)
    answers = extractor(prepared[:2])
    assert [answer.reason for answer in answers] == ["extraction_failed"] * 2, (
        "the device still works: it is the samples"
    )
    monkeypatch.setattr(torch, "ones", fail)
    with pytest.raises(DeviceLostError, match="illegal memory access"):
        extractor(prepared[:2])


def test_a_sample_too_large_to_prepare_is_rejected_alone(monkeypatch):
    preparer = type(make_preparer(SETTINGS))
    prepare = preparer.__call__

    def limited(self, sample, images):
        if sample.row == 3:
            raise MemoryError
        return prepare(self, sample, images)

    monkeypatch.setattr(preparer, "__call__", limited)
    outcomes = rows()
    assert [place for place, outcome in enumerate(outcomes) if isinstance(outcome, SampleRejectedError)] == [3]
    assert outcomes[3].reason == "extraction_failed"
    assert "memory" in outcomes[3].message


def test_a_picture_too_large_to_decode_is_rejected_alone(monkeypatch):
    def limited(picture):
        raise MemoryError

    monkeypatch.setattr("scalselect_ray.corpus.decoding.as_rgb", limited)
    assert {outcome.reason for outcome in rows()} == {"image_unreadable"}


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OutOfMemoryError("Task was killed due to the node running low on memory.\n\nRefer to a page."), "more memory"),
        (WorkerCrashedError(), "Ray's logs"),
        (RayTaskError("task", "trace", OutOfMemoryError("killed")), "more memory"),
    ],
)
def test_what_ray_says_of_its_processes_becomes_a_message(error, words):
    with pytest.raises(ClusterError, match="lost again and again") as raised, own_errors():
        raise error
    assert words in str(raised.value)
    assert "Refer to" not in str(raised.value)
    assert raised.value.exit_code == 1


def test_an_error_in_our_own_code_stays_what_it_is():
    with pytest.raises(RayTaskError), own_errors():
        raise RayTaskError("task", "trace", KeyError("x"))
