"""Dropping at layer boundaries: unchanged at share 1, exact at half, for ragged rows and every way of looking at the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.hosts.dropping import Drop, Merge, generated, kept, logits, masking

import tessera
from tessera.hosts.zoo import Tiny, tiny

FAMILIES = ("llava", "qwen2_5_vl", "qwen3_vl", "gemma3")
ROWS = ((1, 1), (2, 1), (0, 1))
HALF = {2: 0.5, 4: 0.25}


@pytest.fixture(scope="module", params=FAMILIES)
def host_model(request: pytest.FixtureRequest) -> Tiny:
    return tiny(request.param)


@pytest.fixture(scope="module")
def llava() -> Tiny:
    return tiny("llava")


@pytest.mark.parametrize("images", ROWS)
@pytest.mark.parametrize("forced", [False, True], ids=["skipped", "selected"])
def test_share_one_changes_no_bit(host_model: Tiny, images: tuple[int, ...], forced: bool) -> None:
    model, inputs = host_model.model, host_model.inputs(images)
    bare = [generated(model, inputs, use_cache=cache)[:2] for cache in (True, False)]
    forward = logits(model, inputs)
    with tessera.plug(model, Drop({2: 1.0, 4: 1.0}, forced=forced)):
        plugged = [generated(model, inputs, use_cache=cache)[:2] for cache in (True, False)]
        assert torch.equal(logits(model, inputs), forward)
    for (tokens, scores), (own_tokens, own_scores) in zip(bare, plugged, strict=True):
        assert torch.equal(tokens, own_tokens) and torch.equal(scores, own_scores)


@pytest.mark.parametrize("images", ROWS)
@pytest.mark.parametrize("own", [False, True], ids=["tapped", "probed"])
def test_half_the_tokens_cached_recomputed_and_masked_agree(host_model: Tiny, images: tuple[int, ...], own: bool) -> None:
    model, inputs = host_model.model, host_model.inputs(images)
    bare = generated(model, inputs)[1]
    with tessera.plug(model, Drop(HALF, own=own)) as host:
        tokens, scores, _ = generated(model, inputs)
        sequence = host.prefilled
        assert sequence is not None
        with host.replay(sequence):
            again, recomputed, _ = generated(model, inputs, use_cache=False)
            forward = logits(model, inputs)
    assert (scores - bare).abs().max() > 1e-2
    assert torch.equal(tokens, again)
    torch.testing.assert_close(scores, recomputed, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(forward[:, -1], scores[:, 0], rtol=1e-5, atol=1e-5)
    with masking(tessera.attach(model).layers, sequence):
        torch.testing.assert_close(logits(model, inputs)[:, -1], scores[:, 0], rtol=1e-5, atol=1e-5)
    counts = [int((d.keep & sequence.visual).sum()) for layer in (2, 4) for d in sequence.plan[layer]]
    assert counts == [int(sequence.visual.sum() * share) for share in (0.5, 0.25)]


def test_only_as_many_keys_are_stored_as_tokens_are_left(llava: Tiny) -> None:
    inputs = llava.inputs((1, 1))
    with tessera.plug(llava.model, Drop(HALF)) as host:
        _, _, out = generated(llava.model, inputs, steps=4)
        assert host.prefilled is not None
        widths = kept(host.prefilled)
    assert [layer.keys.shape[-2] for layer in out.past_key_values.layers] == [width + 3 for width in widths]
    assert widths[0] - widths[2] == 32 and widths[2] - widths[4] == 16
    assert int(out.past_key_values.get_seq_length()) == inputs["input_ids"].shape[1] + 3


@pytest.mark.parametrize("images", ROWS)
def test_positions_counted_anew_have_no_gaps(llava: Tiny, images: tuple[int, ...]) -> None:
    model, inputs = llava.model, llava.inputs(images)
    seen: list[torch.Tensor] = []
    with tessera.plug(model, Drop({3: 0.5}, positions="reindex")) as host:
        tokens, scores, _ = generated(model, inputs)
        sequence = host.prefilled
        assert sequence is not None
        with host.replay(sequence):
            again, recomputed, _ = generated(model, inputs, use_cache=False)
        handle = host.layers[3].register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["position_embeddings"][0]), with_kwargs=True
        )
        logits(model, inputs)
        handle.remove()
    assert torch.equal(tokens, again)
    torch.testing.assert_close(scores, recomputed, rtol=1e-5, atol=1e-5)
    real = sequence.stages[3].real
    rotary = host.architecture.rotary
    for row, cos in enumerate(seen[0]):
        first = int(sequence.real[row].int().argmax())  # without position ids, padding counts
        places = torch.arange(first, first + int(real[row].sum()))
        wanted = rotary(torch.zeros(1, 1, 64), places[None])[0][0]
        torch.testing.assert_close(cos[real[row]], wanted)


@pytest.mark.parametrize("name", ["llava", "gemma3", "paligemma"])
def test_eager_attention(name: str) -> None:
    made = tiny(name)
    model, inputs = made.model, made.inputs((2, 1))
    with tessera.plug(model, Drop(HALF)):
        fast = logits(model, inputs)
    model.set_attn_implementation("eager")
    bare = logits(model, inputs)
    with tessera.plug(model, Drop({2: 1.0}, forced=True)):
        assert torch.equal(logits(model, inputs), bare)
    with tessera.plug(model, Drop(HALF)):
        torch.testing.assert_close(logits(model, inputs)[:, -1], fast[:, -1], rtol=1e-4, atol=1e-4)
        generated(model, inputs)


def test_bfloat16(llava: Tiny) -> None:
    model = tiny("llava").model.to(torch.bfloat16)
    inputs = llava.inputs((2, 1))
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    bare = generated(model, inputs)[1]
    with tessera.plug(model, Drop({2: 1.0}, forced=True)):
        assert torch.equal(generated(model, inputs)[1], bare)
    with tessera.plug(model, Drop(HALF, positions="reindex")) as host:
        _, scores, out = generated(model, inputs)
        assert bool(torch.isfinite(scores).all())
        assert out.past_key_values.layers[5].keys.dtype == torch.bfloat16
        assert host.prefilled is not None and host.prefilled.dropped


def test_prompts_without_images_are_untouched(llava: Tiny) -> None:
    inputs = llava.inputs((0, 0))
    bare, forward = generated(llava.model, inputs), logits(llava.model, inputs)
    with tessera.plug(llava.model, Drop({0: 0.5, 2: 0.25}, own=True)):
        plugged = generated(llava.model, inputs)
        assert torch.equal(logits(llava.model, inputs), forward)
    assert torch.equal(bare[0], plugged[0]) and torch.equal(bare[1], plugged[1])


def test_right_padding(llava: Tiny) -> None:
    """A row's answer depends on its own tokens only, wherever the padding stands."""
    left = llava.inputs((1, 1))
    mask = left["attention_mask"]
    order = (mask == 0).int().argsort(dim=1, stable=True)
    right = {**left, "input_ids": left["input_ids"].gather(1, order), "attention_mask": mask.gather(1, order)}
    last = right["attention_mask"].sum(1) - 1
    with tessera.plug(llava.model, Drop(HALF)) as host:
        wanted = logits(llava.model, left, position_ids=(mask.cumsum(1) - 1).clamp(min=0))[:, -1]
        found = logits(llava.model, right)[torch.arange(2), last]
        assert host.prefilled is not None
        assert host.prefilled.query.tolist() == last.tolist()
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_merging(llava: Tiny) -> None:
    model, inputs = llava.model, llava.inputs((2, 1))
    bare = generated(model, inputs)
    with tessera.plug(model, Merge(0, forced_identity=True)):
        assert torch.equal(generated(model, inputs)[1], bare[1])
    with tessera.plug(model, Merge(0), Drop({3: 0.25})) as host:
        tokens, scores, _ = generated(model, inputs)
        assert host.prefilled is not None
        with host.replay(host.prefilled):
            again, recomputed, _ = generated(model, inputs, use_cache=False)
        widths = kept(host.prefilled)
    assert widths[0] < inputs["input_ids"].shape[1] and widths[3] < widths[2]
    assert torch.equal(tokens, again)
    torch.testing.assert_close(scores, recomputed, rtol=1e-5, atol=1e-5)


