"""Tiny random checkpoints of the families that are read while their own forward runs, with the real classes of
transformers, as `save_pretrained` writes them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers as t

from scalselect_ray.testing import checkpoints
from scalselect_ray.testing.checkpoints import _save
from scalselect_ray.testing.tokenizer import byte_tokenizer

SPECIAL = ["<pad>", "</s>", "<bos>"]
TEXT: dict[str, Any] = dict(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=8192,
    pad_token_id=0,
    eos_token_id=1,
    bos_token_id=2,
)
VISION: dict[str, Any] = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=56, patch_size=14
)
SIDE = {"height": 56, "width": 56}


def template(image: str) -> str:
    return (
        "{% for m in messages %}{{ m['role'] | upper }}: {% for c in m['content'] %}{% if c['type'] == 'image' %}"
        + image
        + "\n{% else %}{{ c['text'] | trim }} {% endif %}{% endfor %}{% endfor %}"
    )


def tokens(*more: str) -> list[str]:
    return [*SPECIAL, *more]


def gemma3(folder: Path) -> None:
    """Sliding windows, and a mask that looks both ways over an image."""
    special = tokens("<start_of_image>", "<image_soft_token>", "<end_of_image>")
    tokenizer = byte_tokenizer(
        special,
        template("<start_of_image>"),
        bos_token="<bos>",
        boi_token=special[3],
        image_token=special[4],
        eoi_token=special[5],
    )
    config = t.Gemma3Config(
        text_config=dict(vocab_size=len(tokenizer), sliding_window=24, query_pre_attn_scalar=16, **TEXT),
        vision_config=dict(**VISION),
        mm_tokens_per_image=4,
        boi_token_index=3,
        image_token_index=4,
        eoi_token_index=5,
    )
    processor = t.Gemma3Processor(
        t.Gemma3ImageProcessor(size=SIDE), tokenizer, image_seq_length=4, chat_template=tokenizer.chat_template
    )
    _save(t.Gemma3ForConditionalGeneration(config), processor, folder)


def internvl(folder: Path) -> None:
    """Tiles of a picture and a thumbnail."""
    special = tokens("<img>", "</img>", "<IMG_CONTEXT>", "<video>")
    tokenizer = byte_tokenizer(
        special,
        template("<IMG_CONTEXT>"),
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    config = t.InternVLConfig(
        text_config=t.Qwen2Config(vocab_size=len(tokenizer), **TEXT),
        vision_config=t.InternVLVisionConfig(**VISION | dict(image_size=[56, 56], patch_size=[14, 14])),
        image_token_id=5,
        downsample_ratio=0.5,
    )
    processor = t.InternVLProcessor(
        t.GotOcr2ImageProcessor(size=SIDE, max_patches=4, crop_to_patches=True),
        tokenizer,
        t.InternVLVideoProcessor(),
        image_seq_length=4,
        chat_template=tokenizer.chat_template,
    )
    _save(t.InternVLForConditionalGeneration(config), processor, folder)


def mistral3(folder: Path) -> None:
    """Pictures of any size, a break token at the end of each row."""
    special = tokens("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    tokenizer = byte_tokenizer(special, template("[IMG]"))
    config = t.Mistral3Config(
        text_config=t.MistralConfig(vocab_size=len(tokenizer), sliding_window=None, **TEXT),
        vision_config=t.PixtralVisionConfig(**VISION | dict(image_size=112)),
        image_token_index=3,
        spatial_merge_size=2,
        vision_feature_layer=-1,
    )
    processor = t.PixtralProcessor(
        t.PixtralImageProcessor(size={"longest_edge": 112}, patch_size={"height": 14, "width": 14}),
        tokenizer,
        patch_size=14,
        spatial_merge_size=2,
        chat_template=tokenizer.chat_template,
    )
    _save(t.Mistral3ForConditionalGeneration(config), processor, folder)


def _idefics(folder: Path, config_class: Any, model_class: Any, processor_class: Any, image_class: Any, *video: Any):
    rows = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    special = tokens("<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *rows)
    tokenizer = byte_tokenizer(special, template("<image>"))
    config = config_class(
        text_config=t.LlamaConfig(vocab_size=len(tokenizer), **TEXT),
        vision_config=dict(**VISION),
        image_token_id=3,
        scale_factor=2,
    )
    processor = processor_class(
        image_class(size={"longest_edge": 112}, max_image_size={"longest_edge": 56}),
        tokenizer,
        *video,
        image_seq_len=4,
        chat_template=tokenizer.chat_template,
    )
    _save(model_class(config), processor, folder)


def idefics3(folder: Path) -> None:
    """Tiles, each named by its row and column."""
    _idefics(
        folder, t.Idefics3Config, t.Idefics3ForConditionalGeneration, t.Idefics3Processor, t.Idefics3ImageProcessor
    )


def smolvlm(folder: Path) -> None:
    """As Idefics3."""
    _idefics(
        folder,
        t.SmolVLMConfig,
        t.SmolVLMForConditionalGeneration,
        t.SmolVLMProcessor,
        t.SmolVLMImageProcessor,
        t.SmolVLMVideoProcessor(size={"longest_edge": 112}, max_image_size={"longest_edge": 56}),
    )


def _glm(
    folder: Path,
    config_class: Any,
    model_class: Any,
    processor_class: Any,
    image_class: Any,
    video_class: Any,
    **more: Any,
) -> None:
    special = tokens(
        "<|begin_of_image|>", "<|image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|video|>", "<|end_of_video|>"
    )
    tokenizer = byte_tokenizer(special, template("<|begin_of_image|><|image|><|end_of_image|>"))
    text = {name: value for name, value in TEXT.items() if name != "head_dim"}
    config = config_class(
        text_config=dict(
            vocab_size=len(tokenizer),
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [2, 3, 3],
                "partial_rotary_factor": 1.0,
            },
            **text | more,
        ),
        vision_config=dict(
            depth=2,
            hidden_size=32,
            intermediate_size=64,
            out_hidden_size=64,
            num_heads=4,
            patch_size=14,
            image_size=56,
            spatial_merge_size=2,
            temporal_patch_size=2,
        ),
        image_token_id=4,
        image_start_token_id=3,
        image_end_token_id=5,
        video_token_id=7,
        video_start_token_id=6,
        video_end_token_id=8,
    )
    sizes = {"shortest_edge": 56 * 56, "longest_edge": 2 * 112 * 112}
    processor = processor_class(
        image_class(size=sizes), tokenizer, video_class(), chat_template=tokenizer.chat_template
    )
    _save(model_class(config), processor, folder)


def glm4v(folder: Path) -> None:
    """Norms after attention and MLP, rotary positions in pairs: as a Qwen it would come out wrong."""
    _glm(
        folder,
        t.Glm4vConfig,
        t.Glm4vForConditionalGeneration,
        t.Glm4vProcessor,
        t.Glm4vImageProcessor,
        t.Glm4vVideoProcessor,
    )


def glm46v(folder: Path) -> None:
    """As GLM-4.1V."""
    _glm(
        folder,
        t.Glm46VConfig,
        t.Glm46VForConditionalGeneration,
        t.Glm46VProcessor,
        t.Glm46VImageProcessor,
        t.Glm46VVideoProcessor,
    )


def glm4v_moe(folder: Path) -> None:
    """GLM-4.5V and the large GLM-4.6V: experts after the first layer."""
    _glm(
        folder,
        t.Glm4vMoeConfig,
        t.Glm4vMoeForConditionalGeneration,
        t.Glm4vProcessor,
        t.Glm4vImageProcessor,
        t.Glm4vVideoProcessor,
        moe_intermediate_size=32,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
    )


def _qwen3(folder: Path, config_class: Any, model_class: Any, vision: dict[str, Any], **text: Any) -> None:
    special = [*checkpoints._CHATML_SPECIAL, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    form = checkpoints._CHATML.replace("{IMAGE}", "<|vision_start|><|image_pad|><|vision_end|>")
    tokenizer = byte_tokenizer(special, form)
    rotary = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3], "mrope_interleaved": True}
    config = config_class(
        text_config=TEXT | dict(vocab_size=len(tokenizer), rope_parameters=rotary) | text,
        vision_config=dict(
            depth=2,
            hidden_size=32,
            intermediate_size=64,
            out_hidden_size=64,
            num_heads=4,
            patch_size=14,
            spatial_merge_size=2,
            temporal_patch_size=2,
            num_position_embeddings=16,
            **vision,
        ),
        vision_start_token_id=3,
        vision_end_token_id=4,
        image_token_id=5,
        video_token_id=6,
    )
    sizes = {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}
    processor = t.Qwen3VLProcessor(
        t.Qwen2VLImageProcessor(size=sizes, patch_size=14), tokenizer, t.Qwen3VLVideoProcessor(), chat_template=form
    )
    _save(model_class(config), processor, folder)


def qwen3_vl(folder: Path) -> None:
    """Features of the tower are added after the first layers (DeepStack)."""
    deep = {"deepstack_visual_indexes": [0, 1]}
    _qwen3(folder, t.Qwen3VLConfig, t.Qwen3VLForConditionalGeneration, deep)


def qwen3_vl_moe(folder: Path) -> None:
    """Experts in the place of the MLP."""
    deep = {"deepstack_visual_indexes": [0, 1]}
    experts = dict(moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2)
    _qwen3(folder, t.Qwen3VLMoeConfig, t.Qwen3VLMoeForConditionalGeneration, deep, **experts)


def qwen3_5(folder: Path) -> None:
    """Layer 0 is linear attention."""
    linear = dict(
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
    )
    _qwen3(folder, t.Qwen3_5Config, t.Qwen3_5ForConditionalGeneration, {}, **linear)


def gemma2_llava(folder: Path) -> None:
    """LLaVA's tower and projector before a Gemma 2."""
    tokenizer = byte_tokenizer(tokens("<image>"), template("<image>"))
    config = t.LlavaConfig(
        vision_config=t.CLIPVisionConfig(**VISION),
        text_config=t.Gemma2Config(
            vocab_size=len(tokenizer), sliding_window=24, query_pre_attn_scalar=16, attn_logit_softcapping=5.0, **TEXT
        ),
        image_token_index=3,
    )
    crop = {"size": {"shortest_edge": 56}, "crop_size": SIDE}
    processor = t.LlavaProcessor(
        t.CLIPImageProcessor(**crop),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )
    _save(t.LlavaForConditionalGeneration(config), processor, folder)


