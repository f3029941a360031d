"""How a decoder layer is read: what each of the two ways gives of a sample, and what both are made of."""

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch

from scalselect_ray.vlm.families import Family
from scalselect_ray.vlm.prepare import Prepared

_PATCHES = 1 << 11  # of pictures of any size, or whole pictures, that are made floats at once


class Reading(NamedTuple):
    """What a layer says of one sample. V = its vision tokens, A = those attended to, E = hidden size."""

    received_V: torch.Tensor  # float32, on the CPU: share of the attention
    rows_A: torch.Tensor  # int64, on the CPU: tokens of the sample
    feature_E: np.ndarray  # float32: mean of the layer's output over them


class LayerReader(Protocol):
    """A model of which one decoder layer is read."""

    def read(self, samples: Sequence[Prepared], threshold: float) -> list[Reading]:
        """One answer a sample, in order. Raises whatever the model raises."""

    def received(self, sample: Prepared) -> torch.Tensor:
        """The attention that each vision token receives, (V,) on the CPU."""


class ImageInputs:
    """Brings the images of prepared samples to the device, as the model takes them."""

    def __init__(self, family: Family, image_processor: Any, dtype: torch.dtype, device: torch.device) -> None:
        self._family, self._image_processor = family, image_processor
        self._dtype, self._device = dtype, device

    def __call__(self, samples: Sequence[Prepared]) -> dict[str, torch.Tensor]:
        """The images of all samples, joined, by the names that the model has for them."""
        joined = self._family.collate([sample.images for sample in samples])
        images = {name: self.sent(torch.from_numpy(array)) for name, array in joined.items()}
        if not self._family.bytes_travel:
            return {
                name: tensor.to(self._dtype) if tensor.is_floating_point() else tensor
                for name, tensor in images.items()
            }
        images["pixel_values"] = self._floats(images["pixel_values"])
        return images

    def sent(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor on the device; the copy to a GPU goes on beside the work there."""
        if self._device.type != "cuda":
            return tensor.to(self._device)
        return tensor.pin_memory().to(self._device, non_blocking=True)

    def _floats(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What the vision tower takes of bytes, made piece by piece: of a photo it is hundreds of MB."""
        parts = (
            self._family.all_frames(self._normalise(part), self._image_processor)
            for part in torch.split(pixel_values, _PATCHES)
        )
        first = next(parts)
        if len(first) == len(pixel_values):
            return first
        floats = first.new_empty((len(pixel_values), *first.shape[1:]))
        start = 0
        for part in chain([first], parts):
            floats[start : start + len(part)] = part
            start += len(part)
        return floats

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


def vision_rows(sample: Prepared) -> torch.Tensor:
    """The vision tokens of a sample, (V,)."""
    return torch.from_numpy(np.flatnonzero(sample.vision))


def query_rows(sample: Prepared) -> torch.Tensor:
    """The query tokens of a sample, (Q,)."""
    return torch.from_numpy(np.flatnonzero(sample.query))
