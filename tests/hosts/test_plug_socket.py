"""Plugging in and out: everything undone, names and options, refusals, positions, logits, the report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from tests.hosts.dropping import Drop, generated, kept, logits
from torch import Tensor

import tessera
from tessera.errors import UserError
from tessera.hosts.contract import Host
from tessera.hosts.part import HostPart, LayerView
from tessera.hosts.sequence import Sequence
from tessera.hosts.values import Selection, Tap
from tessera.hosts.zoo import Tiny, tiny


@pytest.fixture(scope="module")
def llava() -> Tiny:
    return tiny("llava")


def state(model: Any) -> dict[str, Any]:
    """All that hooks and parts could leave behind."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    found: dict[str, Any] = {"attention": sorted(ALL_ATTENTION_FUNCTIONS)}
    for name, module in model.named_modules():
        hooks = {key: len(value) for key, value in vars(module).items() if "hooks" in key and isinstance(value, dict)}
        rest = sorted(key for key in vars(module) if "hooks" not in key)
        config = getattr(module, "config", None)
        found[name] = (type(module), hooks, rest, id(config), getattr(config, "_attn_implementation", None))
    return found


class Everything(Drop):
    """Uses every socket there is."""

    def tower_taps(self, host: Host) -> Mapping[int, Tap]:
        return {-2: "received"}

    def transform(self, view: LayerView) -> Tensor | None:
        return view.hidden * 1.0

    def edit_positions(self, host: Host, sequence: Sequence, position_ids: Tensor) -> Tensor:
        return position_ids * 0.5

    def logits_processors(self, host: Host, inputs: Mapping[str, Any]) -> list[Any]:
        return [lambda ids, scores: scores * 2]

    def install(self, host: Host, undo: Any) -> None:
        undo.callback(host.layers[0].register_forward_hook(lambda module, args, output: None).remove)


class Broken(Everything):
    def __init__(self, where: str) -> None:
        super().__init__({2: 0.5})
        self.where = where

    def install(self, host: Host, undo: Any) -> None:
        super().install(host, undo)
        if self.where == "install":
            raise RuntimeError("in install")

    def select(self, view: LayerView) -> Selection | None:
        raise RuntimeError("in select")


def test_everything_is_undone_on_exit(llava: Tiny) -> None:
    model, inputs = llava.model, llava.inputs((2, 1))
    bare, forward = generated(model, inputs), logits(model, inputs)
    generated(model, inputs, cache_implementation="static")  # transformers leaves something behind, too
    before = state(model)
    with tessera.plug(model, Everything({2: 0.5})) as host:
        assert state(model) != before
        generated(model, inputs)
        host.report(rounds=1, decode_tokens=1)
        generated(model, inputs, cache_implementation="static")
    assert state(model) == before
    for where in ("install", "select"):
        with pytest.raises(RuntimeError, match=f"in {where}"), tessera.plug(model, Broken(where)):
            generated(model, inputs)
        assert state(model) == before
    after = generated(model, inputs)
    assert torch.equal(after[0], bare[0]) and torch.equal(after[1], bare[1])
    assert torch.equal(logits(model, inputs), forward)
    assert type(after[2].past_key_values).__name__ == "DynamicCache"
    with host.plug(Drop({2: 1.0}, forced=True)):
        assert torch.equal(logits(model, inputs), forward)
    assert state(model) == before


def test_only_layers_behind_the_first_boundary_are_hooked(llava: Tiny) -> None:
    with tessera.plug(llava.model, Drop({3: 0.5})) as host:
        assert [len(layer._forward_pre_hooks) for layer in host.layers] == [0, 0, 0, 1, 1, 1]
    with tessera.plug(llava.model, HostPart(None)) as host:
        assert not any(layer._forward_pre_hooks for layer in host.layers)


# What is refused


class Needy(HostPart):
    needs = ("deepstack",)