def aya_vision(folder: Path) -> None:
    """Attention and MLP side by side."""
    named = ["<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", "TILE", "TILE_GLOBAL"]
    tokenizer = byte_tokenizer(tokens("<image>", *named), template("<image>"))
    config = t.AyaVisionConfig(
        text_config=t.Cohere2Config(vocab_size=len(tokenizer), sliding_window=24, logit_scale=1.0, **TEXT),
        vision_config=t.SiglipVisionConfig(**VISION),
        image_token_index=6,
        downsample_factor=2,
        adapter_layer_norm_eps=1e-6,
        alignment_intermediate_size=64,
    )
    processor = t.AyaVisionProcessor(
        t.GotOcr2ImageProcessor(size=SIDE, max_patches=4, crop_to_patches=True),
        tokenizer,
        patch_size=14,
        img_size=56,
        downsample_factor=2,
        chat_template=tokenizer.chat_template,
    )
    _save(t.AyaVisionForConditionalGeneration(config), processor, folder)


def ovis2(folder: Path) -> None:
    """A table of visual words, and indicators around each tile."""
    named = ["<IMG_ATOM>", "<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]
    tokenizer = byte_tokenizer(tokens("<image>", *named), template("<image>"))
    text = {name: value for name, value in TEXT.items() if name != "head_dim"}
    config = t.Ovis2Config(
        text_config=t.Qwen2Config(vocab_size=len(tokenizer), **text),
        vision_config=t.Ovis2VisionConfig(**VISION, vocab_size=40, num_visual_indicator_tokens=5, hidden_stride=2),
        image_token_id=4,
        visual_indicator_token_ids=[5, 6, 7, 8, 9],
        vocab_size=len(tokenizer),
        hidden_size=64,
    )
    processor = t.Ovis2Processor(
        t.Ovis2ImageProcessor(size=SIDE, max_patches=4, crop_to_patches=True),
        tokenizer,
        image_seq_length=4,
        chat_template=tokenizer.chat_template,
    )
    _save(t.Ovis2ForConditionalGeneration(config), processor, folder)


def llava_next_video(folder: Path) -> None:
    """LLaVA-NeXT-Video, of pictures."""
    tokenizer = byte_tokenizer(tokens("<image>", "<video>"), template("<image>"))
    pinpoints = [[56, 112], [112, 56], [112, 112]]
    config = t.LlavaNextVideoConfig(
        vision_config=t.CLIPVisionConfig(**VISION | dict(num_hidden_layers=3)),
        text_config=t.LlamaConfig(vocab_size=len(tokenizer), **TEXT),
        image_token_index=3,
        video_token_index=4,
        image_grid_pinpoints=pinpoints,
    )
    crop = {"size": {"shortest_edge": 56}, "crop_size": SIDE}
    processor = t.LlavaNextVideoProcessor(
        t.LlavaNextVideoVideoProcessor(**crop),
        t.LlavaNextImageProcessor(image_grid_pinpoints=pinpoints, **crop),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )
    _save(t.LlavaNextVideoForConditionalGeneration(config), processor, folder)


def lfm2_vl(folder: Path, layers: tuple[str, ...] = ("full_attention", "conv", "full_attention")) -> None:
    """Pictures of any size; layers of which some are convolutions."""
    rows = [f"<|img_row_{row}_col_{column}|>" for row in range(1, 5) for column in range(1, 5)]
    special = tokens("<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>", *rows)
    tokenizer = byte_tokenizer(
        special,
        template("<image>"),
        image_token="<image>",
        image_start_token=special[4],
        image_end_token=special[5],
        image_thumbnail=special[6],
    )
    text = {name: value for name, value in TEXT.items() if name != "head_dim"}
    config = t.Lfm2VlConfig(
        text_config=t.Lfm2Config(
            vocab_size=len(tokenizer), layer_types=list(layers), block_auto_adjust_ff_dim=False, **text
        ),
        vision_config=t.Siglip2VisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            patch_size=14,
            num_patches=64,
            vision_use_head=False,
        ),
        image_token_id=3,
        downsample_factor=2,
        projector_hidden_size=64,
    )
    processor = t.Lfm2VlProcessor(
        t.Lfm2VlImageProcessor(
            tile_size=56,
            encoder_patch_size=14,
            downsample_factor=2,
            min_image_tokens=2,
            max_image_tokens=8,
            max_num_patches=64,
            max_tiles=4,
            min_tiles=2,
        ),
        tokenizer,
        chat_template=tokenizer.chat_template,
    )
    _save(t.Lfm2VlForConditionalGeneration(config), processor, folder)


