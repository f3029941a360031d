"""What differs between model families whose layer 0 is known part by part. Everything else about a VLM is asked of
transformers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import ProcessorMixin

from scalselect_ray.vlm.texts import Rendering

Tensors = Mapping[str, torch.Tensor]
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Grid:
    """How consecutive tokens of one image lie on it: row by row over a part of the picture."""

    rows: int
    columns: int
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    """Left, top, right, bottom of what the model sees, as shares of the picture's width and height."""
    newlines: bool = False
    """Whether a token that lies nowhere ends each row."""
    before: int = 0
    """Tokens before it that lie nowhere."""
    tiles: tuple[int, int] = (1, 1)
    """Rows and columns of its parts, of which one follows the other, each row by row."""

    @property
    def tokens(self) -> int:
        return self.rows * (self.columns + self.newlines)


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of a sample, as far as it takes to say where its tokens lie on it."""

    tokens: int  # of it, image placeholders alone
    size: tuple[int, int]  # width and height
    index: int  # in its sample
    inputs: Mapping[str, Any]  # the sample's image inputs
    image_processor: Any
    config: Any


@dataclass(frozen=True, slots=True)
class Family:
    """LLaVA 1.5: one fixed-size crop an image, positions counted along the text."""

    image_inputs: tuple[str, ...] = ("pixel_values",)
    """What `get_image_features` of the model takes, by name, as the processor makes it."""

    bytes_travel: bool = True
    """Whether pixels leave the processor as bytes and are scaled to floats on the device."""

    vision_marks: tuple[str, ...] = ()
    """Tokens beside the image placeholders that the published implementation counts as vision tokens."""

    resizable: bool = False
    """Whether the processor scales an image into `min_pixels` to `max_pixels`."""

    def processor_values(self, config: Any) -> dict[str, Any]:
        """What the processor must know of the model, by name: for folders whose processor does not say it."""
        class_token = config.vision_config.model_type == "clip_vision_model"
        return {
            "patch_size": config.vision_config.patch_size,
            "num_additional_image_tokens": int(class_token),
            "vision_feature_select_strategy": config.vision_feature_select_strategy,
        }

    def template_name(self, config: Any, tokenizer: Any) -> str | None:
        """Which of the published chat templates a folder without one means; None: none."""
        if "<|im_start|>" in tokenizer.get_vocab():
            return "chatml"
        return "mistral" if config.text_config.model_type == "mistral" else "vicuna"

    def images_argument(self, images: Sequence[Any]) -> Any:
        """The images of one sample as the processor wants them."""
        return list(images)

    def process(self, processor: Any, rendered: Rendering, images: Sequence[Any], **settings: Any) -> Mapping[str, Any]:
        """What the processor makes of one sample: token ids with their places in the text, where images were put in
        place of placeholders, and the images."""
        answer: Mapping[str, Any] = processor(
            text=[rendered.text],
            images=self.images_argument(images),
            return_offsets_mapping=True,
            return_text_replacement_offsets=True,
            return_mm_token_type_ids=True,
            **settings,
        )
        return answer

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """What of the processor's answer to one sample travels, by name."""
        return {name: np.asarray(batch[name]) for name in self.image_inputs}

    def position_ids(self, model: Any, inputs: Tensors) -> torch.Tensor:
        """Rotary positions of one sample, (1, S), or (3, S) with multimodal rotary positions. `model` may have no
        weights."""
        return torch.arange(inputs["input_ids"].shape[-1])[None]

    def collate(self, samples: Sequence[Arrays]) -> dict[str, np.ndarray]:
        """The image inputs of several samples, joined along the images: new arrays, whose memory is nobody else's."""
        return {name: np.concatenate([sample[name] for sample in samples]) for name in self.image_inputs}

    def pixels_as_channels(self, pixel_values: torch.Tensor, channels: int) -> torch.Tensor:
        """A view of `pixel_values` as (..., channels, height, width), to normalise it."""
        return pixel_values

    def one_frame(self, pixel_values: torch.Tensor, image_processor: Any) -> torch.Tensor:
        """What must travel of `pixel_values`: all of it is made of this by `all_frames`."""
        return pixel_values

    def all_frames(self, pixel_values: torch.Tensor, image_processor: Any) -> torch.Tensor:
        """The inverse of `one_frame`."""
        return pixel_values

    def grids(self, picture: Picture) -> list[Grid]:
        """Where its tokens lie, one grid after the other. Tokens beyond the grids lie nowhere."""
        height, width = picture.inputs["pixel_values"].shape[-2:]
        patch = picture.config.vision_config.patch_size
        rows, columns = height // patch, width // patch
        class_token = max(0, picture.tokens - rows * columns)
        return [
            Grid(rows, columns, _cropped(picture.size, (width, height), picture.image_processor), before=class_token)
        ]


