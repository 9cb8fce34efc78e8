"""Our decoding loop against `model.generate()`: the same tokens for every family, whatever the way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tessera.errors import UserError
from tessera.generation.loop import decode_inputs
from tessera.generation.request import prepare
from tessera.generation.route import Route
from tessera.generation.steps import begin
from tessera.hosts import zoo

NEW = 10
FAMILIES = zoo.names()
OWN = [name for name in FAMILIES if name not in ("paligemma", "gemma3", "instructblip_opt")]


@pytest.fixture(scope="module", params=FAMILIES)
def host(request: pytest.FixtureRequest) -> zoo.Tiny:
    """One tiny model of every family."""
    package = zoo.recipe(request.param).package
    if package is not None:
        pytest.importorskip(package)
    return zoo.tiny(request.param)


def batches(name: str) -> list[tuple[int, ...]]:
    """A single row, and batches whose rows differ in length, also in their number of images where the family takes that."""
    described = zoo.recipe(name)
    found: list[tuple[int, ...]] = [(1,), (1, 1)]
    if described.most_images > 1:
        found.append((2, 1))
    if described.fewest_images == 0:
        found.append((0, 0))
    return found


def expected(model: Any, inputs: dict[str, Any], **options: Any) -> Tensor:
    found: Tensor = model.generate(**inputs, **{"max_new_tokens": NEW, "do_sample": False, **options})
    return found


def way(model: Any, inputs: dict[str, Any], own: bool = True) -> tuple[str, str | None]:
    """The class that makes the steps, and why it is no faster one."""
    with torch.inference_mode():
        request = prepare(model, inputs, max_new_tokens=2, do_sample=False)
        steps, why = begin(Route(request.model, own=own), request)
    return type(steps).__name__, why


def test_every_family_gives_generates_tokens(host: zoo.Tiny) -> None:
    for images in batches(host.name):
        inputs = host.inputs(images)
        wanted = expected(host.model, inputs)
        assert torch.equal(decode_inputs(host.model, inputs, max_new_tokens=NEW), wanted), images
        name, why = way(host.model, inputs)
        assert (name == "OwnSteps") == (host.name in OWN), why


def test_through_the_language_models_own_forward(host: zoo.Tiny) -> None:
    for images in batches(host.name):
        inputs = host.inputs(images)
        with torch.inference_mode():
            inner = prepare(host.model, inputs, max_new_tokens=2).model
        found = decode_inputs(host.model, inputs, max_new_tokens=NEW, route=Route(inner, own=False))
        assert torch.equal(found, expected(host.model, inputs)), images
        assert way(host.model, inputs, own=False)[0] == "DecoderSteps"


def test_through_the_whole_model_where_it_is_hooked(host: zoo.Tiny) -> None:
    inputs = host.inputs((1, 1))
    wanted = expected(host.model, inputs)
    with torch.inference_mode():
        inner = prepare(host.model, inputs, max_new_tokens=2).model
    calls = []
    handle = inner.register_forward_pre_hook(lambda module, args: calls.append(1))
    try:
        assert torch.equal(decode_inputs(host.model, inputs, max_new_tokens=NEW), wanted)
        assert len(calls) == NEW
        assert way(host.model, inputs) == ("ModelSteps", "the model is hooked")
    finally:
        handle.remove()


def test_hooks_on_layers_are_met_in_every_step(host: zoo.Tiny) -> None:
    inputs = host.inputs((1, 1))
    with torch.inference_mode():
        inner = prepare(host.model, inputs, max_new_tokens=2).model
    layer = Route(inner).language_model.layers[1]

    def louder(module: Any, args: Any, output: Any) -> Any:
        calls.append(1)
        return (output[0] * 1.5, *output[1:]) if isinstance(output, tuple) else output * 1.5

    calls: list[int] = []
    handle = layer.register_forward_hook(louder)
    try:
        wanted = expected(host.model, inputs)
        calls.clear()
        found = decode_inputs(host.model, inputs, max_new_tokens=NEW)
    finally:
        handle.remove()
    assert len(calls) == NEW
    assert torch.equal(found, wanted)
    assert not torch.equal(found, expected(host.model, inputs))


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "paligemma"])
def test_rows_end_apart_and_are_filled_like_generates(name: str) -> None:
    host = zoo.tiny(name)
    inputs = host.inputs((1, 1))
    length = inputs["input_ids"].shape[1]
    free = expected(host.model, inputs, max_new_tokens=24)[:, length:].tolist()
    ends = [free[0][3], free[1][9]]
    settings: dict[str, Any] = {"eos_token_id": ends, "pad_token_id": 0, "max_new_tokens": 24}
    wanted = expected(host.model, inputs, **settings)
    assert length + 4 <= wanted.shape[1] < length + 24
    assert torch.equal(decode_inputs(host.model, inputs, **settings), wanted)


@pytest.mark.parametrize("own", [True, False])
def test_buffers_grow_past_their_first_size(own: bool) -> None:
    host = zoo.tiny("qwen3_vl")
    inputs = host.inputs((1, 1))
    found = decode_inputs(host.model, inputs, max_new_tokens=150, route=Route(host.model, own=own))
    assert torch.equal(found, expected(host.model, inputs, max_new_tokens=150))


@pytest.mark.parametrize("window", [12, 40])
def test_sliding_windows(window: int) -> None:
    host = zoo.tiny("gemma3", text_config={"sliding_window": window})
    for images in ((1,), (1, 1), (2, 1)):
        inputs = host.inputs(images)
        wanted = expected(host.model, inputs, max_new_tokens=20)
        assert torch.equal(decode_inputs(host.model, inputs, max_new_tokens=20), wanted)


@pytest.mark.parametrize("name", ["llava", "internvl", "qwen2_5_vl", "smolvlm"])
def test_static_caches(name: str) -> None:
    host = zoo.tiny(name)
    inputs = host.inputs((1, 1))
    options: dict[str, Any] = {"cache_implementation": "static", "disable_compile": True}
    found = decode_inputs(host.model, inputs, max_new_tokens=NEW, **options)
    assert torch.equal(found, expected(host.model, inputs, **options))


def test_logits_processors_of_the_settings_and_of_the_caller() -> None:
    from transformers import LogitsProcessor

    class Odd(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            scores[:, ::2] = -torch.inf
            scores[torch.arange(len(scores)), input_ids[:, -1]] = -torch.inf
            return scores

    host = zoo.tiny("llava")
    inputs = host.inputs((1, 1))
    options: dict[str, Any] = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "logits_processor": [Odd()]}
    wanted = expected(host.model, inputs, **options)
    assert torch.equal(decode_inputs(host.model, inputs, max_new_tokens=NEW, **options), wanted)
    assert bool((wanted[:, inputs["input_ids"].shape[1] :] % 2 == 1).all())


def test_drawing() -> None:
    host = zoo.tiny("llava")
    inputs = host.inputs((1, 1))
    options: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": True, "temperature": 2.0, "top_p": 0.9, "top_k": 20}
    one, same, other = (decode_inputs(host.model, inputs, seed=seed, **options) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    torch.manual_seed(5)
    wanted = host.model.generate(**inputs, **options)
    torch.manual_seed(5)
    assert torch.equal(decode_inputs(host.model, inputs, **options), wanted)
    greedy = decode_inputs(host.model, inputs, **{**options, "top_k": 1}, seed=3)
    assert torch.equal(greedy, expected(host.model, inputs))


def test_a_streamer_of_transformers() -> None:
    from transformers.generation.streamers import BaseStreamer

    class Pieces(BaseStreamer):
        def __init__(self) -> None:
            self.found: list[Tensor] = []
            self.ended = False

        def put(self, value: Tensor) -> None:
            self.found.append(value)

        def end(self) -> None:
            self.ended = True

    host, pieces = zoo.tiny("llava"), Pieces()
    inputs = host.inputs((1,))
    tokens = decode_inputs(host.model, inputs, max_new_tokens=NEW, streamer=pieces)
    assert pieces.ended and len(pieces.found) == NEW + 1
    assert torch.equal(torch.cat([pieces.found[0][0], *pieces.found[1:]]), tokens[0])


def test_changed_weights_are_read_again() -> None:
    host = zoo.tiny("llava")
    route, inputs = Route(host.model), host.inputs((1, 1))
    before = decode_inputs(host.model, inputs, max_new_tokens=NEW, route=route)
    with torch.no_grad():
        host.model.lm_head.weight.mul_(-1)
    after = decode_inputs(host.model, inputs, max_new_tokens=NEW, route=route)
    assert not torch.equal(before, after)
    assert torch.equal(after, expected(host.model, inputs))
    assert route.way() == ("own", None)


def test_another_arithmetic_behind_a_known_name_is_found_out() -> None:
    host = zoo.tiny("llava")
    for layer in host.model.model.language_model.layers:
        layer.self_attn.scaling *= 1.0
        layer.mlp.act_fn = torch.nn.Tanh()
    inputs = host.inputs((1, 1))
    assert torch.equal(decode_inputs(host.model, inputs, max_new_tokens=NEW), expected(host.model, inputs))
    host.model.model.language_model.layers[0].mlp = torch.nn.Identity()
    assert torch.equal(decode_inputs(host.model, inputs, max_new_tokens=NEW), expected(host.model, inputs))


def test_half_precision_goes_through_the_model() -> None:
    host = zoo.tiny("llava")
    model = host.model.to(torch.bfloat16)
    inputs = {k: v.bfloat16() if v.is_floating_point() else v for k, v in host.inputs((1, 1)).items()}
    assert way(model, inputs) == ("DecoderSteps", "its weights are not float32")
    assert torch.equal(decode_inputs(model, inputs, max_new_tokens=NEW), expected(model, inputs))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_beams": 3}, "one answer per row; beam search is model.generate"),
        ({"return_dict_in_generate": True}, "gives tokens only"),
        ({"use_cache": False}, "needs the cache"),
        ({"assistant_model": object()}, "assistants"),
        ({"stop": ["a"]}, "stop strings need the tokenizer"),
    ],
)
def test_what_is_refused(options: dict[str, Any], sentence: str) -> None:
    host = zoo.tiny("llava")
    with pytest.raises(UserError, match=sentence):
        decode_inputs(host.model, host.inputs((1,)), max_new_tokens=2, **options)
