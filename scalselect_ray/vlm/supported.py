"""The families that are supported, by `model_type` of config.json.

Adding one: a line in `FAMILIES` with a class that fits (or one of its own), and its maker in the oracle tests of
`tests/vlm`."""

from collections.abc import Mapping
from typing import Any

from scalselect_ray.errors import ModelError
from scalselect_ray.vlm.families import AnyResolutionFamily, Family, OneVisionFamily, QwenFamily
from scalselect_ray.vlm.forward_families import (
    ForwardFamily,
    GlmFamily,
    Molmo2Family,
    NextVideoFamily,
    PaddedFamily,
    PaliGemmaFamily,
    PixtralFamily,
    TiledFamily,
    WholeFamily,
)

FAMILIES: dict[str, Family] = {
    "llava": Family(),
    "llava_next": AnyResolutionFamily(),
    "llava_onevision": OneVisionFamily(),
    "qwen2_vl": QwenFamily(),
    "qwen2_5_vl": QwenFamily(),
    "qwen3_vl": QwenFamily(),
    "qwen3_vl_moe": QwenFamily(),
    "qwen3_5": QwenFamily(),
    "qwen3_5_moe": QwenFamily(),
    "aya_vision": TiledFamily(shrunk_by=lambda config: config.downsample_factor),
    "deepseek_vl": PaddedFamily(),
    "deepseek_vl_hybrid": PaddedFamily(),
    "gemma3": WholeFamily(),
    "glm46v": GlmFamily(),
    "glm4v": GlmFamily(),
    "glm4v_moe": GlmFamily(),
    "idefics3": TiledFamily(shrunk_by=lambda config: config.scale_factor),
    "internvl": TiledFamily(shrunk_by=lambda config: 1 / config.downsample_ratio),
    "lfm2_vl": ForwardFamily(),
    "llama4": TiledFamily(shrunk_by=lambda config: 1 / config.vision_config.pixel_shuffle_ratio),
    "llava_next_video": NextVideoFamily(),
    "mistral3": PixtralFamily(),
    "molmo2": Molmo2Family(),
    "ovis2": TiledFamily(shrunk_by=lambda config: config.vision_config.hidden_stride, whole_first=True),
    "paligemma": PaliGemmaFamily(),
    "smolvlm": TiledFamily(shrunk_by=lambda config: config.scale_factor),
}


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
