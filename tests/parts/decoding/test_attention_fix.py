from __future__ import annotations

import copy
import math
import sys
from functools import partial
from typing import Any

import pytest
import torch
from tests.parts.decoding.anew import close, fresh, longer, made
from torch import Tensor

from tessera.config import build
from tessera.errors import UserError
from tessera.hosts import zoo
from tessera.hosts.attention_override import biased
from tessera.parts.decoding.attention_fix import AttentionFix, by_chance, covering, salient

STEPS = 4


def generated(host: Any, inputs: dict[str, Any], **options: Any) -> tuple[Tensor, Tensor]:
    out = host.model.generate(
        **inputs,
        max_new_tokens=STEPS,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        suppress_tokens=list(host.architecture.image_token_ids),
        **options,
    )
    return out.sequences[:, -STEPS:], torch.stack(out.logits, 1)


@pytest.mark.parametrize("name", zoo.names())
def test_amplification_1_is_the_model_and_more_goes_through_the_cache(name: str) -> None:
    tiny, host = made(name)
    inputs = tiny.inputs()
    bare, logits = generated(host, inputs)
    with host.plug("attention_fix", **AttentionFix.identity()):
        tokens, found = generated(host, inputs)
    assert torch.equal(tokens, bare) and torch.equal(found, logits)
    part = AttentionFix(build(AttentionFix.Config, {"amplification": 4.0}))
    with host.plug(part):
        tokens, found = generated(host, inputs)
        assert not torch.allclose(found[:, 0], logits[:, 0], rtol=1e-4, atol=1e-4)
        notes = host.prefilled.notes
        edited = part.layers(host)
    if name != "paligemma":  # its prompt sees itself whole, so an answer that is read anew is not what its cache holds
        close(found, by_hand(host, inputs, notes, edited, tokens))


def by_hand(host: Any, inputs: dict[str, Any], notes: dict[Any, Any], edited: list[int], tokens: Tensor) -> Tensor:
    """The answer's logits [B, STEPS, V]: probabilities are multiplied and divided by their sum, each step reads all anew."""
    prompt = inputs["input_ids"]
    visual = torch.isin(prompt, torch.tensor(host.architecture.image_token_ids))
    with pytest.MonkeyPatch.context() as patch:
        for layer in edited:
            module = host.architecture.attention(host.layers[layer])
            settings = copy.copy(module.config)
            settings._attn_implementation_internal = f"by_hand_{layer}"
            factors, chosen = (notes[f"attention_fix {kind} {layer}"] for kind in ("factors", "chosen"))
            registry = sys.modules[type(module).__module__].ALL_ATTENTION_FUNCTIONS
            registry[f"by_hand_{layer}"] = partial(multiplied, factors, chosen, visual)
            patch.setattr(module, "config", settings)
        steps = [fresh(host.model, inputs)]
        for token in tokens[:, :-1].split(1, 1):
            inputs = longer(inputs, token)
            steps.append(fresh(host.model, inputs))
    for layer in edited:
        del registry[f"by_hand_{layer}"]
    return torch.stack(steps, 1)


