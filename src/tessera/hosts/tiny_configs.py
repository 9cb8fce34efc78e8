"""Configurations of tiny vision-language models, one per family, and the images that each takes, in its processor's form.

6 decoder layers of width 64, a vocabulary of 200 tokens, images of 64 pixels in patches of 8.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

VOCABULARY, PAD, BOS, EOS, IMAGE, VIDEO, BEGIN, END = 200, 0, 1, 2, 190, 191, 192, 193
WORDS = (10, 180)  # ids that stand for ordinary text
_SIDE, _PATCH, LAYERS = 64, 8, 6

Images = Sequence[int]
"""How many images each row has."""


def _text(kind: str | None = None, head: bool = True, **others: Any) -> dict[str, Any]:
    text = dict(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=2048,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        tie_word_embeddings=False,
    )
    return text | ({"head_dim": 16} if head else {}) | ({"model_type": kind} if kind else {}) | others


def _tower(kind: str | None = None, **others: Any) -> dict[str, Any]:
    tower = dict(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=_SIDE,
        patch_size=_PATCH,
    )
    return tower | ({"model_type": kind} if kind else {}) | others


def _clip() -> dict[str, Any]:
    return _tower("clip_vision_model")


def _siglip(**others: Any) -> dict[str, Any]:
    return _tower("siglip_vision_model", vision_use_head=False, **others)


def _noise(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _square(images: Images) -> dict[str, Any]:
    return {"pixel_values": _noise(sum(images), 3, _SIDE, _SIDE)}


def _wide_tiles(images: Images) -> dict[str, Any]:
    """Images of 64 x 128 pixels as a thumbnail and two tiles."""
    count = sum(images)
    return {"pixel_values": _noise(count, 3, 3, _SIDE, _SIDE), "image_sizes": torch.tensor([[_SIDE, 2 * _SIDE]] * count)}


def _one_vision(images: Images) -> dict[str, Any]:
    """A row with one image has it in tiles; images that share a row are not cut."""
    return {**_wide_tiles(images), "batch_num_images": torch.tensor([n for n in images if n])}


def _sized(images: Images) -> dict[str, Any]:
    return {**_square(images), "image_sizes": torch.tensor([[_SIDE, _SIDE]] * sum(images))}


def _two_scales(images: Images) -> dict[str, Any]:
    return {**_square(images), "high_res_pixel_values": _noise(sum(images), 3, 2 * _SIDE, 2 * _SIDE, seed=5)}


def _per_row(images: Images) -> dict[str, Any]:
    """Images of a row on an axis of their own, missing ones black."""
    pixels, noise, taken = torch.zeros(len(images), max(images), 3, _SIDE, _SIDE), _noise(sum(images), 3, _SIDE, _SIDE), 0
    for row, count in enumerate(images):
        pixels[row, :count] = noise[taken : taken + count]
        taken += count
    return {"pixel_values": pixels}


_GRID = (8, 12)
"""Rows and columns of patches of the families that take images at their own resolution."""


def _own_resolution(images: Images) -> dict[str, Any]:
    (rows, columns), count = _GRID, sum(images)
    pixels = _noise(count * rows * columns, 3 * 2 * _PATCH * _PATCH)
    return {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, rows, columns]] * count)}


def _merged(images: Images) -> dict[str, Any]:
    (rows, columns), count = _GRID, sum(images)
    pixels = _noise(count * rows * columns, 3 * _PATCH * _PATCH)
    grids = torch.tensor([[1, rows, columns]] * count)
    return {"pixel_values": pixels, "image_grid_thw": grids, "image_merge_sizes": torch.tensor([2] * count)}


def _large(images: Images) -> dict[str, Any]:
    return {"pixel_values": _noise(sum(images), 3, 256, 256)}


def _asked(images: Images) -> dict[str, Any]:
    """One image per row, and the question for the Q-Former."""
    question = torch.randint(*WORDS, (len(images), 5), generator=torch.Generator().manual_seed(0))
    return {**_square(images), "qformer_input_ids": question, "qformer_attention_mask": torch.ones_like(question)}


def _types(images_are: int) -> Callable[[Tensor], dict[str, Any]]:
    return lambda ids: {"token_type_ids": (ids == IMAGE).long() * images_are}


def _mm_types(ids: Tensor) -> dict[str, Any]:
    return {"mm_token_type_ids": (ids == IMAGE).int()}


def _nothing(ids: Tensor) -> dict[str, Any]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyRecipe:
    """How a family's tiny model and its inputs are made.

    config        the configuration without its model type
    model_type    of the configuration
    pixels        images of a batch -> the inputs that carry them
    tokens        visual tokens of an image, or of one that shares its row with others
    around        ids in front of and behind an image's tokens
    types         inputs that are made of the token ids
    fewest_images, most_images   how many one row can have
    package       an optional package without which the model cannot be built
    """

    model_type: str
    config: Mapping[str, Any]
    pixels: Callable[[Images], dict[str, Any]]
    tokens: int
    tokens_shared: int | None = None
    around: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    types: Callable[[Tensor], dict[str, Any]] = _nothing
    fewest_images: int = 0
    most_images: int = 2
    package: str | None = None


_QWEN_TOKENS = _GRID[0] * _GRID[1] // 4
_QWEN_IDS = dict(image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=BEGIN, vision_end_token_id=END)
_TILED = 64 + 8 * (16 + 1)
_PINPOINTS = [[64, 128], [128, 64], [128, 128]]


def _mrope(sections: list[int], **others: Any) -> dict[str, Any]:
    return {"rope_type": "default", "mrope_section": sections, "rope_theta": 10000.0, **others}


def _qwen_tower(**others: Any) -> dict[str, Any]:
    return dict(depth=3, num_heads=4, patch_size=_PATCH, spatial_merge_size=2, temporal_patch_size=2, in_channels=3) | others


def _qwen(model_type: str, text: dict[str, Any], tower: dict[str, Any]) -> TinyRecipe:
    return TinyRecipe(
        model_type=model_type,
        config=dict(text_config=text, vision_config=tower, **_QWEN_IDS),
        pixels=_own_resolution,
        tokens=_QWEN_TOKENS,
        around=((BEGIN,), (END,)),
        types=_mm_types,
    )


def _instructblip(text: dict[str, Any]) -> TinyRecipe:
    former = dict(vocab_size=VOCABULARY, hidden_size=48, num_hidden_layers=2, num_attention_heads=4)
    return TinyRecipe(
        model_type="instructblip",
        config=dict(
            vision_config=_tower(),
            qformer_config=dict(former, intermediate_size=96, encoder_hidden_size=48),
            text_config=text,
            num_query_tokens=16,
            image_token_index=IMAGE,
        ),
        pixels=_asked,
        tokens=16,
        fewest_images=1,
        most_images=1,
    )


_OPT = dict(
    model_type="opt",
    vocab_size=VOCABULARY,
    hidden_size=64,
    ffn_dim=128,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    max_position_embeddings=512,
    word_embed_proj_dim=64,
    pad_token_id=PAD,
    bos_token_id=BOS,
    eos_token_id=EOS,
    tie_word_embeddings=False,
)

_FASTVIT = dict(
    inference_mode=True,
    layers=(2, 2, 6, 2, 2),
    embed_dims=(16, 16, 16, 32, 64),
    mlp_ratios=(4, 4, 4, 4, 4),
    se_downsamples=(False,) * 5,
    downsamples=(False, True, True, True, True),
    pos_embs=(None,) * 5,
    token_mixers=("repmixer",) * 3 + ("attention",) * 2,
    lkc_use_act=True,
    stem_use_scale_branch=False,
)

_TESSERA_ENCODER = {"kind": "conv_vit", "image_size": _SIDE, "patch_size": _PATCH, "width": 48, "depth": 3, "heads": 4}

RECIPES: dict[str, TinyRecipe] = {
    "llava": TinyRecipe(
        model_type="llava",
        config=dict(vision_config=_clip(), text_config=_text("llama"), image_token_index=IMAGE, image_seq_length=64),
        pixels=_square,
        tokens=64,
    ),
    "llava_next": TinyRecipe(
        model_type="llava_next",
        config=dict(vision_config=_clip(), text_config=_text("llama"), image_token_index=IMAGE, image_grid_pinpoints=_PINPOINTS),
        pixels=_wide_tiles,
        tokens=_TILED,
    ),
    "llava_onevision": TinyRecipe(
        model_type="llava_onevision",
        config=dict(
            vision_config=_siglip(),
            text_config=_text("qwen2", head=False),
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            image_grid_pinpoints=_PINPOINTS,
        ),
        pixels=_one_vision,
        tokens=_TILED,
        tokens_shared=64 + 1,
    ),
    "qwen2_vl": _qwen(
        "qwen2_vl", _text(head=False, rope_parameters=_mrope([2, 3, 3])), _qwen_tower(embed_dim=48, hidden_size=64, mlp_ratio=2)
    ),
    "qwen2_5_vl": _qwen(
        "qwen2_5_vl",
        _text(head=False, rope_parameters=_mrope([2, 3, 3])),
        _qwen_tower(hidden_size=48, intermediate_size=96, out_hidden_size=64, window_size=32, fullatt_block_indexes=[2]),
    ),
    "qwen3_vl": _qwen(
        "qwen3_vl",
        _text(rope_parameters=_mrope([4, 2, 2], mrope_interleaved=True)),
        _qwen_tower(
            depth=4,
            hidden_size=48,
            intermediate_size=96,
            out_hidden_size=64,
            num_position_embeddings=64,
            deepstack_visual_indexes=[0, 1, 2],
        ),
    ),
    "internvl": TinyRecipe(
        model_type="internvl",
        config=dict(
            vision_config=_tower() | {"image_size": [_SIDE, _SIDE], "patch_size": [_PATCH, _PATCH]},
            text_config=_text("qwen2", head=False),
            image_token_id=IMAGE,
            image_seq_length=16,
        ),
        pixels=_square,
        tokens=16,
    ),
    "smolvlm": TinyRecipe(
        model_type="smolvlm",
        config=dict(vision_config=_tower(), text_config=_text("llama"), image_token_id=IMAGE, scale_factor=2, pad_token_id=PAD),
        pixels=_per_row,
        tokens=16,
    ),
    "idefics3": TinyRecipe(
        model_type="idefics3",
        config=dict(vision_config=_tower(), text_config=_text("llama"), image_token_id=IMAGE, scale_factor=2, pad_token_id=PAD),
        pixels=_per_row,
        tokens=16,
    ),
    "paligemma": TinyRecipe(
        model_type="paligemma",
        config=dict(
            vision_config=_siglip(projection_dim=64),
            text_config=_text("gemma"),
            image_token_index=IMAGE,
            projection_dim=64,
            hidden_size=64,
            pad_token_id=PAD,
        ),
        pixels=_square,
        tokens=64,
        types=_types(0),
    ),
    "gemma3": TinyRecipe(
        model_type="gemma3",
        config=dict(
            vision_config=_siglip(),
            text_config=_text(
                "gemma3_text",
                layer_types=["sliding_attention", "full_attention"] * 3,
                sliding_window=4096,
                query_pre_attn_scalar=16,
            ),
            image_token_index=IMAGE,
            mm_tokens_per_image=16,
            boi_token_index=BEGIN,
            eoi_token_index=END,
            pad_token_id=PAD,
        ),
        pixels=_square,
        tokens=16,
        around=((BEGIN,), (END,)),
        types=_types(1),
    ),
    "ovis2": TinyRecipe(
        model_type="ovis2",
        config=dict(
            vision_config=_tower(vocab_size=120, hidden_stride=2, num_visual_indicator_tokens=5),
            text_config=_text("qwen2", head=False),
            image_token_id=IMAGE,
            visual_indicator_token_ids=[194, 195, 196, 197, 198],
            hidden_size=64,
            vocab_size=VOCABULARY,
        ),
        pixels=_square,
        tokens=16,
        around=((194,), (195,)),
    ),
    "deepseek_vl": TinyRecipe(
        model_type="deepseek_vl",
        config=dict(vision_config=_siglip(), text_config=_text("llama"), image_token_id=IMAGE),
        pixels=_square,
        tokens=64,
    ),
    "deepseek_vl_hybrid": TinyRecipe(
        model_type="deepseek_vl_hybrid",
        config=dict(
            vision_config=_siglip(),
            high_res_vision_config=dict(
                model_type="sam_vision_model",
                hidden_size=32,
                output_channels=16,
                num_hidden_layers=3,
                num_attention_heads=4,
                image_size=2 * _SIDE,
                patch_size=_PATCH,
                window_size=4,
                global_attn_indexes=[1, 2],
                mlp_dim=64,
            ),
            text_config=_text("llama"),
            image_token_id=IMAGE,
        ),
        pixels=_two_scales,
        tokens=64,
    ),
    "fast_vlm": TinyRecipe(
        model_type="fast_vlm",
        config=dict(
            vision_config=dict(
                model_type="timm_wrapper",
                architecture="fastvit_mci2",
                do_pooling=True,
                global_pool="avg",
                hidden_size=128,
                initializer_range=0.02,
                model_args=_FASTVIT,
            ),
            text_config=_text("qwen2", head=False),
            image_token_index=IMAGE,
            image_seq_length=16,
        ),
        pixels=_large,
        tokens=16,
        package="timm",
    ),
    "video_llama_3": TinyRecipe(
        model_type="video_llama_3",
        config=dict(
            vision_config=_tower("video_llama_3_vision"),
            text_config=_text("qwen2", head=False),
            image_token_id=IMAGE,
            video_token_id=VIDEO,
        ),
        pixels=_merged,
        tokens=_QWEN_TOKENS,
    ),
    "mistral3": TinyRecipe(
        model_type="mistral3",
        config=dict(
            vision_config=_tower("pixtral", head_dim=12),
            text_config=_text("mistral", sliding_window=None),
            image_token_index=IMAGE,
            spatial_merge_size=2,
        ),
        pixels=_sized,
        tokens=16,
    ),
    "pixtral": TinyRecipe(
        model_type="llava",
        config=dict(
            vision_config=_tower("pixtral", head_dim=12),
            text_config=_text("mistral", sliding_window=None),
            image_token_index=IMAGE,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        ),
        pixels=_sized,
        tokens=64,
    ),
    "instructblip": _instructblip(_text("llama")),
    "instructblip_opt": _instructblip(_OPT),
    "tessera_vlm": TinyRecipe(
        model_type="tessera_vlm",
        config=dict(
            parts={"encoders": [_TESSERA_ENCODER], "tokens": {"kind": "pixel_shuffle"}, "connector": {"kind": "mlp"}},
            text_config=_text("llama"),
            image_token_id=IMAGE,
        ),
        pixels=_square,
        tokens=16,
    ),
}
"""Name -> recipe. Most names are model types; `pixtral` is LLaVA with Pixtral's tower, `instructblip_opt` InstructBLIP on OPT."""
