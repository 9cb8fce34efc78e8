"""The contract of couplings: what stands in front of them, what they leave alone, what rides on the cache."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.copies import assert_same_model

from tessera.errors import UserError
from tessera.lab.composed import IMAGE, pictures, prefix, tiny
from tessera.models.coupling import MEMORY, Coupling, Pass, decoder_layers
from tessera.models.modeling import TesseraForConditionalGeneration
from tessera.models.parts import normalise
from tessera.training.features import cacheable

SPECS: dict[str, dict[str, Any]] = {
    "prefix": {"kind": "prefix"},
    "flamingo": {"kind": "flamingo", "latents": 4, "depth": 1, "heads": 2, "head_width": 8, "every": 2},
    "moe_llava": {"kind": "moe_llava"},
    "ep_alm": {"kind": "ep_alm", "levels": 2, "start": 1, "end": 3},
    "eve": {"kind": "eve", "image_size": 32, "patch_size": 4, "width": 16, "heads": 2},
}


@pytest.mark.parametrize("kind", SPECS)
def test_saved_copied_and_trained_models_are_as_they_were(kind: str, tmp_path: Path) -> None:
    model = tiny(SPECS[kind])
    ids = torch.tensor([[*prefix(model, 2), 6, 20, 7]])
    model.train()(ids, pictures(2), labels=ids.masked_fill(ids == IMAGE, -100)).loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():  # gates open, experts differ
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)), alpha=0.1)
    model.eval()
    expected = model(ids, pictures(2)).logits
    twin = copy.deepcopy(model)
    assert torch.equal(twin(ids, pictures(2)).logits, expected)
    with torch.no_grad():
        for parameter in twin.model.coupling.parameters():
            parameter.zero_()
    assert torch.equal(model(ids, pictures(2)).logits, expected), "the copy's hooks belong to the copy"
    model.save_pretrained(tmp_path)
    loaded = TesseraForConditionalGeneration.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert loaded.config.parts == model.config.parts
    assert_same_model(loaded, model, lambda m: m(ids, pictures(2)).logits)


@pytest.mark.parametrize("kind", ["flamingo", "ep_alm", "eve"])
def test_the_language_model_by_itself_is_untouched_and_keeps_its_names(kind: str) -> None:
    plain, model = tiny(SPECS["prefix"]), tiny(SPECS[kind], seed=1)
    model.model.language_model.load_state_dict(plain.model.language_model.state_dict())
    ids = torch.tensor([[1, 6, 20, 21, 7]])
    mine, theirs = (m.model.language_model(ids).last_hidden_state for m in (model, plain))
    assert torch.equal(mine, theirs)
    assert not [name for name, _ in model.named_parameters() if "language_model" in name and "coupling" in name]


@pytest.mark.parametrize("kind", SPECS)
def test_text_without_an_image_needs_none(kind: str) -> None:
    model = tiny(SPECS[kind])
    ids = torch.tensor([[1, 6, 20, 21, 7]])
    assert bool(model(ids).logits.isfinite().all())
    with pytest.raises(UserError, match="no image was given"):
        model(torch.tensor([[*prefix(model, 1), 6]]))
    with pytest.raises(UserError, match="image placeholder tokens"):
        model(torch.tensor([[*prefix(model, 1), 6]]), pictures(2))


@pytest.mark.parametrize("kind", SPECS)
def test_counting_placeholders_breaks_no_compiled_graph(kind: str) -> None:
    model = tiny(SPECS[kind])
    base = model.model
    torch.compiler.reset()  # graphs of one code are counted, whosoever they are
    embed = torch.compile(base.embed, backend="eager", fullgraph=True)
    ids, text = torch.tensor([[*prefix(model, 2), 6, 20]]), torch.tensor([[1, 6, 20]])
    features = base.get_image_features(pictures(2)).detach()
    assert torch.equal(embed(ids, features), base.embed(ids, features))
    assert torch.equal(embed(text, None), base.embed(text, None))
    for wrong, given in ((ids, None), (text, features), (torch.cat([ids, ids], 1), features)):
        with pytest.raises(RuntimeError, match="differ in number"):
            embed(wrong, given)
        with pytest.raises(UserError, match="image placeholder tokens"):
            base.require_images(wrong, 0 if given is None else 2)


def test_images_may_come_in_later_turns() -> None:
    model = tiny(SPECS["flamingo"])
    for block in model.model.coupling.blocks:
        torch.nn.init.constant_(block.attention_gate, 0.5)
    first, second = [*prefix(model, 1), 6, 20], [5, IMAGE, 6, 21, 7]
    images = pictures(2)
    whole = model(torch.tensor([first + second]), images).logits[:, len(first) :]
    begun = model(torch.tensor([first]), images[:1], use_cache=True).past_key_values
    assert getattr(begun, MEMORY).slots.tolist() == [[-1, -1, 0, -1, -1]]
    rest = model(torch.tensor([second]), images[1:], past_key_values=begun).logits
    torch.testing.assert_close(rest, whole, rtol=0, atol=1e-5)


def test_a_couplings_loss_is_added_in_training_only() -> None:
    model = tiny({**SPECS["moe_llava"], "balance": 1.0})
    ids = torch.tensor([[*prefix(model, 1), 6, 20, 7, 30, 2]])
    inputs: dict[str, Any] = {"input_ids": ids, "pixel_values": pictures(1), "labels": ids.masked_fill(ids == IMAGE, -100)}
    quiet = model(**inputs)
    model.model.coupling.config.capacity = None
    for layer in model.model.coupling.layers:
        layer.capacity = None
    loud = model.train()(**inputs)
    extra = sum(layer.routing.balance() for layer in model.model.coupling.layers)
    torch.testing.assert_close(loud.loss, quiet.loss + extra)
    torch.testing.assert_close(loud.loss_sum / loud.loss_weight, loud.loss)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"coupling": SPECS["eve"], "encoders": [{"kind": "conv_vit"}]}, r"parts\.encoders: coupling 'eve' reads pixels itself"),
    ({"coupling": SPECS["eve"], "connector": {"kind": "mlp"}}, r"leave connector out"),
    ({"coupling": SPECS["ep_alm"], "tokens": {"kind": "identity"}}, r"parts\.tokens: coupling 'ep_alm' reads the towers itself"),
    ({"coupling": SPECS["ep_alm"], "encoders": []}, "at least one encoder"),
    ({"coupling": {"kind": "flamengo"}}, "'flamengo'. Did you mean 'flamingo'"),
    ({"coupling": {"kind": "v2pe"}}, "plugs into a finished model"),
]


@pytest.mark.parametrize(("parts", "message"), REFUSED)
def test_parts_that_do_not_fit_the_coupling_are_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        normalise(parts)


def test_a_coupling_inside_a_language_model_needs_one() -> None:
    with pytest.raises(UserError, match="'flamingo' works inside a language model"):
        decoder_layers(None, "flamingo")


def test_frozen_towers_can_be_cached_where_there_are_some() -> None:
    ours = {kind: tiny(SPECS[kind]) for kind in ("ep_alm", "eve")}
    trained = {id(p) for model in ours.values() for p in model.model.coupling.parameters()}
    assert cacheable(ours["ep_alm"], ours["ep_alm"].sockets(), trained) == ["encoders.0"]
    assert cacheable(ours["eve"], ours["eve"].sockets(), trained) == []


def test_a_pass_knows_its_padding() -> None:
    places = torch.zeros(2, 3, dtype=torch.bool)
    real = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]])
    assert Pass(placeholders=places, real=real, cached=2).present().tolist() == [[True] * 3, [False, True, True]]
    segments = torch.tensor([[0, 1, -1], [0, 0, 1]])
    assert Pass(placeholders=places, segments=segments).present().tolist() == [[True, True, False], [True] * 3]
    assert bool(Pass(placeholders=places).present().all())
    assert Coupling(None, 3).now is None