def test_parts_that_exclude_each_other_or_ask_too_much(llava: Tiny) -> None:
    model = llava.model
    for parts, reason in (
        ((Drop({2: 0.5}), Drop({4: 0.5})), "both change the visual tokens: plug in one of them"),
        ((Needy(None),), "Needy needs 'deepstack' .* which LLaVA does not offer"),
        ((Drop({9: 0.5}),), "no layer 9; LLaVA has layers 0 to 5"),
        (("mlp",), "part of Tessera's own models .socket connectors."),
        (("no_such_part",), "unknown part 'no_such_part'"),
        ((3,), "a name or a HostPart, not int"),
    ):
        with pytest.raises(UserError, match=reason), tessera.plug(model, *parts):
            pass
    with pytest.raises(UserError, match="options .keep. belong to one named part; 0"), tessera.plug(model, Drop({}), keep=1):
        pass
    with tessera.plug(model, Drop({2: 0.5})), pytest.raises(UserError, match="plug all of them at once"):  # noqa: SIM117
        with tessera.plug(model, Drop({2: 0.5})):
            pass
    with tessera.plug(model, Drop({2: 0.5})):
        logits(model, llava.inputs())


def test_three_dimensional_positions_are_kept_or_refused() -> None:
    made = tiny("qwen2_5_vl")
    reason = r"Drop needs 1-D rotary positions to re-index; Qwen2.5-VL has M-RoPE: use positions='keep'."
    with pytest.raises(UserError, match=reason), tessera.plug(made.model, Drop({2: 0.5}, positions="reindex")):
        pass


def test_embeddings_of_unknown_tokens_are_refused(llava: Tiny) -> None:
    inputs = llava.inputs()
    embeds = llava.model.get_input_embeddings()(inputs["input_ids"]).detach()
    with tessera.plug(llava.model, Drop({2: 0.5})), pytest.raises(UserError, match="pass input_ids"):
        logits(llava.model, {"inputs_embeds": embeds})


def test_importing_tessera_stays_light() -> None:
    assert {"plug", "attach"} <= set(dir(tessera))


# Positions


class Slow(HostPart):
    """Visual tokens advance the position by `delta`; notes keep the difference for the steps that follow."""

    claims = ("positions",)

    def __init__(self, delta: float) -> None:
        super().__init__(None)
        self.delta = delta

    def edit_positions(self, host: Host, sequence: Sequence, position_ids: Tensor) -> Tensor:
        if self.delta == 1:
            return position_ids
        if not host.prefill:
            return position_ids - sequence.notes["slow"]
        steps = torch.where(sequence.visual, self.delta, 1.0) * sequence.real
        found = steps.cumsum(1) - 1 + position_ids.float().masked_fill(~sequence.real, 1e9).amin(1, keepdim=True)
        sequence.notes["slow"] = position_ids[:, -1:] - found[:, -1:]
        return found


@pytest.mark.parametrize("images", [(1, 1), (2, 1)])
def test_float_positions(llava: Tiny, images: tuple[int, ...]) -> None:
    model, inputs = llava.model, llava.inputs(images)
    bare = generated(model, inputs)[1]
    with tessera.plug(model, Slow(1.0)):
        assert torch.equal(generated(model, inputs)[1], bare)
    for parts in ((Slow(0.25),), (Slow(0.25), Drop({3: 0.5}))):
        with tessera.plug(model, *parts) as host:
            tokens, scores, _ = generated(model, inputs)
            assert host.prefilled is not None
            with host.replay(host.prefilled):
                again, recomputed, _ = generated(model, inputs, use_cache=False)
        assert torch.equal(tokens, again) and (scores - bare).abs().max() > 1e-2
        torch.testing.assert_close(scores, recomputed, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="both change the positions"):  # noqa: SIM117
        with tessera.plug(model, Slow(0.5), Drop({3: 0.5}, positions="reindex")):
            pass