def test_parts_that_select_at_one_boundary_follow_each_other(llava: Tiny) -> None:
    class Odd(Drop):
        claims = ()

    model, inputs = llava.model, llava.inputs((1, 1))
    with tessera.plug(model, Drop({2: 0.5}), Odd({2: 0.25, 4: 0.125})) as host:
        scores = generated(model, inputs)[1]
        sequence = host.prefilled
        assert sequence is not None
        with host.replay(sequence):
            recomputed = generated(model, inputs, use_cache=False)[1]
    assert [len(sequence.plan[layer]) for layer in (2, 4)] == [2, 1]
    assert [int(sequence.stages[layer].visual.sum(1)[0]) for layer in (1, 2, 4)] == [64, 16, 8]
    torch.testing.assert_close(scores, recomputed, rtol=1e-5, atol=1e-5)


def test_whose_image_a_token_belongs_to(llava: Tiny) -> None:
    inputs: dict[str, Any] = llava.inputs((2, 1))
    ids = inputs["input_ids"]
    gap = (ids[0] == 190).nonzero()[64, 0]  # the two images of row 0 move together: no text between them
    ids[0, gap - 2 : gap + 64] = torch.cat([ids[0, gap : gap + 64], ids[0, gap - 2 : gap]])
    with tessera.plug(llava.model, Drop(HALF)) as host:
        logits(llava.model, inputs)
        assert host.sequence is not None
        owner = host.sequence.image_of
    assert [[int((row == image).sum()) for image in (0, 1)] for row in owner] == [[64, 64], [64, 0]]
    assert torch.equal(owner >= 0, ids == 190)
