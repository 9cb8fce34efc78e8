"""Unknown keys and wrong types are refused with a sentence, wherever they stand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tessera.errors import UserError
from tessera.models.configuration import TesseraConfig, TesseraDualEncoderConfig, TesseraVisionConfig

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"image_token": 4}, "'image_token'. Did you mean 'image_token_id'"),
    ({"image_token_id": "4"}, "image_token_id must be a token id"),
    ({"image_token_id": 100000}, "outside the vocabulary"),
    ({"logits_with_loss": 1}, "logits_with_loss must be true or false"),
    ({"parts": {"conector": {"kind": "mlp"}}}, "'conector'. Did you mean 'connector'"),
    ({"parts": {"connector": {"kind": "mpl"}}}, "'mpl'. Did you mean 'mlp'"),
    ({"parts": {"connector": {"kind": "mlp", "norm": "yes"}}}, "parts.connector.*'norm' expected bool"),
    ({"parts": {"connector": {"kind": "mlp", "dept": 3}}}, "parts.connector.dept.*Did you mean 'depth'"),
    ({"parts": {"connector": {"kind": "mlp", "depth": "three"}}}, "parts.connector.*'depth' expected int"),
    ({"parts": {"connector": {"kind": "mlp", "depth": 0}}}, "depth and hidden must be at least 1"),
    ({"parts": {"connector": "mlp"}}, "a part is a dictionary"),
    ({"parts": {"connector": {"depth": 2}}}, "parts.connector.kind names the part"),
    ({"parts": {"encoders": {"kind": "conv_vit"}}}, "parts.encoders must be a list"),
    ({"parts": {"encoders": []}}, "at least one encoder"),
    ({"parts": {"encoders": [{"kind": "conv_vit", "patch_size": 7}]}}, "encoders.0.*power of two"),
    ({"parts": {"encoders": [{"kind": "conv_vit", "heads": 5}]}}, "cannot be divided among 5 heads"),
    ({"parts": {"tokens": {"kind": "mlp"}}}, "part 'mlp' belongs to socket 'connectors'"),
    ({"parts": [1]}, "parts must be a dictionary"),
    ({"text_config": {"model_type": "lama"}}, "'lama'. Did you mean 'llama'"),
    (
        {"text_config": {"model_type": "llama", "hidden_sise": 32}},
        "'hidden_sise'. Did you mean 'hidden_size'",
    ),
    ({"text_config": {"model_type": "llama", "hidden_size": "wide"}}, "text_config.*hidden_size"),
    ({"text_config": 3}, "text_config must be"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_wrong_fields_are_refused(config: Callable[..., TesseraConfig], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config(**changes)


def test_the_configuration_comes_back_from_json(config: Callable[..., TesseraConfig], tmp_path: Path) -> None:
    first = config()
    first.save_pretrained(tmp_path)
    second = TesseraConfig.from_pretrained(tmp_path)
    assert second.to_dict() | {"architectures": None} == first.to_dict() | {"architectures": None}


def test_defaults_are_written_out(config: Callable[..., TesseraConfig]) -> None:
    parts: Any = config({"connector": {"kind": "mlp"}}).to_dict()["parts"]
    assert parts["connector"] == {"kind": "mlp", "depth": 2, "hidden": None, "norm": False, "bias": True}
    assert TesseraConfig().parts is not None


def test_rope_settings_of_old_and_new_style_are_taken(config: Callable[..., TesseraConfig], text_config: dict[str, Any]) -> None:
    new = config(text_config=text_config | {"rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}})
    old = config(text_config=text_config | {"rope_theta": 1000.0})
    assert new.text_config.rope_parameters == old.text_config.rope_parameters  # type: ignore[union-attr]


def test_keys_of_another_version_of_transformers_are_left_alone(
    config: Callable[..., TesseraConfig], text_config: dict[str, Any]
) -> None:
    saved = config().to_dict()
    saved["text_config"]["of_the_future"] = 1
    saved.pop("model_type")
    with pytest.raises(UserError, match="of_the_future"):
        TesseraConfig(**saved)
    assert TesseraConfig(**saved | {"transformers_version": "5.99.0"}).parts == config().parts


def test_the_vision_configuration_is_strict_and_has_no_head_by_default() -> None:
    assert TesseraVisionConfig().num_labels == 0
    assert TesseraVisionConfig(num_labels=5).num_labels == 5
    assert TesseraVisionConfig(id2label={0: "dog", 1: "cat"}).num_labels == 2
    assert TesseraVisionConfig().image_size == 112
    with pytest.raises(UserError, match="'encodr'. Did you mean 'encoder'"):
        TesseraVisionConfig(encodr={})
    with pytest.raises(UserError, match="encoder.*'width' expected int"):
        TesseraVisionConfig(encoder={"kind": "conv_vit", "width": "wide"})


def test_the_dual_encoders_configuration_is_strict() -> None:
    with pytest.raises(UserError, match="'text_dept'. Did you mean 'text_depth'"):
        TesseraDualEncoderConfig(text_dept=3)
    with pytest.raises(UserError, match="cannot be divided"):
        TesseraDualEncoderConfig(text_heads=5)
    with pytest.raises(UserError, match="at least 1"):
        TesseraDualEncoderConfig(projection_dim=0)