@dataclass(frozen=True, slots=True)
class AnyResolutionFamily(Family):
    """LLaVA-NeXT and LLaVA-OneVision: a variable number of crops an image, (images, crops, C, H, W), zero-padded along
    crops."""

    image_inputs: tuple[str, ...] = ("pixel_values", "image_sizes")

    def collate(self, samples: Sequence[Arrays]) -> dict[str, np.ndarray]:
        crops = max(sample["pixel_values"].shape[1] for sample in samples)

        def padded(pixel_values: np.ndarray) -> np.ndarray:
            return np.pad(pixel_values, [(0, 0), (0, crops - pixel_values.shape[1]), (0, 0), (0, 0), (0, 0)])

        return Family.collate(self, [{**sample, "pixel_values": padded(sample["pixel_values"])} for sample in samples])

    def grids(self, picture: Picture) -> list[Grid]:
        """The whole picture as one crop, then, unless it was small, all of it again from several crops with a newline a
        row."""
        side = picture.config.vision_config.image_size // picture.config.vision_config.patch_size
        whole, rest = Grid(side, side), picture.tokens - side * side
        shapes = [Grid(rows, rest // rows - 1, newlines=True) for rows in range(1, rest // 2 + 1) if rest % rows == 0]
        if not shapes:
            return [whole]
        aspect = picture.size[0] / picture.size[1]
        return [
            whole,
            min(shapes, key=lambda grid: abs(math.log(grid.columns / grid.rows / aspect))),
        ]  # the crops keep the aspect


@dataclass(frozen=True, slots=True)
class OneVisionFamily(AnyResolutionFamily):
    """LLaVA-OneVision: an image that stands alone in its sample is cropped, several are not."""

    image_inputs: tuple[str, ...] = ("pixel_values", "image_sizes", "batch_num_images")

    def processor_values(self, config: Any) -> dict[str, Any]:
        side = config.vision_config.image_size // config.vision_config.patch_size
        return {
            "num_image_tokens": side * side,
            "vision_feature_select_strategy": config.vision_feature_select_strategy,
            "vision_aspect_ratio": config.vision_aspect_ratio,
        }

    def images_argument(self, images: Sequence[Any]) -> Any:
        return [list(images)]  # nested: these images belong to one sample


@dataclass(frozen=True, slots=True)
class QwenFamily(Family):
    """Qwen-VL: native resolution, patches in one flat list (patches, C * T * P * P), multimodal rotary positions. A
    picture is a film of T equal frames; one of them travels."""

    image_inputs: tuple[str, ...] = ("pixel_values", "image_grid_thw")
    vision_marks: tuple[str, ...] = ("<|vision_start|>", "<|vision_end|>")
    resizable: bool = True

    def processor_values(self, config: Any) -> dict[str, Any]:
        return {}

    def template_name(self, config: Any, tokenizer: Any) -> str | None:
        return None

    def position_ids(self, model: Any, inputs: Tensors) -> torch.Tensor:
        positions, _ = model.get_rope_index(
            inputs["input_ids"][None],
            mm_token_type_ids=inputs["mm_token_type_ids"][None],
            image_grid_thw=inputs["image_grid_thw"],
        )
        return torch.as_tensor(positions[:, 0])

    def pixels_as_channels(self, pixel_values: torch.Tensor, channels: int) -> torch.Tensor:
        return pixel_values.view(len(pixel_values), channels, -1, 1)

    def one_frame(self, pixel_values: torch.Tensor, image_processor: Any) -> torch.Tensor:
        channels, frames = len(image_processor.image_mean), image_processor.temporal_patch_size
        return pixel_values.view(len(pixel_values), channels, frames, -1)[:, :, 0].flatten(1)

    def all_frames(self, pixel_values: torch.Tensor, image_processor: Any) -> torch.Tensor:
        channels, frames = len(image_processor.image_mean), image_processor.temporal_patch_size
        return pixel_values.view(len(pixel_values), channels, 1, -1).expand(-1, -1, frames, -1).flatten(1)

    def grids(self, picture: Picture) -> list[Grid]:
        merge = picture.config.vision_config.spatial_merge_size
        _, rows, columns = picture.inputs["image_grid_thw"][picture.index]
        return [Grid(int(rows) // merge, int(columns) // merge)]


def vision_token_ids(family: Family, config: Any, processor: ProcessorMixin) -> tuple[int, list[int]]:
    """The id of the tokens that the model puts an image's features in place of, and those of the family's other vision
    marks."""
    tokenizer = processor.tokenizer
    return config.image_token_id, [tokenizer.convert_tokens_to_ids(mark) for mark in family.vision_marks]


def _cropped(size: tuple[int, int], crop: tuple[int, int], image_processor: Any) -> tuple[float, float, float, float]:
    """The part of a picture of (width, height) that is left when it is resized by its shorter side and `crop` is cut
    from its middle."""
    edge = (getattr(image_processor, "size", None) or {}).get("shortest_edge")
    if not edge or not getattr(image_processor, "do_center_crop", False):
        return (0.0, 0.0, 1.0, 1.0)
    edges = []
    for side, kept in zip(size, crop, strict=True):
        resized = int(edge * side / min(size))
        first = (resized - kept) // 2
        edges.append((first / resized, (first + kept) / resized))
    (left, right), (top, bottom) = edges
    return left, top, right, bottom