def deepseek_vl(folder: Path) -> None:
    """One fixed grid a picture."""
    tokenizer = byte_tokenizer(
        tokens("<image_placeholder>"), template("<image_placeholder>"), image_token="<image_placeholder>"
    )
    vision = t.SiglipVisionConfig(**VISION)
    vision.vision_use_head = False
    config = t.DeepseekVLConfig(
        text_config=t.LlamaConfig(vocab_size=len(tokenizer), **TEXT), vision_config=vision, image_token_id=3
    )
    processor = t.DeepseekVLProcessor(
        t.DeepseekVLImageProcessor(size=SIDE, min_size=14),
        tokenizer,
        chat_template=tokenizer.chat_template,
        num_image_tokens=16,
    )
    _save(t.DeepseekVLForConditionalGeneration(config), processor, folder)


def deepseek_vl_hybrid(folder: Path) -> None:
    """As DeepSeek-VL, with a second tower for fine detail."""
    tokenizer = byte_tokenizer(
        tokens("<image_placeholder>"), template("<image_placeholder>"), image_token="<image_placeholder>"
    )
    vision = t.SiglipVisionConfig(**VISION)
    vision.vision_use_head = False
    config = t.DeepseekVLHybridConfig(
        text_config=t.LlamaConfig(vocab_size=len(tokenizer), **TEXT),
        vision_config=vision,
        high_res_vision_config=t.SamVisionConfig(
            hidden_size=32,
            output_channels=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=128,
            patch_size=8,
            window_size=4,
            global_attn_indexes=[1],
            mlp_dim=64,
        ),
        image_token_id=3,
    )
    processor = t.DeepseekVLHybridProcessor(
        t.DeepseekVLHybridImageProcessor(size=SIDE, high_res_size={"height": 128, "width": 128}, min_size=14),
        tokenizer,
        chat_template=tokenizer.chat_template,
        num_image_tokens=16,
    )
    _save(t.DeepseekVLHybridForConditionalGeneration(config), processor, folder)


