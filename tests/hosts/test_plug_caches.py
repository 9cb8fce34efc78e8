"""What rides on a cache: static and sliding caches, beams, turns, cropping, copies, generations that interleave."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.hosts.dropping import PLACEHOLDERS, Drop, generated, kept, logits
from torch import Tensor

import tessera
from tessera.errors import UserError
from tessera.hosts.caches import sequence_of
from tessera.hosts.zoo import Tiny, tiny

HALF = {2: 0.5, 4: 0.25}
MODES = ("keep", "reindex")


@pytest.fixture(scope="module")
def llava() -> Tiny:
    return tiny("llava")


@pytest.fixture(scope="module")
def windowed() -> Tiny:
    """Layers that see 20 tokens take turns with layers that see all."""
    return tiny("gemma3", text_config={"sliding_window": 20})


def dynamic(model: Any) -> Any:
    from transformers import DynamicCache

    return DynamicCache(config=model.config.get_text_config(decoder=True))


def step(model: Any, cache: Any, mask: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """More tokens behind a cache: logits [B, T, V], and the longer mask."""
    mask = torch.cat([mask, mask.new_ones(ids.shape)], 1)
    places = (mask.cumsum(1) - 1)[:, -ids.shape[1] :]
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True)
    return out.logits, mask


def prefill(model: Any, inputs: dict[str, Any], cache: Any) -> Tensor:
    places = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    return logits(model, inputs, past_key_values=cache, use_cache=True, position_ids=places)[:, -1]


def words(count: int, rows: int = 2, seed: int = 5) -> Tensor:
    return torch.randint(10, 180, (rows, count), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("images", [(1, 1), (2, 1)])
@pytest.mark.parametrize("mode", MODES)
def test_a_static_cache_gives_what_a_dynamic_one_does(llava: Tiny, images: tuple[int, ...], mode: str) -> None:
    model, inputs = llava.model, llava.inputs(images)
    bare = generated(model, inputs, cache_implementation="static")
    with tessera.plug(model, Drop({2: 1.0}, forced=True)):
        assert torch.equal(generated(model, inputs, cache_implementation="static")[1], bare[1])
    with tessera.plug(model, Drop(HALF, positions=mode)) as host:
        tokens, scores, _ = generated(model, inputs)
        for _ in range(2):  # generate() empties and uses the same static cache again
            own, found, out = generated(model, inputs, cache_implementation="static")
            assert torch.equal(own, tokens)
            torch.testing.assert_close(found, scores, rtol=1e-5, atol=1e-5)
        assert host.prefilled is not None
        lengths = [int(layer.cumulative_length) for layer in out.past_key_values.layers]
        assert lengths == [width + tokens.shape[1] - 1 for width in kept(host.prefilled)]
    assert torch.equal(generated(model, inputs, cache_implementation="static")[1], bare[1])


@pytest.mark.parametrize("images", [(1, 1), (2, 1)])
def test_sliding_windows_count_the_tokens_of_the_whole_prompt(windowed: Tiny, images: tuple[int, ...]) -> None:
    model, inputs = windowed.model, windowed.inputs(images)
    bare = generated(model, inputs, steps=30)
    with tessera.plug(model, Drop({2: 1.0}, forced=True)):
        assert torch.equal(generated(model, inputs, steps=30)[1], bare[1])
    with tessera.plug(model, Drop(HALF)) as host:
        tokens, scores, _ = generated(model, inputs, steps=30)
        assert host.prefilled is not None
        with host.replay(host.prefilled):
            again, recomputed, _ = generated(model, inputs, steps=30, use_cache=False)
    assert torch.equal(tokens, again)
    torch.testing.assert_close(scores, recomputed, rtol=1e-5, atol=1e-5)


def test_one_row_without_padding_and_with_a_window(windowed: Tiny) -> None:
    """No mask is given here, so the window has to come from the layer."""
    model, inputs = windowed.model, windowed.inputs((1,))
    with tessera.plug(model, Drop(HALF)) as host:
        _, scores, _ = generated(model, inputs, steps=30)
        assert host.prefilled is not None
        with host.replay(host.prefilled):
            recomputed = generated(model, inputs, steps=30, use_cache=False)[1]
    torch.testing.assert_close(scores, recomputed, rtol=1e-5, atol=1e-5)


def test_a_static_cache_with_a_window_is_refused_with_the_reason(windowed: Tiny) -> None:
    with tessera.plug(windowed.model, Drop(HALF)), pytest.raises(UserError, match="static cache with sliding-window"):
        generated(windowed.model, windowed.inputs(), cache_implementation="static")


@pytest.mark.parametrize("images", [(1, 1), (2, 1)])
def test_beams(llava: Tiny, images: tuple[int, ...]) -> None:
    model, inputs = llava.model, llava.inputs(images)
    options = {"do_sample": False, "num_beams": 3, "max_new_tokens": 6, "min_new_tokens": 6, "suppress_tokens": PLACEHOLDERS}
    with torch.no_grad():
        bare = model.generate(**inputs, **options)
        with tessera.plug(model, Drop({2: 1.0}, forced=True)):
            assert torch.equal(model.generate(**inputs, **options), bare)
        with tessera.plug(model, Drop(HALF)) as host:
            found = model.generate(**inputs, **options)
            assert host.prefilled is not None
            assert host.prefilled.image_of.shape[0] == 6
            with host.replay(host.prefilled):
                recomputed = model.generate(**inputs, **options, use_cache=False)
    assert torch.equal(found, recomputed)


def test_rows_of_a_sequence_change_places_with_those_of_its_cache(llava: Tiny) -> None:
    model, inputs = llava.model, llava.inputs((2, 1))
    with tessera.plug(model, Drop(HALF)):
        cache, turned = dynamic(model), dynamic(model)
        prefill(model, inputs, cache)
        wanted, _ = step(model, cache, inputs["attention_mask"], words(1))
        prefill(model, inputs, turned)
        sequence = sequence_of(turned)
        assert sequence is not None
        sequence.notes["row"] = torch.tensor([0, 1])
        swap = torch.tensor([1, 0])
        turned.reorder_cache(swap)
        found, _ = step(model, turned, inputs["attention_mask"][swap], words(1)[swap])
        assert sequence.notes["row"].tolist() == [1, 0]
        turned.batch_select_indices(torch.tensor([1]))
        turned.batch_repeat_interleave(2)
        assert sequence.stages[4].index.shape[0] == 2 and sequence.notes["row"].tolist() == [0, 0]
    torch.testing.assert_close(found[swap], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("images", [(1, 1), (2, 1)])
def test_a_second_turn(llava: Tiny, mode: str, images: tuple[int, ...]) -> None:
    model, inputs = llava.model, llava.inputs(images)
    with tessera.plug(model, Drop(HALF, positions=mode)) as host:
        tokens, _, out = generated(model, inputs, steps=4)
        sequence = host.prefilled
        assert sequence is not None
        ids = torch.cat([out.sequences, words(5)], 1)
        mask = torch.cat([inputs["attention_mask"], torch.ones(2, 9, dtype=torch.int64)], 1)
        later = {"input_ids": ids, "attention_mask": mask, "past_key_values": out.past_key_values}
        _, scores, _ = generated(model, later, steps=4)
        whole = {**inputs, "input_ids": ids, "attention_mask": mask}
        with host.replay(sequence):
            recomputed = generated(model, whole, steps=4, use_cache=False)[1]
    assert tokens.shape == (2, 4)
    torch.testing.assert_close(scores, recomputed, rtol=1e-5, atol=1e-5)


def test_an_image_in_a_later_turn_is_refused(llava: Tiny) -> None:
    model, inputs = llava.model, llava.inputs((1, 1))
    with tessera.plug(model, Drop(HALF)):
        cache = dynamic(model)
        prefill(model, inputs, cache)
        ids = words(70)
        ids[:, 3:67] = 190
        mask = torch.cat([inputs["attention_mask"], torch.ones_like(ids)], 1)
        with pytest.raises(UserError, match="full conversation in one prompt"):
            logits(
                model, {"input_ids": ids, "attention_mask": mask, "pixel_values": inputs["pixel_values"]}, past_key_values=cache
            )


def test_a_prefill_in_chunks_is_refused(llava: Tiny) -> None:
    with tessera.plug(llava.model, Drop(HALF)), pytest.raises(UserError, match="in chunks"):
        generated(llava.model, llava.inputs(), prefill_chunk_size=16)


@pytest.mark.parametrize("images", [(1, 1), (2, 1)])
def test_cropped_and_fed_again(llava: Tiny, images: tuple[int, ...]) -> None:
    model, inputs = llava.model, llava.inputs(images)
    with tessera.plug(model, Drop(HALF, positions="reindex")):
        cache, fed = dynamic(model), words(4)
        prefill(model, inputs, cache)
        mask, one_by_one = inputs["attention_mask"], []
        for column in range(4):
            found, mask = step(model, cache, mask, fed[:, column : column + 1])
            one_by_one.append(found)
        cache.crop(-3)
        assert int(cache.get_seq_length()) == inputs["input_ids"].shape[1] + 1
        together, _ = step(model, cache, mask[:, :-3], fed[:, 1:])
        with pytest.raises(UserError, match="cropped into a prompt"):
            cache.crop(-6)
    torch.testing.assert_close(together, torch.cat(one_by_one[1:], 1), rtol=1e-5, atol=1e-5)


def test_generations_that_interleave_keep_to_themselves(llava: Tiny) -> None:
    model = llava.model
    both = [llava.inputs((1, 1)), llava.inputs((2, 1), seed=3)]
    fed = words(3)
    with tessera.plug(model, Drop(HALF)) as host:
        alone = []
        for inputs in both:
            cache, mask = dynamic(model), inputs["attention_mask"]
            alone.append([prefill(model, inputs, cache)])
            for column in range(3):
                found, mask = step(model, cache, mask, fed[:, column : column + 1])
                alone[-1].append(found)
        caches, masks = [dynamic(model), dynamic(model)], [inputs["attention_mask"] for inputs in both]
        mixed = [[prefill(model, inputs, cache)] for inputs, cache in zip(both, caches, strict=True)]
        for column in range(3):
            for which in (0, 1):
                found, masks[which] = step(model, caches[which], masks[which], fed[:, column : column + 1])
                mixed[which].append(found)
                assert host.sequence is sequence_of(caches[which]) and not host.prefill
    for a, b in zip(alone, mixed, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_copies_of_a_cache_go_their_own_ways(llava: Tiny) -> None:
    model, inputs = llava.model, llava.inputs((2, 1))
    with tessera.plug(model, Drop(HALF)):
        cache = dynamic(model)
        prefill(model, inputs, cache)
        copies = [copy.deepcopy(cache) for _ in range(2)]
        wanted, _ = step(model, cache, inputs["attention_mask"], words(2))
        for own in copies:
            assert torch.equal(step(model, own, inputs["attention_mask"], words(2))[0], wanted)
            assert sequence_of(own) is not sequence_of(cache)


def test_a_cache_from_outside_is_refused_and_one_from_inside_too(llava: Tiny) -> None:
    model, inputs = llava.model, llava.inputs((1, 1))
    outside, inside, whole = dynamic(model), dynamic(model), dynamic(model)
    prefill(model, inputs, outside)
    with tessera.plug(model, Drop(HALF)):
        prefill(model, inputs, inside)
        with pytest.raises(UserError, match="filled before the parts were plugged in"):
            step(model, outside, inputs["attention_mask"], words(2))
    with pytest.raises(UserError, match="inside the same `plug`"):
        step(model, inside, inputs["attention_mask"], words(1))
    with tessera.plug(model, Drop(HALF)), pytest.raises(UserError, match="other parts were plugged in"):
        step(model, inside, inputs["attention_mask"], words(1))
    with tessera.plug(model, Drop({2: 1.0}, forced=True)):
        prefill(model, inputs, whole)
    fresh = dynamic(model)
    prefill(model, inputs, fresh)
    assert type(whole) is type(fresh) and sequence_of(whole) is None
    wanted = step(model, fresh, inputs["attention_mask"], words(1))[0]
    assert torch.equal(step(model, whole, inputs["attention_mask"], words(1))[0], wanted)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_a_compiled_step_is_one_graph(llava: Tiny, mode: str) -> None:
    from transformers import StaticCache

    model, inputs = llava.model, llava.inputs((2, 1))
    rows, length = inputs["input_ids"].shape
    room = length + 4
    inner, head = model.model.language_model, model.get_output_embeddings()

    def decode(ids: Tensor, places: Tensor, mask: Tensor, cache: Any) -> Tensor:
        hidden = inner(input_ids=ids, position_ids=places, attention_mask=mask, past_key_values=cache, use_cache=True)
        found: Tensor = head(hidden.last_hidden_state[:, -1])
        return found

    def run(function: Any) -> Tensor:
        cache, fed, found = StaticCache(config=inner.config, max_cache_len=room), words(3), []
        prefill(model, inputs, cache)
        for column in range(3):
            mask = torch.zeros(rows, 1, 1, room, dtype=torch.bool)
            mask[..., :length] = inputs["attention_mask"][:, None, None].bool()
            mask[..., length : length + column + 1] = True
            places = inputs["attention_mask"].sum(1, keepdim=True) + column
            with torch.no_grad():
                found.append(function(fed[:, column : column + 1], places, mask, cache))
        return torch.stack(found)

    with tessera.plug(model, Drop(HALF, positions=mode)):
        wanted = run(decode)
        torch._dynamo.reset()
        torch.testing.assert_close(run(torch.compile(decode, backend="aot_eager", fullgraph=True)), wanted, rtol=1e-5, atol=1e-5)
