"""An extractor from its config: its two halves, its id, and both halves in one process, without Ray."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from scalselect_ray.config import ExtractorConfig
from scalselect_ray.corpus import (
    ImageRef,
    Reason,
    Reject,
    Sample,
    SampleRejectedError,
    fetched_images,
    images_digest,
    open_images,
)
from scalselect_ray.errors import ScalSelectError
from scalselect_ray.io.machine import total_memory
from scalselect_ray.vlm import (
    Checkpoint,
    Extractor,
    Prepared,
    Preparer,
    Representation,
    check_tensors,
    description_fingerprint,
    earlier_fingerprint,
    fingerprint,
    front_bytes,
    open_checkpoint,
    share_images,
)
from scalselect_ray.vlm.families import Family
from scalselect_ray.vlm.pixels import PixelBudget

_DECODED = PixelBudget(16 << 20)  # of one process, whatever the number of its threads: a photo at a time
_FRONT_SHARE = 4  # of this machine's memory a model's front may take a fourth to be tried
_PUBLISHED_PIXELS, _PUBLISHED_LENGTH = (262_144, 589_824), 4096
_TOGETHER = 32  # samples whose pixels are in memory at once

Outcome = Representation | SampleRejectedError


def checkpoint_of(extractor: ExtractorConfig, *, weights: bool = True) -> Checkpoint:
    """The checkpoint of an extractor, with its weights here or without. Raises ModelError."""
    return open_checkpoint(extractor.model, extractor.revision, layer=extractor.layer, weights=weights)


def make_preparer(extractor: ExtractorConfig) -> Preparer:
    """The half that needs no device. Raises ModelError."""
    checkpoint = checkpoint_of(extractor, weights=False)
    settings = _as_published(extractor, checkpoint.family) if extractor.preset == "published" else extractor
    return Preparer(
        checkpoint,
        tokens=settings.tokens,
        max_length=settings.max_length,
        min_pixels=settings.min_pixels,
        max_pixels=settings.max_pixels,
        images_first=settings.images == "first",
        as_published=settings.preset == "published",
    )


def _as_published(extractor: ExtractorConfig, family: Family) -> ExtractorConfig:
    """The settings of the code published with the paper, where none is set."""
    lowest, highest = _PUBLISHED_PIXELS if family.vision_marks else (None, None)  # Qwen-VL
    return replace(
        extractor,
        images="first",
        max_length=extractor.max_length or _PUBLISHED_LENGTH,
        min_pixels=extractor.min_pixels or lowest,
        max_pixels=extractor.max_pixels or highest,
    )


def make_extractor(extractor: ExtractorConfig) -> Extractor:
    """The half that holds the model's front, on a GPU where there is one. Raises ModelError."""
    made = Extractor(
        checkpoint_of(extractor),
        dtype=getattr(torch, extractor.dtype),
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        attention_threshold=extractor.attention_threshold,
        batch_tokens=extractor.batch_tokens,
    )
    if sample := make_preparer(extractor).made_up():
        made.try_on(sample)
    return made


def try_model(extractor: ExtractorConfig, preparer: Preparer) -> None:
    """Represents one made-up sample on this machine's CPU, so that a model that can represent none is told before
    anything is paid. Where memory is short for its front, only the names and sizes of its tensors are looked at. Raises
    ModelError."""
    checkpoint = checkpoint_of(extractor)
    check_tensors(checkpoint)
    dtype = torch.bfloat16 if extractor.dtype == "float16" else getattr(torch, extractor.dtype)  # see `slow_on_cpu`
    sample = preparer.made_up()
    if sample is None or _FRONT_SHARE * front_bytes(checkpoint, dtype) > total_memory():
        return
    Extractor(
        checkpoint,
        dtype=dtype,
        device=torch.device("cpu"),
        attention_threshold=extractor.attention_threshold,
        batch_tokens=extractor.batch_tokens,
    ).try_on(sample)


def slow_on_cpu(extractor: ExtractorConfig) -> str | None:
    """What to say of the extractor where there is no GPU for it."""
    if extractor.dtype != "float16":
        return None
    return (
        "extractor.dtype: float16 on a CPU takes about 20 times as long as bfloat16, and no GPU is here: set bfloat16 "
        "or float32 (features of another dtype are features of their own), or run where there are GPUs"
    )


