"""Toy parts for the tests of the host layer, and an independent reference that masks instead of dropping."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tessera.hosts.contract import Host
from tessera.hosts.part import HostPart, LayerView
from tessera.hosts.sequence import Sequence
from tessera.hosts.values import Selection, Tap

STEPS = 6
PLACEHOLDERS = [190, 191]


class Drop(HostPart):
    """Keeps the best share of the prompt's visual tokens from some layers on, by attention of the layer in front."""

    claims = ("visual tokens",)

    def __init__(self, shares: Mapping[int, float], *, forced: bool = False, positions: str = "keep", own: bool = False) -> None:
        """shares: layer -> share; forced: also select at share 1; own: rank by the layer's own queries and keys."""
        super().__init__(None)
        self.shares, self.forced, self.own, self._positions = dict(shares), forced, own, positions

    @property
    def positions(self) -> Any:
        return self._positions

    def boundaries(self, host: Host) -> list[int]:
        return list(self.shares)

    def language_taps(self, host: Host) -> Mapping[int, Tap]:
        return {} if self.own else {layer - 1: "last" for layer in self.shares if layer}

    def select(self, view: LayerView) -> Selection | None:
        share = self.shares[view.layer]
        if share >= 1 and not self.forced:
            return None
        score = view.probe() if self.own or not view.layer else view.attention(view.layer - 1)
        return Selection(keep=view.keep_top(score, (view.sequence.visual.sum(1) * share).ceil().long()))


class Merge(HostPart):
    """At layer `layer` every second visual token goes, and is averaged into the one in front of it; nothing at share 1."""

    def __init__(self, layer: int, *, forced_identity: bool = False) -> None:
        super().__init__(None)
        self.layer, self.forced_identity = layer, forced_identity

    def select(self, view: LayerView) -> Selection | None:
        if view.layer != self.layer:
            return None
        if self.forced_identity:
            return Selection(keep=torch.ones_like(view.visual), hidden=view.hidden.clone())
        number = view.visual.long().cumsum(1) - 1
        goes = view.visual & (number % 2 == 1)
        follower = torch.nn.functional.pad(goes, (0, 1))[:, 1:]
        after = torch.roll(view.hidden, -1, 1)
        hidden = torch.where(follower[..., None], (view.hidden + after) / 2, view.hidden)
        return Selection(keep=~goes, hidden=hidden)


def generated(model: Any, inputs: Mapping[str, Any], steps: int = STEPS, **options: Any) -> tuple[Tensor, Tensor, Any]:
    """Greedy tokens [B, steps], raw logits [B, steps, V] and what `generate` gave."""
    settings = {"do_sample": False, "suppress_tokens": PLACEHOLDERS, "max_new_tokens": steps, "min_new_tokens": steps, **options}
    with torch.no_grad():
        out = model.generate(**inputs, **settings, return_dict_in_generate=True, output_logits=True)
    return out.sequences[:, -steps:], torch.stack(out.logits, 1), out


def logits(model: Any, inputs: Mapping[str, Any], **options: Any) -> Tensor:
    """Logits [B, S, V] of one forward."""
    with torch.no_grad():
        found: Tensor = model(**inputs, **options).logits
    return found


def kept(sequence: Sequence) -> list[int]:
    """Slots per layer."""
    return [stage.index.shape[1] for stage in sequence.stages]


@contextmanager
def masking(layers: Any, sequence: Sequence) -> Iterator[None]:
    """From the layer on where a token was dropped, nobody sees it; every token still runs through all layers."""

    def hook(number: int) -> Any:
        def mask(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            plans = [d.keep for layer, decisions in sequence.plan.items() if layer <= number for d in decisions]
            if not plans:
                return None
            keep = torch.stack(plans).all(0)[:, None, None]
            rows, length = keep.shape[0], keep.shape[-1]
            own = torch.eye(length, dtype=torch.bool)
            given = kwargs["attention_mask"]
            seen = torch.ones(length, length, dtype=torch.bool).tril()[None, None] if given is None else given
            seen = seen if seen.dtype == torch.bool else seen == 0
            seen = (seen.expand(rows, 1, length, length) & keep) | own
            if given is not None and given.dtype != torch.bool:
                seen = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
            return args, {**kwargs, "attention_mask": seen}

        return mask

    handles = [layer.register_forward_pre_hook(hook(n), with_kwargs=True) for n, layer in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
