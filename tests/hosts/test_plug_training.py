"""Plugged models in training: gradients, activation checkpointing, labels, inserted modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.hosts.dropping import Drop, Merge, generated, logits
from torch import Tensor, nn

import tessera
from tessera.hosts.contract import Host
from tessera.hosts.part import HostPart, LayerView
from tessera.hosts.values import Selection
from tessera.hosts.zoo import tiny


def supervised(inputs: dict[str, Any]) -> dict[str, Any]:
    """Labels on the last four tokens of each row."""
    labels = inputs["input_ids"].clone()
    labels[:, :-4] = -100
    return {**inputs, "labels": labels}


def gradients(model: Any, inputs: dict[str, Any]) -> Tensor:
    model.zero_grad()
    model(**inputs).loss.backward()
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return found


def checkpointed(model: Any, reentrant: bool) -> None:
    """As `gradient_checkpointing_enable` does, whose name and settings have changed over the versions."""
    from functools import partial

    from torch.utils.checkpoint import checkpoint

    for module in model.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = True
            module._gradient_checkpointing_func = partial(checkpoint, use_reentrant=reentrant)


@pytest.mark.parametrize("reentrant", [False, True], ids=["saved", "reentrant"])
@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_activation_checkpointing_gives_the_same_gradients(name: str, reentrant: bool) -> None:
    made = tiny(name)
    model = made.model.train()
    inputs = supervised(made.inputs((2, 1)))
    bare = gradients(model, inputs)
    with tessera.plug(model, Drop({2: 1.0}, forced=True)):
        assert torch.equal(gradients(model, inputs), bare)
    parts = (Drop({2: 0.5, 4: 0.25}), Merge(1))
    with tessera.plug(model, *parts):
        wanted = gradients(model, inputs)
    assert (wanted - bare).abs().max() > 1e-4
    checkpointed(model, reentrant)
    with tessera.plug(model, *parts):
        torch.testing.assert_close(gradients(model, inputs), wanted, rtol=1e-4, atol=1e-6)


def test_layers_that_run_again_do_what_they_did() -> None:
    """Hooks inside of the checkpoint, as in transformers before 5.23: the decision stands, merged states get gradients."""
    from torch.utils.checkpoint import checkpoint

    made = tiny("llava")
    model = made.model.train()
    inputs = {**supervised(made.inputs((2, 1))), "use_cache": False}
    asked: list[int] = []

    class Counting(Drop):
        def select(self, view: LayerView) -> Selection | None:
            asked.append(view.layer)
            return super().select(view)

    with tessera.plug(model, Counting({2: 0.5}), Merge(3)) as host:
        wanted = gradients(model, inputs)
        asked.clear()
        for layer in host.layers:
            own = type(layer).__call__

            def again(*args: Any, layer: nn.Module = layer, own: Any = own, **kwargs: Any) -> Any:
                return checkpoint(lambda *given: own(layer, *given, **kwargs), *args, use_reentrant=False)

            layer.__class__ = type("Again", (type(layer),), {"__call__": lambda self, *a, again=again, **k: again(*a, **k)})
        found = gradients(model, inputs)
    assert asked == [2]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_the_question_ends_in_front_of_the_answer() -> None:
    made = tiny("llava")
    inputs = made.inputs((1, 0))
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    order = (mask == 0).int().argsort(dim=1, stable=True)
    ids, mask = ids.gather(1, order), mask.gather(1, order)
    lengths = mask.sum(1)
    labels = torch.full_like(ids, -100)
    for row, length in enumerate(lengths.tolist()):
        labels[row, length - 3 : length] = ids[row, length - 3 : length]
    right = {**inputs, "input_ids": ids, "attention_mask": mask}
    with tessera.plug(made.model, Drop({2: 0.5})) as host:
        logits(made.model, {**right, "labels": labels})
        assert host.sequence is not None
        assert host.sequence.query.tolist() == (lengths - 4).tolist()
        logits(made.model, right)
        assert host.sequence.query.tolist() == (lengths - 1).tolist()


class Gate(HostPart):
    """h + tanh(g) W h in front of one layer, of every forward; g = 0 at first."""

    def __init__(self, layer: int) -> None:
        super().__init__(None)
        self.layer, self.gate, self.linear = layer, nn.Parameter(torch.zeros(1)), nn.Linear(64, 64)

    def boundaries(self, host: Host) -> list[int]:
        return [self.layer]

    def transform(self, view: LayerView) -> Tensor | None:
        return view.hidden + torch.tanh(self.gate) * self.linear(view.hidden)


def test_inserted_modules_run_in_every_step_and_learn() -> None:
    made = tiny("llava")
    model, inputs = made.model, made.inputs((2, 1))
    bare = generated(model, inputs)[1]
    gate = Gate(3)
    with tessera.plug(model, gate):
        assert torch.equal(generated(model, inputs)[1], bare)
    gate.gate.data.fill_(0.7)
    with tessera.plug(model, gate, Drop({2: 0.5})) as host:
        _, scores, _ = generated(model, inputs)
        assert host.prefilled is not None
        with host.replay(host.prefilled):
            recomputed = generated(model, inputs, use_cache=False)[1]
        assert (scores - bare).abs().max() > 1e-2
        torch.testing.assert_close(scores, recomputed, rtol=1e-5, atol=1e-5)
        model.requires_grad_(False)
        model.train()(**supervised(inputs)).loss.backward()
    assert gate.gate.grad is not None and gate.gate.grad.abs().sum() > 0
    assert gate.linear.weight.grad is not None and gate.linear.weight.grad.abs().sum() > 0
    assert len(host.layers[3]._forward_pre_hooks) == 0


class VisualAdapter(HostPart):
    """A low-rank update of one value projection, at visual tokens only."""

    def __init__(self, layer: int) -> None:
        super().__init__(None)
        self.layer, self.update = layer, nn.Linear(64, 32, bias=False)

    def install(self, host: Host, undo: Any) -> None:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            visual = host.visual_at(self.layer)
            return None if visual is None else output + self.update(args[0]) * visual[..., None].to(output.dtype)

        attention: Any = host.architecture.attention(host.layers[self.layer])
        undo.callback(attention.v_proj.register_forward_hook(hook).remove)


def test_own_hooks_know_the_visual_tokens_of_their_layer() -> None:
    made = tiny("llava")
    model, text = made.model, made.inputs((0, 0))
    bare, inputs = logits(model, text), made.inputs((2, 1))
    with tessera.plug(model, VisualAdapter(4), Drop({2: 0.5})) as host:
        assert torch.equal(logits(model, text), bare)
        _, scores, _ = generated(model, inputs)
        assert host.visual_at(4) is None  # a decoding step
        assert host.prefilled is not None
        with host.replay(host.prefilled):
            recomputed = generated(model, inputs, use_cache=False)[1]
        logits(model, inputs)
        visual = host.visual_at(4)
        assert visual is not None and visual.sum(1).tolist() == [64, 32]
    torch.testing.assert_close(scores, recomputed, rtol=1e-5, atol=1e-5)
