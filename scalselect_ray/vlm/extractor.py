"""Prepared samples to representations, on one device (paper sections 3.2 and 3.3)."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoImageProcessor

from scalselect_ray.corpus import Reason, SampleRejectedError
from scalselect_ray.vlm.attended_rows import AttendedRows, is_proven
from scalselect_ray.vlm.checkpoint import Checkpoint, load_front, own_values
from scalselect_ray.vlm.families import Grid, Picture
from scalselect_ray.vlm.layers import ImageInputs, LayerReader, vision_rows
from scalselect_ray.vlm.own_forward import OwnForward, decoder_layers
from scalselect_ray.vlm.prepare import Prepared
from scalselect_ray.vlm.probe import attended


@dataclass(frozen=True, slots=True)
class Representation:
    """What is kept of one sample."""

    feature: np.ndarray  # (E,) float32: mean of layer 0's output over the attended vision tokens
    num_tokens: int
    num_vision_tokens: int
    num_query_tokens: int
    num_attended_tokens: int


@dataclass(frozen=True, slots=True)
class AttentionMap:
    """What one picture of a sample is attended to. R, C = rows and columns of the picture's tokens."""

    received_RC: np.ndarray  # float32: share of the sample's attention
    attended_RC: np.ndarray  # bool: the tokens whose mean is the feature
    box: tuple[float, float, float, float]  # of the tokens on the picture: see `Grid`


class DeviceLostError(Exception):
    """The device fails whatever it is given, for as long as this process lives."""