def llama4(folder: Path) -> None:
    """Chunked attention, layers without positions, experts."""
    named = [
        "<|image|>",
        "<|image_start|>",
        "<|image_end|>",
        "<|patch|>",
        "<|tile_x_separator|>",
        "<|tile_y_separator|>",
    ]
    tokenizer = byte_tokenizer(tokens(*named), template("<|image|>"))
    config = t.Llama4Config(
        text_config=dict(
            vocab_size=len(tokenizer), intermediate_size_mlp=96, num_local_experts=2, attention_chunk_size=32, **TEXT
        ),
        vision_config=dict(
            **VISION | dict(intermediate_size=128),
            pixel_shuffle_ratio=0.5,
            projector_input_dim=64,
            projector_output_dim=64,
            vision_output_dim=64,
        ),
        image_token_index=6,
        boi_token_index=4,
        eoi_token_index=5,
    )
    processor = t.Llama4Processor(
        t.Llama4ImageProcessor(size=SIDE, max_patches=4),
        tokenizer,
        patch_size=14,
        pixel_shuffle_ratio=0.5,
        chat_template=tokenizer.chat_template,
    )
    _save(t.Llama4ForConditionalGeneration(config), processor, folder)


def molmo2(folder: Path) -> None:
    """Two views of a picture; what marks them are tokens of the model's."""
    named = [
        "<|image|>",
        "<|video|>",
        "<im_patch>",
        "<im_col>",
        "<im_start>",
        "<low_res_im_start>",
        "<frame_start>",
        "<im_end>",
        "<frame_end>",
        "<im_low>",
    ]
    tokenizer = byte_tokenizer(
        tokens(*named), template("<|image|>"), bos_token="<bos>", image_token="<|image|>", video_token="<|video|>"
    )
    config = t.Molmo2Config(
        text_config=dict(vocab_size=len(tokenizer), additional_vocab_size=0, **TEXT),
        vit_config=dict(**VISION | dict(image_size=[56, 56]), num_key_value_heads=4, head_dim=8),
        adapter_config=dict(
            hidden_size=32,
            intermediate_size=64,
            text_hidden_size=64,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=8,
            vit_layers=[-1],
        ),
        image_start_token_id=7,
        low_res_image_start_token_id=8,
        image_end_token_id=10,
        image_low_res_id=12,
        image_patch_id=5,
        image_col_id=6,
        frame_start_token_id=9,
        frame_end_token_id=11,
    )
    processor = t.Molmo2Processor(
        t.Molmo2ImageProcessor(size=SIDE, patch_size=14, max_crops=2, overlap_margins=[1, 1]),
        t.Molmo2VideoProcessor(),
        tokenizer,
        chat_template=tokenizer.chat_template,
    )
    _save(t.Molmo2ForConditionalGeneration(config), processor, folder)


