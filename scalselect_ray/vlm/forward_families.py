"""Families that are read while the model's own forward runs (`own_forward.py`): all that their processor makes travels,
and what is left to say is where an image's tokens lie on it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from scalselect_ray.vlm.families import AnyResolutionFamily, Arrays, Family, Grid, Picture, QwenFamily, Tensors
from scalselect_ray.vlm.texts import Rendering

_TEXT_INPUTS = ("input_ids", "attention_mask", "offset_mapping")


@dataclass(frozen=True, slots=True)
class ForwardFamily(Family):
    """A family of which it is not known where the tokens of an image lie."""

    image_inputs: tuple[str, ...] = ()
    bytes_travel: bool = False

    def processor_values(self, config: Any) -> dict[str, Any]:
        return {}

    def template_name(self, config: Any, tokenizer: Any) -> str | None:
        return None

    def images_argument(self, images: Sequence[Any]) -> Any:
        return [list(images)]  # nested: these images belong to one sample

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        tensors = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
        return {  # numpy has no bfloat16
            name: (value.float() if value.is_floating_point() else value).numpy()
            for name, value in tensors.items()
            if name not in _TEXT_INPUTS
        }

    def position_ids(self, model: Any, inputs: Tensors) -> torch.Tensor:
        """None: the model's own forward counts them."""
        return torch.empty((0, inputs["input_ids"].shape[-1]), dtype=torch.int64)

    def collate(self, samples: Sequence[Arrays]) -> dict[str, np.ndarray]:
        (sample,) = samples  # they pass one by one
        return {name: np.array(array) for name, array in sample.items()}

    def grids(self, picture: Picture) -> list[Grid]:
        return []


@dataclass(frozen=True, slots=True)
class WholeFamily(ForwardFamily):
    """Gemma 3: the whole picture, stretched to a square. Its crops, where pan and scan is on, lie nowhere."""

    def grids(self, picture: Picture) -> list[Grid]:
        side = math.isqrt(picture.config.mm_tokens_per_image)
        return [Grid(side, side)]


@dataclass(frozen=True, slots=True)
class PaddedFamily(ForwardFamily):
    """DeepSeek-VL: the whole picture in the middle of a square."""

    def grids(self, picture: Picture) -> list[Grid]:
        side = math.isqrt(picture.tokens)
        across, down = ((max(picture.size) / edge - 1) / 2 for edge in picture.size)
        return [Grid(side, side, (-across, -down, 1 + across, 1 + down))]


@dataclass(frozen=True, slots=True)
class TiledFamily(ForwardFamily):
    """InternVL, Idefics3, Ovis2 and their like: the tiles of a picture, row by row, and the whole picture as one more,
    last or first; a small picture is but one tile. A tile has a square of tokens."""

    shrunk_by: Callable[[Any], float] = lambda config: 1.0
    """Patches of the tower along a side of which the projector makes one token, by the model's config."""

    whole_first: bool = False

    def grids(self, picture: Picture) -> list[Grid]:
        image, patch = (np.max(getattr(picture.config.vision_config, name)) for name in ("image_size", "patch_size"))
        side = round(int(image) // int(patch) / self.shrunk_by(picture.config))
        whole, count = Grid(side, side), picture.tokens // (side * side) - 1
        if count < 1:
            return [whole]
        shapes = [(rows, count // rows) for rows in range(1, count + 1) if count % rows == 0]
        aspect = picture.size[0] / picture.size[1]
        rows, columns = min(shapes, key=lambda shape: abs(math.log(shape[1] / shape[0] / aspect)))
        tiled = Grid(rows * side, columns * side, tiles=(rows, columns))
        return [whole, tiled] if self.whole_first else [tiled, whole]


@dataclass(frozen=True, slots=True)
class PixtralFamily(ForwardFamily):
    """Mistral 3: a picture of any shape, a token that is no placeholder after each row."""

    def grids(self, picture: Picture) -> list[Grid]:
        step = picture.config.vision_config.patch_size * picture.config.spatial_merge_size
        height, width = picture.inputs["image_sizes"][picture.index]
        return [Grid(int(height) // step, int(width) // step)]


@dataclass(frozen=True, slots=True)
class PaliGemmaFamily(ForwardFamily):
    """PaliGemma: the images, one question, and one answer, which alone is not looked at by what stands before it."""

    def template_name(self, config: Any, tokenizer: Any) -> str | None:
        return "paligemma"

    def process(self, processor: Any, rendered: Rendering, images: Sequence[Any], **settings: Any) -> Mapping[str, Any]:
        """The processor itself puts `<bos>` and a line break into the text, which the template has written already; as
        it does, question and answer are tokenized apart."""
        full, expansions = _expanded(rendered.text, processor.image_token, processor.image_seq_length)
        border = len(full) - len(rendered.text) + rendered.ranges["assistant"][0].start
        parts = [
            processor.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            for text in (full[:border], full[border:])
        ]
        ids = [number for part in parts for number in part["input_ids"]]
        places = [
            (start + shift, stop + shift)
            for part, shift in zip(parts, (0, border), strict=True)
            for start, stop in part["offset_mapping"]
        ]
        kinds = [kind for kind, part in enumerate(parts) for _ in part["input_ids"]]
        pictures = processor.image_processor(list(images), return_tensors="pt", **settings["images_kwargs"])
        return {
            "input_ids": torch.tensor([ids]),
            "token_type_ids": torch.tensor([kinds]),
            "offset_mapping": [places],
            "text_replacement_offsets": [expansions],
            **pictures,
        }

    def grids(self, picture: Picture) -> list[Grid]:
        side = math.isqrt(picture.tokens)
        return [Grid(side, side)]


def _expanded(text: str, placeholder: str, count: int) -> tuple[str, list[dict[str, Any]]]:
    """The text with `count` placeholders for each, and where each came to stand, as processors of transformers tell
    it."""
    pieces, expansions, grown = text.split(placeholder), [], len(placeholder) * (count - 1)
    at = 0
    for number, piece in enumerate(pieces[:-1]):
        at += len(piece)
        start = at + number * grown
        expansions.append(
            {
                "text": placeholder,
                "span": (at, at + len(placeholder)),
                "new_span": (start, start + len(placeholder) + grown),
            }
        )
        at += len(placeholder)
    return (placeholder * count).join(pieces), expansions


@dataclass(frozen=True, slots=True)
class GlmFamily(ForwardFamily):
    """GLM-4.1V and GLM-4.6V: native resolution, as Qwen-VL."""

    resizable: bool = True

    def grids(self, picture: Picture) -> list[Grid]:
        return QwenFamily().grids(picture)


@dataclass(frozen=True, slots=True)
class Molmo2Family(ForwardFamily):
    """Molmo 2: the whole picture, coarse, then fine."""

    def grids(self, picture: Picture) -> list[Grid]:
        coarse_rows, coarse_columns, rows, columns = map(int, picture.inputs["image_grids"][picture.index])
        return [Grid(coarse_rows, coarse_columns), Grid(rows, columns)]


@dataclass(frozen=True, slots=True)
class NextVideoFamily(ForwardFamily):
    """LLaVA-NeXT-Video, of pictures: crops as LLaVA-NeXT has them."""

    def grids(self, picture: Picture) -> list[Grid]:
        return AnyResolutionFamily().grids(picture)
