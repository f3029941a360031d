"""Prepared samples to representations, on one device (paper sections 3.2 and 3.3).

The samples of a batch stand one after the other in a single row of tokens, each with its own positions, and attention
is computed sample by sample: there is no padding, so none can be attended to and none is paid for."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import nn
from transformers import AttentionInterface, AutoImageProcessor

from scalselect_ray.corpus import Reason, SampleRejectedError
from scalselect_ray.vlm.checkpoint import Checkpoint, load_front, own_values
from scalselect_ray.vlm.families import Grid
from scalselect_ray.vlm.prepare import Prepared
from scalselect_ray.vlm.probe import attended, attention_output, attention_received

_CAPTURE = "scalselect_capture"


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


class _Projections(NamedTuple):
    query_HTD: torch.Tensor  # T = tokens of the batch
    key_KTD: torch.Tensor
    value_KTD: torch.Tensor
    scaling: float
    sliding_window: int | None


def _capture(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **settings: Any
) -> Any:
    """Stands in for an attention function: keeps queries, keys and values as the model's own code makes them."""
    module.captured = _Projections(query[0], key[0], value[0], settings["scaling"], settings.get("sliding_window"))  # type: ignore[assignment]
    return query.transpose(1, 2), None


AttentionInterface.register(_CAPTURE, _capture)


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
        self._model: Any = load_front(checkpoint, dtype, device)
        self._dtype = dtype
        with own_values(f"{checkpoint.folder}: the model has no decoder layer of the kind that is read"):
            text = self._model.language_model
            self._rotary, self._layer, self._embed = text.rotary_emb, text.layers[0], self._model.get_input_embeddings()
            self._output_projection = self._layer.self_attn.o_proj
            self._layer.self_attn.o_proj = nn.Identity()  # applied below, to the attended tokens only
            self._layer.self_attn.config._attn_implementation = _CAPTURE

    @property
    def dim(self) -> int:
        """E, the length of a feature."""
        return int(self._model.config.text_config.hidden_size)

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
        """The device is waited for twice: for the attention that decides which tokens go on, and for the features."""
        hidden_TE, projections = self._project(samples)
        spans = [
            range(stop - len(sample.input_ids), stop) for sample, stop in zip(samples, _stops(samples), strict=True)
        ]
        vision = [torch.from_numpy(np.flatnonzero(sample.vision)) for sample in samples]
        received = self._received(samples, projections, spans, vision)
        attended_rows = [
            vision_V[attended(received_V, self._threshold)]
            for vision_V, received_V in zip(vision, received, strict=True)
        ]

        contexts = []
        for span, rows_A in zip(spans, attended_rows, strict=True):
            query_HSD, key_KSD, value_KSD = (tensor[:, span.start : span.stop] for tensor in projections[:3])
            contexts.append(
                attention_output(query_HSD, key_KSD, value_KSD, rows_A, projections.scaling, projections.sliding_window)
            )
        # The rest of the layer works token by token: only the attended vision tokens go through it.
        positions = torch.cat([rows_A + span.start for span, rows_A in zip(spans, attended_rows, strict=True)])
        output_AE = hidden_TE[self._sent(positions)] + self._output_projection(torch.cat(contexts))
        output_AE = output_AE + self._layer.mlp(self._layer.post_attention_layernorm(output_AE))
        parts = output_AE.float().split([len(rows_A) for rows_A in attended_rows])
        features = torch.stack([part_AE.mean(dim=0) for part_AE in parts]).cpu().numpy()

        for sample, received_V, rows_A, feature in zip(samples, received, attended_rows, features, strict=True):
            if not (np.isfinite(feature).all() and received_V.isfinite().all()):
                yield SampleRejectedError(Reason.NON_FINITE, "the feature holds a NaN or an infinity")
                continue
            yield Representation(
                feature=feature,
                num_tokens=len(sample.input_ids),
                num_vision_tokens=int(sample.vision.sum()),
                num_query_tokens=int(sample.query.sum()),
                num_attended_tokens=len(rows_A),
            )

    @torch.inference_mode()
    def attention_maps(self, sample: Prepared, sizes: Sequence[tuple[int, int]]) -> list[AttentionMap]:
        """A map for each picture of a sample, given their (width, height); none where its tokens are not as the family
        has them. Tokens that lie on no picture are on no map."""
        _, projections = self._project([sample])
        vision_V = torch.from_numpy(np.flatnonzero(sample.vision))
        (received_V,) = self._received([sample], projections, [range(len(sample.input_ids))], [vision_V])
        kept_V = torch.zeros_like(vision_V, dtype=torch.bool)
        kept_V[attended(received_V, self._threshold)] = True
        on_image_V = sample.input_ids[vision_V.numpy()] == self._model.config.image_token_id
        received, kept = received_V.numpy()[on_image_V], kept_V.numpy()[on_image_V]
        positions = vision_V.numpy()[on_image_V]
        spans = [len(span) for span in np.split(positions, np.flatnonzero(np.diff(positions) > 1) + 1)]
        counts = spans if len(spans) == len(sizes) else [len(positions) // len(sizes)] * len(sizes)  # side by side: one
        maps, start = [], 0
        for index, (count, size) in enumerate(zip(counts, sizes, strict=True)):
            grids = self._family.grids(count, size, index, sample.images, self._image_processor, self._model.config)
            span = slice(start, start + count)
            if sum(grid.before + grid.tokens for grid in grids) > count:
                return []
            maps.append(on_picture(received[span], kept[span], grids))
            start += count
        return maps

    def _project(self, samples: Sequence[Prepared]) -> tuple[torch.Tensor, _Projections]:
        """The input of layer 0 (T, E), and what its attention makes of it."""
        hidden_TE = self._embeddings(samples)
        position_ids = self._sent(torch.from_numpy(np.concatenate([sample.position_ids for sample in samples], axis=1)))
        rotary = self._rotary(hidden_TE[None], position_ids if len(position_ids) == 1 else position_ids[:, None])
        self._layer.self_attn(
            self._layer.input_layernorm(hidden_TE[None]), position_embeddings=rotary, attention_mask=None
        )
        projections: _Projections = self._layer.self_attn.captured
        del self._layer.self_attn.captured
        return hidden_TE, projections

    def _embeddings(self, samples: Sequence[Prepared]) -> torch.Tensor:
        """The input of layer 0: text embeddings, with the projected image features in place of the placeholders.
        (T, E)."""
        input_ids = torch.from_numpy(np.concatenate([sample.input_ids for sample in samples]))
        positions = torch.nonzero(input_ids == self._model.config.image_token_id)[:, 0]
        hidden_TE = self._embed(self._sent(input_ids.clamp(max=self._embed.num_embeddings - 1)))
        hidden_TE[self._sent(positions)] = self._image_features(samples).to(hidden_TE.dtype)
        return cast(torch.Tensor, hidden_TE)

    def _image_features(self, samples: Sequence[Prepared]) -> torch.Tensor:
        """The projected image features of all samples, one after the other. Images that are one object pass the vision
        tower once."""
        distinct = list({id(sample.images): sample for sample in samples}.values())
        joined = self._family.collate([sample.images for sample in distinct])
        images = {name: self._sent(torch.from_numpy(array)) for name, array in joined.items()}
        images["pixel_values"] = self._family.all_frames(self._normalise(images["pixel_values"]), self._image_processor)
        features = torch.cat(tuple(self._model.get_image_features(**images, return_dict=True).pooler_output))
        if len(distinct) == len(samples):
            return features
        counts = [int((sample.input_ids == self._model.config.image_token_id).sum()) for sample in distinct]
        parts = dict(zip((id(sample.images) for sample in distinct), torch.split(features, counts), strict=True))
        return torch.cat([parts[id(sample.images)] for sample in samples])

    def _sent(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor on the device; the copy to a GPU goes on beside the work there."""
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def _normalise(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Bytes to floats, as the model's own image processor does it."""
        settings = self._image_processor
        view = self._family.pixels_as_channels(pixel_values, len(settings.image_mean))
        scaled = settings.rescale_and_normalize(
            view,
            settings.do_rescale,
            settings.rescale_factor,
            settings.do_normalize,
            settings.image_mean,
            settings.image_std,
        )
        return cast(torch.Tensor, scaled.reshape(pixel_values.shape).to(self._dtype))

    def _received(
        self,
        samples: Sequence[Prepared],
        projections: _Projections,
        spans: Sequence[range],
        vision: Sequence[torch.Tensor],
    ) -> list[torch.Tensor]:
        """The attention that each vision token of each sample receives, (V,) a sample, on the CPU."""
        received = []
        for sample, span, vision_V in zip(samples, spans, vision, strict=True):
            query_HSD, key_KSD = (tensor[:, span.start : span.stop] for tensor in projections[:2])
            query_Q = torch.from_numpy(np.flatnonzero(sample.query))
            received.append(
                attention_received(
                    query_HSD, key_KSD, query_Q, vision_V, projections.scaling, projections.sliding_window
                )
            )
        return list(torch.split(torch.cat(received).cpu(), [len(vision_V) for vision_V in vision]))


def on_picture(received_T: np.ndarray, attended_T: np.ndarray, grids: Sequence[Grid]) -> AttentionMap:
    """The tokens of one picture on the finest of their grids, where a cell adds up what it has in each."""
    finest = max(grids, key=lambda grid: grid.rows * grid.columns)
    shape = finest.rows, finest.columns
    received_RC, attended_RC, start = np.zeros(shape, np.float32), np.zeros(shape, bool), 0
    for grid in grids:
        span = slice(start + grid.before, start + grid.before + grid.tokens)
        within = np.ix_(np.arange(shape[0]) * grid.rows // shape[0], np.arange(shape[1]) * grid.columns // shape[1])
        rows = grid.rows, grid.columns + grid.newlines
        share = grid.rows * grid.columns / (shape[0] * shape[1])
        received_RC += share * received_T[span].reshape(rows)[:, : grid.columns][within]
        attended_RC |= attended_T[span].reshape(rows)[:, : grid.columns][within]
        start = span.stop
    return AttentionMap(received_RC, attended_RC, finest.box)


def _stops(samples: Sequence[Prepared]) -> list[int]:
    """Where each sample ends in the row of tokens of its batch."""
    return list(accumulate(len(sample.input_ids) for sample in samples))


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