def test_three_dimensional_float_positions() -> None:
    class Halved(HostPart):
        def edit_positions(self, host: Host, sequence: Sequence, position_ids: Tensor) -> Tensor:
            shapes.append(tuple(position_ids.shape))
            return position_ids * self.factor

        factor = 1.0

    shapes: list[tuple[int, ...]] = []
    made = tiny("qwen2_5_vl")
    inputs = made.inputs()
    bare = generated(made.model, inputs)[1]
    with tessera.plug(made.model, part := Halved(None)):
        assert torch.equal(generated(made.model, inputs)[1], bare)
        part.factor = 0.5
        assert not torch.equal(generated(made.model, inputs)[1], bare)
    assert set(shapes) == {(3, 2, inputs["input_ids"].shape[1]), (3, 2, 1)}


# Logits


def test_logits_processors_join_every_generation(llava: Tiny) -> None:
    class Only(HostPart):
        def logits_processors(self, host: Host, inputs: Mapping[str, Any]) -> list[Any]:
            asked.append(sorted(inputs))
            return [lambda ids, scores: torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([7]), 0.0)]

    asked: list[list[str]] = []
    inputs = llava.inputs()
    with tessera.plug(llava.model, Only(None)) as host:
        tokens, _, _ = generated(llava.model, inputs, logits_processor=[lambda ids, scores: scores])
        assert len(host.logits_processors(inputs)) == 1
    assert (tokens == 7).all()
    assert set(inputs) <= set(asked[0])


# The report


@pytest.mark.parametrize("static", [False, True])
def test_the_report_counts_what_is_left(llava: Tiny, static: bool) -> None:
    model, inputs = llava.model, llava.inputs((1,))
    with tessera.plug(model, Drop({2: 0.5, 4: 0.25})) as host:
        with pytest.raises(UserError, match="nothing has run yet"):
            host.report()
        generated(model, inputs, cache_implementation="static" if static else None)
        sequence = host.prefilled
        assert sequence is not None
        report = host.report(rounds=1, decode_tokens=2)
        assert host.prefilled is sequence
        widths = kept(sequence)
        generated(model, inputs)  # still plugged in
        assert host.prefilled is not None and kept(host.prefilled) == widths
    length = inputs["input_ids"].shape[1]
    assert list(report.tokens) == widths == [length] * 2 + [length - 32] * 2 + [length - 48] * 2
    assert report.prompt == length and report.visual == 64
    per_token = 2 * 2 * 16 * 4  # keys and values, 2 heads of 16 float32
    assert report.bare.kv_bytes == 6 * length * per_token
    assert report.plugged.kv_bytes == sum(widths) * per_token
    width, inner = 64, 128
    dense = 2 * (2 * width * width + 2 * width * 32 + 3 * width * inner)  # q, o, k, v, and the MLP, of one token in one layer
    attention = sum(4 * 64 * (length**2 - kept**2) for kept in widths)
    scoring = report.bare.flops - report.plugged.flops - sum((length - kept) * dense for kept in widths) - attention
    assert abs(scoring) < 2 * 2 * 4 * 16 * length + 1  # what the two taps cost
    assert report.plugged.prefill_seconds > 0 and report.bare.decode_seconds > 0
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["ratios"]["kv_bytes"] == sum(widths) / (6 * length)
    text = str(report)
    assert f"{length} in layers 0-1, {length - 32} in layers 2-3, {length - 48} in layers 4-5" in text and "LLaVA" in text


def test_the_report_leaves_training_mode_alone(llava: Tiny) -> None:
    model = tiny("llava").model.train()
    model.model.vision_tower.eval()
    modes = [module.training for module in model.modules()]
    with tessera.plug(model, Drop({2: 0.5})) as host:
        logits(model, llava.inputs())
        assert host.report(rounds=1, decode_tokens=1).parts == ("Drop",)
    assert [module.training for module in model.modules()] == modes
