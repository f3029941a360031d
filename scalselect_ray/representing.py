"""Samples to representations in this process, without Ray: for the Python interface, and to try a few samples before a run."""

from collections.abc import Sequence

import torch

from scalselect_ray.config import ExtractorConfig
from scalselect_ray.corpus import Reject, Sample, SampleRejectedError, load_images
from scalselect_ray.vlm import Extractor, Prepared, Preparer, Representation, open_checkpoint, share_images

_TOGETHER = 32  # samples whose pixels are in memory at once

Outcome = Representation | SampleRejectedError


class Representer:
    """Both halves of an extractor, CPU and device, one behind the other. Holds the model's front on a GPU where there is one."""

    def __init__(self, extractor: ExtractorConfig) -> None:
        checkpoint = open_checkpoint(extractor.model, extractor.revision)
        self._prepare = Preparer(
            checkpoint,
            tokens=extractor.tokens,
            max_length=extractor.max_length,
            min_pixels=extractor.min_pixels,
            max_pixels=extractor.max_pixels,
        )
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._extract = Extractor(
            checkpoint,
            dtype=getattr(torch, extractor.dtype),
            device=self.device,
            attention_threshold=extractor.attention_threshold,
            batch_tokens=extractor.batch_tokens,
        )

    @property
    def dim(self) -> int:
        """D, the length of a representation."""
        return self._extract.dim

    def __call__(self, samples: Sequence[Sample | Reject]) -> list[Outcome]:
        """One answer a sample, in order: its representation, or why it has none."""
        answers: list[Outcome] = []
        for start in range(0, len(samples), _TOGETHER):
            prepared = [self._prepared(sample) for sample in samples[start : start + _TOGETHER]]
            extracted = iter(self._extract(share_images(item for item in prepared if isinstance(item, Prepared))))
            answers += [next(extracted) if isinstance(item, Prepared) else item for item in prepared]
        return answers

    def _prepared(self, sample: Sample | Reject) -> Prepared | SampleRejectedError:
        if isinstance(sample, Reject):
            return SampleRejectedError(sample.reason, sample.message)
        try:
            return self._prepare(sample, load_images(sample.images))
        except SampleRejectedError as error:
            return error
