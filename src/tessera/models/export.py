"""Export to a stock LLaVA, when the parts reduce to one.

LLaVA is: one CLIP or SigLIP tower, no token part, an MLP of two layers with GELU, prefix coupling, a
Llama-type language model. A composed model of these parts becomes a `LlavaForConditionalGeneration` folder
with the same weights under other names, which transformers, vLLM, llama.cpp's converter and others read
without Tessera.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from tessera.errors import UserError
from tessera.io import atomic_folder
from tessera.models.modeling import TesseraForConditionalGeneration
from tessera.models.processing import TesseraProcessor

TOWERS = ("clip_vision_model", "siglip_vision_model")
LANGUAGE_MODELS = ("llama", "mistral", "qwen2", "qwen3")

_EXPECTED = {"experts": "single", "tokens": "identity", "connector": "mlp", "coupling": "prefix"}


def to_llava(model: TesseraForConditionalGeneration, processor: TesseraProcessor, folder: str | Path) -> Path:
    """Writes `folder` (whole or not at all): LLaVA weights, configuration, processor, generation settings.

    Images that are plain RGB come out of the written processor as they come out of ours; it does not turn
    EXIF-rotated images upright. Raises `UserError` naming the part that LLaVA does not have.
    """
    check(model, processor)
    from transformers import LlavaForConditionalGeneration

    llava = LlavaForConditionalGeneration(_configuration(model, processor)).to(model.dtype)
    llava.load_state_dict(_weights(model), strict=True)
    llava.generation_config = model.generation_config
    written = _processor(model, processor)
    with atomic_folder(folder) as temporary:
        llava.save_pretrained(temporary)
        written.save_pretrained(temporary)
    return Path(folder)


def check(model: TesseraForConditionalGeneration, processor: TesseraProcessor) -> None:
    """Raises `UserError` naming the first part that does not reduce to LLaVA."""
    parts: Any = model.config.parts
    text: Any = model.config.text_config
    if len(parts["encoders"]) != 1:
        raise _no("encoders", f"{len(parts['encoders'])} encoders", "one")
    encoder = parts["encoders"][0]
    if encoder["kind"] != "transformers_vision":
        raise _no("encoders.0", repr(encoder["kind"]), "a CLIP or SigLIP tower ('transformers_vision')")
    if encoder["tower"].get("model_type") not in TOWERS:
        raise _no("encoders.0", repr(encoder["tower"].get("model_type")), f"one of {', '.join(TOWERS)}")
    for socket, kind in _EXPECTED.items():
        if parts[socket]["kind"] != kind:
            raise _no(socket, repr(parts[socket]["kind"]), repr(kind))
    connector = parts["connector"]
    if connector["depth"] != 2:
        raise _no("connector", f"an MLP of {connector['depth']} layers", "one of 2")
    if connector["norm"]:
        raise _no("connector", "a LayerNorm in front", "none")
    if connector["hidden"] not in (None, text.hidden_size):
        raise _no(
            "connector",
            f"a hidden width of {connector['hidden']}",
            f"the language model's {text.hidden_size}",
        )
    if text.model_type not in LANGUAGE_MODELS:
        raise _no("language_model", repr(text.model_type), f"one of {', '.join(LANGUAGE_MODELS)}")
    if processor.image_processor.fit != "squash":
        raise _no("image processor", f"fit={processor.image_processor.fit!r}", "'squash'")


def _no(part: str, found: str, wanted: str) -> UserError:
    return UserError(f"this model does not reduce to LLaVA: {part} has {found}, LLaVA has {wanted}.")


def _has_class_token(model: TesseraForConditionalGeneration) -> bool:
    specs: Any = model.config.parts
    return specs["encoders"][0]["tower"]["model_type"] == "clip_vision_model"


def _configuration(model: TesseraForConditionalGeneration, processor: TesseraProcessor) -> Any:
    from transformers import LlavaConfig

    specs: Any = model.config.parts
    text: Any = model.config.text_config
    encoder: Any = model.model.encoders[0]
    return LlavaConfig(
        vision_config=encoder.tower.config.to_dict(),
        text_config=text.to_dict(),
        image_token_index=model.config.image_token_id,
        image_seq_length=processor.tokens_per_image,
        projector_hidden_act="gelu",
        vision_feature_layer=encoder.layer,
        vision_feature_select_strategy="default" if _has_class_token(model) else "full",
        multimodal_projector_bias=specs["connector"]["bias"],
        tie_word_embeddings=text.tie_word_embeddings,
    )


def _weights(model: TesseraForConditionalGeneration) -> dict[str, Tensor]:
    """Our names -> LLaVA's, as its modules call them in memory."""
    names = {
        "model.encoders.0.tower.": "model.vision_tower.",
        "model.connector.layers.0.": "model.multi_modal_projector.linear_1.",
        "model.connector.layers.1.": "model.multi_modal_projector.linear_2.",
        "model.language_model.": "model.language_model.",
        "lm_head.": "lm_head.",
    }
    renamed: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        prefix = next((p for p in names if key.startswith(p)), None)
        if prefix is None:
            raise UserError(f"this model does not reduce to LLaVA: there is no place for its weight {key!r}.")
        renamed[names[prefix] + key.removeprefix(prefix)] = value
    return renamed


def _processor(model: TesseraForConditionalGeneration, processor: TesseraProcessor) -> Any:
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    ours = processor.image_processor
    images = CLIPImageProcessorPil(
        size=dict(ours.size),
        crop_size=dict(ours.size),
        do_center_crop=False,
        resample=ours.resample,
        image_mean=list(ours.image_mean),
        image_std=list(ours.image_std),
        do_convert_rgb=True,
    )
    encoder: Any = model.model.encoders[0]
    has_class_token = _has_class_token(model)
    return LlavaProcessor(
        image_processor=images,
        tokenizer=processor.tokenizer,
        patch_size=encoder.tower.config.patch_size,
        vision_feature_select_strategy="default" if has_class_token else "full",
        num_additional_image_tokens=int(has_class_token),
        chat_template=processor.chat_template,
    )