def multiplied(
    factors: Tensor,
    chosen: Tensor,
    visual: Tensor,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as the equations have it."""
    heads, count, width = query.shape[1:]
    key, value = (t[:, :, :count].repeat_interleave(heads // t.shape[1], 1) for t in (key, value))
    scores = query @ key.transpose(-1, -2) * (kwargs.get("scaling") or width**-0.5)
    if mask is None:
        scores = scores.masked_fill(~torch.ones(count, count, dtype=torch.bool).tril(), -torch.inf)
    elif mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask[..., :count], -torch.inf)
    else:
        scores = scores + mask[..., :count]
    weights = scores.softmax(-1).nan_to_num(0)
    keys = torch.nn.functional.pad(chosen, (0, count - chosen.shape[1]))
    text = ~torch.nn.functional.pad(visual, (0, count - visual.shape[1]))
    amplified = weights * torch.where(text[:, None, :, None] & keys[:, None, None], factors[:, :, None, None], 1.0)
    weights = amplified / amplified.sum(-1, keepdim=True).clamp(min=1e-30)
    return (weights @ value).transpose(1, 2).contiguous(), None


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", ["none", "bool", "float"])
def test_a_bias_is_a_product_with_normalised_rows(groups: int, kind: str) -> None:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    g = torch.Generator().manual_seed(0)
    rows, heads, tokens, width = 2, 4, 9, 16
    query = torch.randn(rows, heads, tokens, width, generator=g)
    key, value = torch.randn(2, rows, heads // groups, tokens, width, generator=g)
    factors = 1 + 2 * torch.rand(rows, heads, generator=g)
    chosen, text = torch.rand(rows, tokens, generator=g) > 0.5, torch.rand(rows, tokens, generator=g) > 0.3
    causal = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    mask: Any = None if kind == "none" else causal[None, None].expand(rows, 1, -1, -1)
    if kind == "float":
        mask = torch.zeros(rows, 1, tokens, tokens).masked_fill(~causal, -1e9)
    module = torch.nn.Module()
    module.is_causal, module.num_key_value_groups = True, groups  # type: ignore[assignment]
    boost = factors.log()[:, :, None] * text[:, None]
    found, _ = biased(sdpa_attention_forward, module, query, key, value, mask, boost, chosen, scaling=0.3)
    whole_key, whole_value = (t.repeat_interleave(groups, 1) for t in (key, value))
    scores = (query @ whole_key.transpose(-1, -2) * 0.3).masked_fill(~causal, -torch.inf)
    weights = scores.softmax(-1)
    change = torch.where(text[:, None, :, None] & chosen[:, None, None, :], factors[:, :, None, None], 1.0)
    weights = weights * change
    weights = weights / weights.sum(-1, keepdim=True)
    close(found, (weights @ whole_value).transpose(1, 2))


def test_two_streams_choose() -> None:
    saliency = torch.tensor([[0.1, 0.5, 0.2, 0.2, 0.9, 0.3], [0.4, 0.4, 0.0, 0.0, 0.0, 0.0]])
    visual = torch.tensor([[1, 1, 1, 1, 0, 1], [1, 1, 0, 0, 0, 0]]).bool()
    saliency = saliency.masked_fill(~visual, -1)
    assert salient(saliency, visual, 0.4).tolist() == [
        [False, True, False, False, False, True],
        [True, False, False, False, False, False],
    ]
    cells = torch.tensor([[0, 0, 1, 1, 1, -1], [7, 7, -1, -1, -1, -1]])
    assert covering(saliency, cells, visual).tolist() == [
        [False, True, True, False, False, False],
        [True, False, False, False, False, False],
    ]


def test_factors_grow_with_the_heads_visual_sensitivity() -> None:
    tiny, host = made("llava")
    inputs = tiny.inputs((1, 2))
    tiny.model.set_attn_implementation("eager")
    with torch.no_grad():
        attention = tiny.model(**inputs, output_attentions=True).attentions[3]
    tiny.model.set_attn_implementation("sdpa")
    with host.plug("attention_fix", amplification=3.0, layers=(3,), salient=0.1, cells=2), torch.no_grad():
        tiny.model(**inputs)
        notes, visual, images = host.sequence.notes, host.sequence.visual, host.sequence.image_of
    mass = (attention[:, :, -1] * visual[:, None]).sum(-1)
    torch.testing.assert_close(notes["attention_fix factors 3"], 1 + 2 * mass / mass.amax(1, keepdim=True), rtol=1e-5, atol=1e-5)
    chosen, saliency = notes["attention_fix chosen 3"], attention[:, :, -1].mean(1)
    assert not chosen[~visual].any()
    for row in range(2):
        count = int(visual[row].sum())
        best = saliency[row].masked_fill(~visual[row], -1).topk(math.ceil(0.1 * count)).indices
        assert chosen[row, best].all()
        for image in range(int(images[row].max()) + 1):
            places = (images[row] == image).nonzero()[:, 0].view(8, 8)
            quarters = [places[r : r + 4, c : c + 4].flatten() for r in (0, 4) for c in (0, 4)]
            assert all(chosen[row, quarter[saliency[row, quarter].argmax()]] for quarter in quarters)
    assert chosen.sum() <= sum(math.ceil(0.1 * int(n)) for n in visual.sum(1)) + 4 * 3


def test_the_control_treats_all_heads_and_tokens_alike() -> None:
    tiny, host = made("llava")
    with host.plug("attention_fix", amplification=2.0, heads="all", salient=1.0), torch.no_grad():
        tiny.model(**tiny.inputs())
        notes, visual = host.sequence.notes, host.sequence.visual
    assert torch.equal(notes["attention_fix chosen 4"], visual)
    assert (notes["attention_fix factors 4"] == 2).all()


def test_the_random_control_moves_as_much_to_other_places() -> None:
    tiny, host = made("llava")
    notes = {}
    for choice, seed in (("seen", 0), ("random", 0), ("random", 1)):
        options = {"amplification": 3.0, "layers": (3,), "cells": 2, "choice": choice, "seed": seed}
        with host.plug("attention_fix", **options), torch.no_grad():
            tiny.model(**tiny.inputs((1, 2)))
            notes[choice, seed] = [host.sequence.notes[f"attention_fix {name} 3"] for name in ("factors", "chosen")]
            visual = host.sequence.visual
    (factors, chosen), (moved, drawn), (again, others) = notes.values()
    assert torch.equal(factors.sort(1).values, moved.sort(1).values)
    assert torch.equal(chosen.sum(1), drawn.sum(1)) and not drawn[~visual].any()
    assert not torch.equal(chosen, drawn) and not torch.equal(drawn, others)
    assert not torch.equal(factors, moved) or not torch.equal(factors, again)


def test_chance_is_of_the_layer_and_the_place_alone() -> None:
    visual = torch.tensor([[0, 1, 1, 1, 1, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1, 1, 1, 1, 1]]).bool()
    chosen = visual & (visual.cumsum(1) <= 3)
    factors = torch.arange(16.0).view(2, 8)
    moved, drawn = by_chance(factors, chosen, visual, 0, 5)
    assert torch.equal(moved[0] + 8, moved[1])
    assert torch.equal(drawn[0, 1:9], drawn[1, 2:]) and drawn.sum(1).tolist() == [3, 3]
    assert not torch.equal(drawn, by_chance(factors, chosen, visual, 0, 6)[1])


def test_beside_a_part_that_drops_tokens_and_under_beams() -> None:
    tiny, host = made("llava")
    inputs = tiny.inputs((2, 1))
    part = AttentionFix(build(AttentionFix.Config, {"amplification": 3.0}))
    options = {"num_beams": 2, "do_sample": False, "max_new_tokens": STEPS, "suppress_tokens": [190, 191]}
    with host.plug("uniform", part):
        assert tiny.model.generate(**inputs, **options).shape[1] == inputs["input_ids"].shape[1] + STEPS
    with host.plug(part):
        cached = tiny.model.generate(**inputs, **options)
    assert cached.shape[1] == inputs["input_ids"].shape[1] + STEPS


def test_layers_are_the_deeper_half_without_windows() -> None:
    tiny, host = made("gemma3")
    part = AttentionFix(build(AttentionFix.Config, {}))
    kinds = tiny.model.config.get_text_config().layer_types
    assert part.layers(host) == [n for n in range(len(kinds) // 2, len(kinds)) if kinds[n] == "full_attention"]
    sliding = kinds.index("sliding_attention")
    for layers, reason in (((sliding,), "window"), ((99,), "no layer 99")):
        with pytest.raises(UserError, match=reason), host.plug("attention_fix", layers=layers):
            pass


def test_wrong_settings_are_refused() -> None:
    for wrong in ({"amplification": 0.0}, {"salient": 1.5}, {"cells": -1}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            build(AttentionFix.Config, wrong)