def description_of(extractor: ExtractorConfig) -> dict[str, Any]:
    """All that changes a feature. Reads the needed tensors of the model once, to know them. Raises ModelError."""
    checkpoint = checkpoint_of(extractor)
    return {"weights": fingerprint(checkpoint), "settings": _settings(extractor, checkpoint), "format": 3}


def earlier_id(extractor: ExtractorConfig) -> str:
    """The id that versions 0.1 and 0.2 gave the extractor. Reads the needed tensors once. Raises ModelError."""
    checkpoint = checkpoint_of(extractor)
    weights = earlier_fingerprint(checkpoint)
    return id_of({"weights": weights, "settings": _settings(extractor, checkpoint), "format": 2})


def _settings(extractor: ExtractorConfig, checkpoint: Checkpoint) -> dict[str, Any]:
    return extractor.feature_settings() | ({"layer": checkpoint.layer} if checkpoint.layer else {})


def preparing_of(extractor: ExtractorConfig) -> str:
    """A hash of what a `Preparer` is made of in the model's folder. Reads no weights. Raises ModelError."""
    return description_fingerprint(checkpoint_of(extractor, weights=False))


def id_of(description: dict[str, Any]) -> str:
    """The id of an extractor: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]


class PreparedSample(NamedTuple):
    """What was made of a sample, and what is known of its encoded images."""

    outcome: Prepared | SampleRejectedError
    image_bytes: int = 0
    images_digest: str | None = None
    """None where it has no images, or they could not be fetched."""


class FetchedSample(NamedTuple):
    """A sample with the bytes of its images at hand, still encoded, or why it cannot be used."""

    sample: Sample | Reject
    images: list[ImageRef] | SampleRejectedError


def fetch_sample(sample: Sample | Reject) -> FetchedSample:
    """The first half of `prepare_sample`, which waits for stores and disks. Raises CorpusError, StorageError."""
    if isinstance(sample, Reject):
        return FetchedSample(sample, SampleRejectedError(sample.reason, sample.message))
    try:
        return FetchedSample(sample, fetched_images(sample.images))
    except Exception as error:  # clients of stores raise what they like
        return FetchedSample(sample, _reject_of(error, "its images cannot be fetched"))


def prepare_fetched(preparer: Preparer, fetched: FetchedSample) -> PreparedSample:
    """The other half, which takes processor time and memory."""
    sample, images = fetched
    if isinstance(images, SampleRejectedError):
        return PreparedSample(images)
    assert isinstance(sample, Sample), "a reject has no images"
    data = [image.data or b"" for image in images]
    size, digest = sum(map(len, data)), images_digest(data) if data else None
    try:
        opened = open_images(images)
        with _DECODED.taken(opened.pixels):
            return PreparedSample(preparer(sample, opened.decode()), size, digest)
    except Exception as error:  # processors and templates raise what they like
        return PreparedSample(_reject_of(error, "the model's processor fails on this sample"), size, digest)


def _reject_of(error: Exception, what: str) -> SampleRejectedError:
    """What an error makes of its sample. Raises it where it is no sample's."""
    if isinstance(error, SampleRejectedError):
        return error
    if isinstance(error, ScalSelectError):
        raise error
    if isinstance(error, MemoryError):
        return SampleRejectedError(Reason.EXTRACTION_FAILED, "there is not enough memory to prepare this sample")
    return SampleRejectedError(Reason.EXTRACTION_FAILED, f"{what}: {type(error).__name__}: {error}")


def prepare_sample(preparer: Preparer, sample: Sample | Reject) -> PreparedSample:
    """The sample as the model takes it, or why it cannot be used."""
    return prepare_fetched(preparer, fetch_sample(sample))


class Representer:
    """Both halves of an extractor, one after the other: for the Python interface, and to try a few samples before a
    run."""

    def __init__(self, extractor: ExtractorConfig) -> None:
        self._prepare = make_preparer(extractor)
        self._extract = make_extractor(extractor)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._extract.device

    @property
    def dim(self) -> int:
        """D, the length of a representation."""
        return self._extract.dim

    def __call__(self, samples: Sequence[Sample | Reject]) -> list[Outcome]:
        """One answer a sample, in order: its representation, or why it has none."""
        answers: list[Outcome] = []
        for start in range(0, len(samples), _TOGETHER):
            prepared = [prepare_sample(self._prepare, sample).outcome for sample in samples[start : start + _TOGETHER]]
            extracted = iter(self._extract(share_images(item for item in prepared if isinstance(item, Prepared))))
            answers += [next(extracted) if isinstance(item, Prepared) else item for item in prepared]
        return answers
