"""Models of unknown families: what follows transformers' conventions is a host without a map, anything else is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tessera.errors import TesseraError, UserError
from tessera.hosts import architecture as architectures
from tessera.hosts import zoo
from tessera.hosts.architecture import Family, RasterFamily, architecture, attention_of, families, family, found, without_images

TEXT: dict[str, Any] = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=200)
TOWER: dict[str, Any] = dict(hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, patch_size=8)
FORMER = dict(vocab_size=200, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, encoder_hidden_size=48)
TOKENS = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)


def _model(kind: str, **config: Any) -> Any:
    from transformers import AutoModelForImageTextToText
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return AutoModelForImageTextToText.from_config(CONFIG_MAPPING[kind](**config))


def _vip() -> Any:
    tower = dict(TOWER, model_type="clip_vision_model", image_size=64)
    text = dict(TEXT, model_type="llama", **TOKENS)
    return _model("vipllava", vision_config=tower, text_config=text, image_token_index=190, vision_feature_layers=[-1, -2])


def _instructblip(text: dict[str, Any]) -> Any:
    tower, former = dict(TOWER, image_size=64), dict(FORMER, intermediate_size=96)
    return _model("instructblip", vision_config=tower, qformer_config=former, text_config=text, image_token_index=190)


def test_an_unknown_family_that_follows_the_conventions_is_a_host_without_a_map() -> None:
    seen = architecture(_vip())
    assert type(seen.family) is Family
    assert {"rope", "cache", "tower attention", "class token"} == seen.capabilities
    assert seen.image_token_ids == (190,)
    assert (len(seen.layers), len(seen.tower_blocks or ()), seen.projector is not None) == (2, 2, True)
    with pytest.raises(UserError, match="stand in the image"):
        seen.family.layouts(_vip(), {})


def test_what_is_no_transformers_model_is_refused() -> None:
    with pytest.raises(UserError, match="a host is a transformers model; Linear has no configuration"):
        architecture(nn.Linear(2, 2))


def test_a_language_model_alone_is_refused() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    with pytest.raises(UserError, match="'llama' cannot be a host: it has no get_image_features"):
        architecture(LlamaForCausalLM(LlamaConfig(**TEXT, **TOKENS)))


def test_an_encoder_and_decoder_is_refused() -> None:
    text = dict(model_type="t5", vocab_size=200, d_model=64, d_ff=64, num_layers=2, num_heads=4, d_kv=16)
    with pytest.raises(UserError, match="an encoder and a decoder; hosts are decoders only"):
        architecture(_instructblip(text))


def test_a_language_model_with_convolutions_is_refused() -> None:
    tower = dict(TOWER, model_type="siglip2_vision_model", num_patches=64, vision_use_head=False)
    text = dict(TEXT, **TOKENS, model_type="lfm2", num_key_value_heads=2, layer_types=["conv", "full_attention"])
    with pytest.raises(UserError, match="layers of type conv; hosts attend in every layer"):
        architecture(_model("lfm2_vl", vision_config=tower, text_config=text, image_token_id=190))


def test_a_model_without_placeholder_is_refused() -> None:
    model = _vip()
    model.config.__dict__["image_token_index"] = None
    with pytest.raises(UserError, match="names no placeholder token of images"):
        architecture(model)


class _Layer(nn.Module):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states


class _Crossing(nn.Module):
    def forward(self, hidden_states: torch.Tensor, attention_mask: Any, encoder_hidden_states: Any) -> torch.Tensor:
        return hidden_states


@pytest.mark.parametrize(("layer", "reason"), [(_Layer, "takes no attention_mask"), (_Crossing, "by cross-attention")])
def test_layers_of_another_kind_are_refused(layer: type[nn.Module], reason: str) -> None:
    model = _vip()
    model.model.language_model.layers[1] = layer()
    with pytest.raises(UserError, match=reason):
        architecture(model)


def test_what_has_no_attention_or_norm_says_so() -> None:
    seen = architecture(_vip())
    assert attention_of(nn.Linear(2, 2)) is None
    with pytest.raises(UserError, match="Linear has no attention module"):
        seen.attention(nn.Linear(2, 2))
    with pytest.raises(UserError, match="Linear has no norm"):
        seen.norm(nn.Linear(2, 2))


def test_attention_inside_attention_is_found() -> None:
    """ViT wraps the module that attends into one that projects."""
    from transformers import ViTConfig, ViTModel

    blocks = found(ViTModel(ViTConfig(**TOWER, image_size=64)), ("encoder.layer", "layers"))
    assert hasattr(attention_of(blocks[0]), "config")


def test_every_family_of_the_zoo_has_one_adapter() -> None:
    known = families()
    assert {recipe.model_type for recipe in zoo.RECIPES.values()} == set(known)
    assert all(adapter.title != "generic" for adapter in known.values())
    assert len({id(adapter) for adapter in known.values()}) == len(known)


def test_two_adapters_for_one_model_type_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(architectures, "_families", dict(families()))
    with pytest.raises(TesseraError, match="two adapters for model type 'llava'"):

        @family("llava", title="another")
        class Another(RasterFamily):
            pass


def test_without_images_keeps_the_order_of_words() -> None:
    ids = torch.tensor([[0, 0, 1, 9, 9, 5], [1, 9, 9, 6, 7, 8]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    types = (ids == 9).long()
    bare = without_images({"input_ids": ids, "attention_mask": mask, "token_type_ids": types, "pixel_values": 1}, (9,), 3)
    assert bare["input_ids"].tolist() == [[3, 3, 1, 5], [1, 6, 7, 8]]
    assert bare["attention_mask"].tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]
    assert bare["token_type_ids"].tolist() == [[0] * 4, [0] * 4]
    assert set(bare) == {"input_ids", "attention_mask", "token_type_ids"}
    assert without_images({"input_ids": ids[1:]}, (9,), 3)["input_ids"].tolist() == [[1, 6, 7, 8]]


def test_composed_models_whose_tokens_are_no_raster_offer_no_map() -> None:
    model = zoo.tiny("tessera_vlm").model
    model.model.tokens.grid = None
    seen = architecture(model)
    assert not seen.capabilities & {"token map", "raster"}
    with pytest.raises(UserError, match="no full raster"):
        seen.family.layouts(model, {"pixel_values": torch.zeros(1, 3, 64, 64)})


def test_composed_models_read_towers_of_transformers() -> None:
    tower = {"kind": "transformers_vision", "tower": dict(TOWER, model_type="clip_vision_model", image_size=64)}
    parts = {"encoders": [tower], "tokens": {"kind": "pixel_shuffle"}, "connector": {"kind": "mlp"}}
    model = zoo.tiny("tessera_vlm", parts=parts).model
    seen = architecture(model)
    assert {"class token", "token map", "tower attention"} <= seen.capabilities
    assert (seen.feature_block, len(seen.tower_blocks or ())) == (-2, 2)
    one = torch.zeros(1, 65)
    one[0, 1 + 8 * 3 + 5] = 1  # the class token, then row 3, column 5
    scores = seen.family.token_scores(model, [one], {"pixel_values": torch.zeros(1, 3, 64, 64)})
    assert scores.nonzero().flatten().tolist() == [4 * (3 // 2) + 5 // 2]


def test_unknown_tiny_hosts_name_the_nearest() -> None:
    with pytest.raises(UserError, match="'llava_next'"):
        zoo.tiny("llava_nxt")


def test_tiny_hosts_come_out_the_same_and_leave_the_random_state_alone() -> None:
    torch.manual_seed(5)
    first = zoo.tiny("llava").model
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))
    second = zoo.tiny("llava").model
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.lm_head.weight, zoo.tiny("llava", seed=1).model.lm_head.weight)


def test_tiny_inputs() -> None:
    batch = zoo.inputs("llava", (2, 1))
    assert (batch["input_ids"] == zoo.IMAGE).sum(1).tolist() == [128, 64]
    assert batch["pixel_values"].shape == (3, 3, 64, 64)
    padding = batch["attention_mask"] == 0
    assert padding.any()
    assert (padding.int().diff(dim=1) <= 0).all()  # on the left
    assert "pixel_values" not in zoo.inputs("llava", (0, 0))
    with pytest.raises(ValueError, match="takes 1 to 1 images a row"):
        zoo.inputs("instructblip", (2, 1))
