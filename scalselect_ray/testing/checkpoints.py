"""Tiny random checkpoints of every supported family, with the real classes of transformers.

Each function writes a model, its processor and a byte tokenizer to a folder, as `save_pretrained` does: fewer than a
million parameters, the same weights each time.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    MistralConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    SiglipVisionConfig,
)

from scalselect_ray.testing.tokenizer import byte_tokenizer

_LLAVA_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] | upper }}: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n"
    "{% else %}{{ c['text'] | trim }} {% endif %}{% endfor %}{% endfor %}"
)
_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "{IMAGE}{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
)
_CHATML_SPECIAL = ["<|endoftext|>", "<|im_end|>", "<|im_start|>"]
_TEXT: dict[str, Any] = dict(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=8192,
)
_CLIP: dict[str, Any] = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=56, patch_size=14
)
_PINPOINTS = [[56, 112], [112, 56], [112, 112]]
_CROP: dict[str, Any] = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}


def _save(model: Any, processor: Any, folder: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.copy_(
                    torch.randn(weight.shape, generator=generator)
                    * (0.5 if "q_proj" in name or "k_proj" in name else 0.08)
                )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def llava(folder: Path) -> None:
    """LLaVA 1.5: one grid of 16 patches a picture."""
    tokenizer = byte_tokenizer(["<pad>", "</s>", "<image>"], _LLAVA_TEMPLATE)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**_CLIP),
        text_config=LlamaConfig(vocab_size=len(tokenizer), **_TEXT),
        image_token_index=2,
    )
    processor = LlavaProcessor(
        CLIPImageProcessor(**_CROP),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_LLAVA_TEMPLATE,
    )
    _save(LlavaForConditionalGeneration(config), processor, folder)


def llava_next(folder: Path) -> None:
    """LLaVA-NeXT: crops, and a language model with a sliding window."""
    tokenizer = byte_tokenizer(["<pad>", "</s>", "<image>"], _LLAVA_TEMPLATE)
    text = MistralConfig(vocab_size=len(tokenizer), head_dim=16, sliding_window=40, **_TEXT)
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**_CLIP), text_config=text, image_token_index=2, image_grid_pinpoints=_PINPOINTS
    )
    processor = LlavaNextProcessor(
        LlavaNextImageProcessor(image_grid_pinpoints=_PINPOINTS, **_CROP),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_LLAVA_TEMPLATE,
    )
    _save(LlavaNextForConditionalGeneration(config), processor, folder)


def llava_onevision(folder: Path) -> None:
    """LLaVA-OneVision: crops, and a SigLIP tower without a head."""
    template = _CHATML.replace("{IMAGE}", "<image>\n")
    tokenizer = byte_tokenizer([*_CHATML_SPECIAL, "<image>", "<video>"], template)
    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=56, patch_size=14
    )
    vision.vision_use_head = False
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=Qwen2Config(vocab_size=len(tokenizer), **_TEXT),
        image_token_index=3,
        video_token_index=4,
        image_grid_pinpoints=_PINPOINTS,
    )
    size = {"height": 56, "width": 56}
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=_PINPOINTS),
        tokenizer,
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=template,
    )
    _save(LlavaOnevisionForConditionalGeneration(config), processor, folder)


def _qwen(
    folder: Path, config_class: Any, model_class: Any, processor_class: Any, vision: dict[str, int | list[int]]
) -> None:
    template = _CHATML.replace("{IMAGE}", "<|vision_start|><|image_pad|><|vision_end|>")
    special = [*_CHATML_SPECIAL, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = byte_tokenizer(special, template)
    text = dict(
        vocab_size=len(tokenizer),
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
        **_TEXT,
    )
    config = config_class(
        text_config=text,
        vision_config=vision,
        vision_start_token_id=3,
        vision_end_token_id=4,
        image_token_id=5,
        video_token_id=6,
    )
    sizes = {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}
    processor = processor_class(
        Qwen2VLImageProcessor(size=sizes), tokenizer, Qwen2VLVideoProcessor(), chat_template=template
    )
    _save(model_class(config), processor, folder)


def qwen2_vl(folder: Path) -> None:
    """Qwen2-VL: pictures of any size."""
    vision: dict[str, int | list[int]] = dict(
        depth=2,
        embed_dim=32,
        hidden_size=64,
        num_heads=4,
        mlp_ratio=2,
        patch_size=14,
        spatial_merge_size=2,
        temporal_patch_size=2,
    )
    _qwen(folder, Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor, vision)


def qwen2_5_vl(folder: Path) -> None:
    """Qwen2.5-VL: pictures of any size, with windows in the vision tower."""
    vision: dict[str, int | list[int]] = dict(
        depth=2,
        hidden_size=32,
        intermediate_size=64,
        out_hidden_size=64,
        num_heads=4,
        patch_size=14,
        window_size=56,
        fullatt_block_indexes=[1],
    )
    _qwen(folder, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor, vision)


MAKERS: dict[str, Callable[[Path], None]] = {
    maker.__name__: maker for maker in (llava, llava_next, llava_onevision, qwen2_vl, qwen2_5_vl)
}
"""All of them, by name."""
