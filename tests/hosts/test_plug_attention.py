"""Attention of single layers while the fast kernels run: equal to what eager attention returns, and nothing else changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from tests.hosts.dropping import Drop, generated, logits
from torch import Tensor

import tessera
from tessera.errors import TesseraError, UserError
from tessera.hosts import taps
from tessera.hosts.contract import Host
from tessera.hosts.part import HostPart, LayerView
from tessera.hosts.values import Selection, Tap
from tessera.hosts.zoo import tiny

KINDS: tuple[Tap, ...] = ("last", "received", "class", "full")


class Watch(HostPart):
    """Notes down what is captured, changes nothing."""

    def __init__(self, kind: Tap = "last", tower: Mapping[int, Tap] | None = None, layers: tuple[int, ...] = (0, 1, 2)) -> None:
        super().__init__(None)
        self.kind, self.tower, self.layers = kind, tower or {}, layers
        self.seen: dict[int, Tensor] = {}
        self.probed: dict[int, Tensor] = {}
        self.scores: Tensor | None = None

    def language_taps(self, host: Host) -> Mapping[int, Tap]:
        return dict.fromkeys(self.layers, self.kind)

    def tower_taps(self, host: Host) -> Mapping[int, Tap]:
        return self.tower

    def select(self, view: LayerView) -> Selection | None:
        self.probed[view.layer] = view.probe()
        if view.layer - 1 in self.layers:
            self.seen[view.layer - 1] = view.attention(view.layer - 1)
        if view.layer == 0 and self.tower:
            self.scores = view.tower_scores()
        return None


def eager(model: Any, inputs: dict[str, Any]) -> tuple[Tensor, ...]:
    """Attention of every layer, averaged over heads: [B, S, S] each."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        found = model(**inputs, output_attentions=True).attentions
    return tuple(layer.mean(1) for layer in found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
def test_captured_attention_is_that_of_eager(name: str, kind: Tap, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taps, "AT_ONCE", 2000)  # in pieces
    made = tiny(name)
    model, inputs = made.model, made.inputs((1, 1))
    bare = logits(model, inputs)
    watch = Watch(kind)
    with tessera.plug(model, watch):
        assert torch.equal(logits(model, inputs), bare)
    real = inputs["attention_mask"].bool()
    for layer, whole in enumerate(eager(model, inputs)[:3]):
        found = watch.seen[layer]
        whole = whole.masked_fill(~real[:, None], 0)  # eager gives padding something where a row is all padding
        if kind == "full":
            torch.testing.assert_close(found[real], whole[real], rtol=1e-4, atol=1e-5)
        elif kind == "received":
            wanted = (whole * real[..., None]).sum(1) / real.sum(1, keepdim=True)
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        elif kind == "last":
            torch.testing.assert_close(found, whole[:, -1], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(watch.probed[layer], whole[:, -1], rtol=1e-4, atol=1e-5)


def test_attention_is_told_for_the_tokens_that_are_left() -> None:
    """Layer 1 saw all tokens; at layer 4, half of the visual ones are gone."""
    made = tiny("llava")
    inputs = made.inputs((2, 1))
    got: dict[int, tuple[Tensor, Tensor]] = {}

    class Late(Watch):
        def select(self, view: LayerView) -> Selection | None:
            if view.layer in (2, 4):
                got[view.layer] = (view.index, view.attention(1))
            return None

    for kind in ("last", "full"):
        with tessera.plug(made.model, Late(kind, layers=(1,)), Drop({3: 0.5})):
            logits(made.model, inputs)
        (_, whole), (index, left) = got[2], got[4]
        assert index.shape[1] < whole.shape[-1]
        chosen = whole.gather(-1, index[:, None].expand(-1, whole.shape[1], -1) if kind == "full" else index)
        if kind == "full":
            chosen = chosen.gather(1, index[..., None].expand(-1, -1, index.shape[1]))
        torch.testing.assert_close(left, chosen)


def test_taps_hear_a_static_cache_without_its_empty_room() -> None:
    made = tiny("llava")
    inputs = made.inputs((1, 1))
    first, second = Watch("full"), Watch("full")
    with tessera.plug(made.model, first):
        logits(made.model, inputs)
    with tessera.plug(made.model, second):
        generated(made.model, inputs, cache_implementation="static")
    for layer in range(3):
        torch.testing.assert_close(first.seen[layer], second.seen[layer], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["received", "class"])
def test_scores_of_the_tower_reach_their_tokens(kind: Tap) -> None:
    made = tiny("llava")
    model, inputs = made.model, made.inputs((2, 1))
    watch = Watch(tower={-2: kind}, layers=())
    bare = generated(model, inputs)[1]
    with tessera.plug(model, watch) as host:
        assert torch.equal(generated(model, inputs)[1], bare)
        found = watch.scores
        model.generate(**inputs, num_beams=2, max_new_tokens=2, do_sample=False)
        beams = watch.scores
    assert found is not None and beams is not None
    assert torch.equal(beams, found.repeat_interleave(2, 0))
    assert torch.equal(found.isfinite(), inputs["input_ids"] == 190)
    tower: Any = host.architecture.tower
    tower.set_attn_implementation("eager")
    with torch.no_grad():
        weights = tower(inputs["pixel_values"], output_attentions=True).attentions[-2].mean(1)
    wanted = (weights[:, 0] if kind == "class" else weights.mean(1))[:, 1:]
    torch.testing.assert_close(found[found.isfinite()], wanted.flatten(), rtol=1e-4, atol=1e-6)


def test_the_scores_are_those_of_the_images_in_the_prompt() -> None:
    """Two sets of features, computed in advance: the first prompt takes the first set's scores."""
    made = tiny("llava")
    model, inputs = made.model, made.inputs((1, 1))
    other = {**inputs, "pixel_values": inputs["pixel_values"].flip(0)}
    watch = Watch(tower={-2: "received"}, layers=())
    with tessera.plug(model, watch), torch.no_grad():
        logits(model, inputs)
        wanted = watch.scores
        features = [model.get_image_features(pixel_values=x["pixel_values"], return_dict=True) for x in (inputs, other)]
        rest = {key: value for key, value in inputs.items() if key != "pixel_values"}
        model(**rest, mm_encoder_outputs={"image": features[0]})
        assert wanted is not None and watch.scores is not None
        assert torch.equal(watch.scores, wanted)
        model(**rest, mm_encoder_outputs={"image": features[1]})
        assert not torch.equal(watch.scores, wanted)


def test_what_was_not_asked_for_is_not_there() -> None:
    made = tiny("llava")

    class Asks(Watch):
        def select(self, view: LayerView) -> Selection | None:
            view.attention(4)
            return None

    class Scores(Watch):
        def select(self, view: LayerView) -> Selection | None:
            view.tower_scores()
            return None

    with tessera.plug(made.model, Asks()), pytest.raises(TesseraError, match="does not tap"):
        logits(made.model, made.inputs())
    with tessera.plug(made.model, Asks(layers=(4,))), pytest.raises(UserError, match="has not run yet"):
        logits(made.model, made.inputs())
    with tessera.plug(made.model, Scores()), pytest.raises(TesseraError, match="0 tower taps"):
        logits(made.model, made.inputs())
    with pytest.raises(UserError, match="no decoder layer 9"), tessera.plug(made.model, Watch(layers=(9,))):
        pass
    with pytest.raises(UserError, match="no tower block 7"), tessera.plug(made.model, Watch(tower={7: "received"})):
        pass