class Extractor:
    """Holds the front of a model on a device. Costs its weights in memory, once."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        dtype: torch.dtype,
        device: torch.device,
        attention_threshold: float,
        batch_tokens: int,
    ) -> None:
        self._folder, self._family = checkpoint.folder, checkpoint.family
        self.device = device
        self._threshold = attention_threshold
        self._batch_tokens = batch_tokens
        with own_values(f"{checkpoint.folder}: the image processor cannot be loaded"):
            self._image_processor: Any = AutoImageProcessor.from_pretrained(
                checkpoint.folder, local_files_only=True, trust_remote_code=False
            )
        model: Any = load_front(checkpoint, dtype, device)
        self._config = model.config
        images = ImageInputs(self._family, self._image_processor, dtype, device)
        self._reader: LayerReader
        with own_values(f"{checkpoint.folder}: the model has no decoder layer of the kind that is read"):
            lean = self._family.bytes_travel and checkpoint.layer == 0 and is_proven(decoder_layers(model)[0])
            self._reader = AttendedRows(model, images) if lean else OwnForward(model, images, checkpoint.layer)

    @property
    def dim(self) -> int:
        """E, the length of a feature."""
        return int(self._config.get_text_config().hidden_size)

    def __call__(self, samples: Sequence[Prepared]) -> list[Representation | SampleRejectedError]:
        """One answer a sample, in order. A sample that fails on its own is answered by the reason.

        Images that are one object (see `share_images`) pass the vision tower once a batch: such samples are put side by
        side for it."""
        first: dict[int, int] = {}
        order = sorted(range(len(samples)), key=lambda index: first.setdefault(id(samples[index].images), index))
        answers: dict[int, Representation | SampleRejectedError] = {}
        for batch in batches([len(samples[index].input_ids) for index in order], self._batch_tokens):
            indices = order[batch.start : batch.stop]
            answers |= zip(indices, self._represent_all([samples[index] for index in indices]), strict=True)
        return [answers[index] for index in range(len(samples))]

    def try_on(self, sample: Prepared) -> None:
        """Raises ModelError where the model fails on a sample that any model can represent: it fails on every one."""
        with own_values(f"{self._folder}: no sample can be represented with this model"), suppress(DeviceLostError):
            (answer,) = self([sample])
            if isinstance(answer, SampleRejectedError) and answer.reason == Reason.EXTRACTION_FAILED:
                raise answer

    def _represent_all(self, samples: Sequence[Prepared]) -> list[Representation | SampleRejectedError]:
        """A failing batch is halved until the sample that fails stands alone: bad input, or too large for the
        device."""
        try:
            return list(self._represent(samples))
        except Exception as error:  # models raise what they like
            message = f"the model fails on this sample: {str(error) or type(error).__name__}"
        self._recover(message)  # not before the error is let go: its traceback holds the tensors of the batch
        if len(samples) == 1:
            return [SampleRejectedError(Reason.EXTRACTION_FAILED, message)]
        half = len(samples) // 2
        return self._represent_all(samples[:half]) + self._represent_all(samples[half:])

    def _recover(self, message: str) -> None:
        """Gives memory back. Raises DeviceLostError where it is not the batch that fails but the device, which then
        fails on everything: an assert or an illegal access in a kernel leaves a process nothing to compute with, and
        good samples would be rejected."""
        try:
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            torch.ones(1, device=self.device).item()
        except RuntimeError as error:
            raise DeviceLostError(
                f"{self.device} can compute nothing more in this process ({error}); before that, {message}"
            ) from error

    @torch.inference_mode()
    def _represent(self, samples: Sequence[Prepared]) -> Iterator[Representation | SampleRejectedError]:
        for sample, reading in zip(samples, self._reader.read(samples, self._threshold), strict=True):
            if not (np.isfinite(reading.feature_E).all() and reading.received_V.isfinite().all()):
                yield SampleRejectedError(Reason.NON_FINITE, "the feature holds a NaN or an infinity")
                continue
            yield Representation(
                feature=reading.feature_E,
                num_tokens=len(sample.input_ids),
                num_vision_tokens=int(sample.vision.sum()),
                num_query_tokens=int(sample.query.sum()),
                num_attended_tokens=len(reading.rows_A),
            )

    @torch.inference_mode()
    def attention_maps(self, sample: Prepared, sizes: Sequence[tuple[int, int]]) -> list[AttentionMap]:
        """A map for each picture of a sample, given their (width, height); none where its tokens are not as the family
        has them. Tokens that lie on no picture are on no map."""
        vision_V, received_V = vision_rows(sample), self._reader.received(sample)
        kept_V = torch.zeros_like(vision_V, dtype=torch.bool)
        kept_V[attended(received_V, self._threshold)] = True
        on_image_V = sample.input_ids[vision_V.numpy()] == self._config.image_token_id
        received, kept = received_V.numpy()[on_image_V], kept_V.numpy()[on_image_V]
        maps, start = [], 0
        for index, (count, size) in enumerate(zip(sample.picture_tokens, sizes, strict=True)):
            picture = Picture(count, size, index, sample.images, self._image_processor, self._config)
            grids = self._family.grids(picture)
            span = slice(start, start + count)
            if not grids or sum(grid.before + grid.tokens for grid in grids) > count:
                return []
            maps.append(on_picture(received[span], kept[span], grids))
            start += count
        return maps


def on_picture(received_T: np.ndarray, attended_T: np.ndarray, grids: Sequence[Grid]) -> AttentionMap:
    """The tokens of one picture on the finest of their grids, where a cell adds up what it has in each."""
    finest = max(grids, key=lambda grid: grid.rows * grid.columns)
    shape = finest.rows, finest.columns
    received_RC, attended_RC, start = np.zeros(shape, np.float32), np.zeros(shape, bool), 0
    for grid in grids:
        span = slice(start + grid.before, start + grid.before + grid.tokens)
        within = np.ix_(np.arange(shape[0]) * grid.rows // shape[0], np.arange(shape[1]) * grid.columns // shape[1])
        share = grid.rows * grid.columns / (shape[0] * shape[1])
        received_RC += share * _laid_out(received_T[span], grid)[within]
        attended_RC |= _laid_out(attended_T[span], grid)[within]
        start = span.stop
    return AttentionMap(received_RC, attended_RC, finest.box)


def _laid_out(values_T: np.ndarray, grid: Grid) -> np.ndarray:
    """The values of a grid's tokens where these lie, (rows, columns)."""
    down, across = grid.tiles
    tiles = values_T.reshape(down, across, grid.rows // down, grid.columns // across + grid.newlines)
    return tiles[..., : grid.columns // across].transpose(0, 2, 1, 3).reshape(grid.rows, grid.columns)


def batches(lengths: Sequence[int], batch_tokens: int) -> list[range]:
    """Consecutive samples with at most `batch_tokens` tokens in all, or a single longer sample."""
    found: list[range] = []
    start = total = 0
    for index, length in enumerate(lengths):
        if index > start and total + length > batch_tokens:
            found.append(range(start, index))
            start, total = index, 0
        total += length
    if start < len(lengths):
        found.append(range(start, len(lengths)))
    return found