def paligemma(folder: Path) -> None:
    """PaliGemma 2: a prefix that looks both ways, capped logits."""
    tokenizer = byte_tokenizer(tokens("<image>"), "", bos_token="<bos>", image_token="<image>")
    tokenizer.chat_template = None
    config = t.PaliGemmaConfig(
        text_config=t.Gemma2Config(
            vocab_size=1400, sliding_window=24, query_pre_attn_scalar=16, attn_logit_softcapping=5.0, **TEXT
        ),
        vision_config=t.SiglipVisionConfig(**VISION, vision_use_head=False),
        image_token_index=3,
        projection_dim=64,
        hidden_size=64,
        vocab_size=1400,
    )
    image_processor = t.SiglipImageProcessor(size=SIDE)
    image_processor.image_seq_length = 16
    _save(t.PaliGemmaForConditionalGeneration(config), t.PaliGemmaProcessor(image_processor, tokenizer), folder)


FORWARD_MAKERS: dict[str, Callable[[Path], None]] = {
    maker.__name__: maker
    for maker in (
        aya_vision,
        deepseek_vl,
        deepseek_vl_hybrid,
        gemma3,
        glm46v,
        glm4v,
        glm4v_moe,
        idefics3,
        internvl,
        lfm2_vl,
        llama4,
        llava_next_video,
        mistral3,
        molmo2,
        ovis2,
        qwen3_vl_moe,
        smolvlm,
    )
}
