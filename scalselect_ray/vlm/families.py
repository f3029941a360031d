"""What differs between model families. Everything else about a VLM is asked of transformers.

Adding a family: subclass `Family` (or use one that fits), add a line to `FAMILIES`, and a row to the oracle test in
`tests/vlm`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import ProcessorMixin

from scalselect_ray.errors import ModelError

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

    @property
    def tokens(self) -> int:
        return self.rows * (self.columns + self.newlines)


@dataclass(frozen=True, slots=True)
class Family:
    """LLaVA 1.5: one fixed-size crop an image, positions counted along the text."""

    image_inputs: tuple[str, ...] = ("pixel_values",)
    """What `get_image_features` of the model takes, by name, as the processor makes it."""

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

    def grids(
        self,
        tokens: int,
        size: tuple[int, int],
        index: int,
        inputs: Mapping[str, Any],
        image_processor: Any,
        config: Any,
    ) -> list[Grid]:
        """Where the `tokens` tokens of one picture of (width, height), number `index` of its sample, lie on it: one
        grid after the other. Tokens beyond the grids lie nowhere."""
        height, width = inputs["pixel_values"].shape[-2:]
        patch = config.vision_config.patch_size
        rows, columns = height // patch, width // patch
        class_token = max(0, tokens - rows * columns)
        return [Grid(rows, columns, _cropped(size, (width, height), image_processor), before=class_token)]


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

    def grids(
        self,
        tokens: int,
        size: tuple[int, int],
        index: int,
        inputs: Mapping[str, Any],
        image_processor: Any,
        config: Any,
    ) -> list[Grid]:
        """The whole picture as one crop, then, unless it was small, all of it again from several crops with a newline a
        row."""
        side = config.vision_config.image_size // config.vision_config.patch_size
        whole, rest = Grid(side, side), tokens - side * side
        shapes = [Grid(rows, rest // rows - 1, newlines=True) for rows in range(1, rest // 2 + 1) if rest % rows == 0]
        if not shapes:
            return [whole]
        aspect = size[0] / size[1]
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

    def grids(
        self,
        tokens: int,
        size: tuple[int, int],
        index: int,
        inputs: Mapping[str, Any],
        image_processor: Any,
        config: Any,
    ) -> list[Grid]:
        merge = config.vision_config.spatial_merge_size
        _, rows, columns = inputs["image_grid_thw"][index]
        return [Grid(int(rows) // merge, int(columns) // merge)]


FAMILIES: dict[str, Family] = {
    "llava": Family(),
    "llava_next": AnyResolutionFamily(),
    "llava_onevision": OneVisionFamily(),
    "qwen2_vl": QwenFamily(),
    "qwen2_5_vl": QwenFamily(),
    "qwen3_vl": QwenFamily(),
}
"""By `model_type` of config.json."""


_LLAVA_TYPES = ("llava_llama", "llava_mistral", "llava_mpt", "llava_qwen", "llava_qwen_moe", "llava_mixtral")


def family_of(config: Mapping[str, Any], model: str) -> Family:
    """The family of a model, by what its config.json says. Raises ModelError for one that is not supported."""
    model_type = config.get("model_type")
    if model_type is None:
        raise ModelError(f"{model}: config.json has no model_type; expected one of {', '.join(FAMILIES)}")
    flat = "text_config" not in config and any(name.startswith("mm_") for name in config)
    if flat or str(model_type) in _LLAVA_TYPES:
        raise ModelError(
            f"{model}: config.json: a checkpoint in the format of the LLaVA project itself (model_type '{model_type}', "
            f"no text_config), which transformers' own classes do not read: use its twin, {_llava_twin(config)}, or "
            "convert yours (convert_llava_weights_to_hf.py of transformers)"
        )
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ModelError(
            f"{model}: config.json: model_type {str(model_type)[:60]!r} is not supported; supported: "
            f"{', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]


def _llava_twin(config: Mapping[str, Any]) -> str:
    """The published checkpoint in the format of transformers that is nearest to one in LLaVA's own."""
    large = config.get("hidden_size") == 5120
    kind = f"{config.get('model_type')} {config.get('architectures')}".lower()
    if "qwen" in kind:
        sizes = {896: "0.5b", 3584: "7b", 8192: "72b"}
        return f"llava-hf/llava-onevision-qwen2-{sizes.get(config.get('hidden_size', 0), '7b')}-ov-hf"
    if "mistral" in kind:
        return "llava-hf/llava-v1.6-mistral-7b-hf"
    if config.get("image_aspect_ratio") == "anyres" or config.get("image_grid_pinpoints"):
        return f"llava-hf/llava-v1.6-vicuna-{'13b' if large else '7b'}-hf"
    return f"llava-hf/llava-1.5-{'13b' if large else '7b'}-hf"


def vision_token_ids(family: Family, processor: ProcessorMixin) -> tuple[int, list[int]]:
    """The id of the image placeholder, and those of the family's other vision marks."""
    tokenizer = processor.tokenizer
    return processor.image_token_id, [tokenizer.convert_tokens_to_ids(mark) for mark in family.vision_marks]


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
