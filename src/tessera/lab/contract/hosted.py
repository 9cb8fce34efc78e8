"""Parts that plug into a finished model: tried on tiny models of transformers' families, on the first that the part takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from tessera.config import build
from tessera.errors import UserError
from tessera.hosts.architecture import CAPABILITIES
from tessera.hosts.check import FamilyFixture as Family
from tessera.hosts.contract import Host
from tessera.hosts.plug import plug
from tessera.hosts.tiny_configs import LAYERS, PAD
from tessera.lab.contract.fixture import TOLERANCE, Broken, Fixture, demand, difference

FAMILIES = ("llava", "llava_next", "qwen2_5_vl", "tessera_vlm")
CHANGES = {"visual tokens", "positions", "logits", "pixels"}


@cache
def family(name: str) -> Family:
    """A tiny model of a family with what it does without parts; one for all parts, which leave nothing behind."""
    return Family(name)


class HostFixture(Fixture):
    """A `HostPart`."""

    own: ClassVar[tuple[str, ...]] = ("gradients", "batch", "padding", "identity", "undone", "bf16")

    def made(self) -> Any:
        """The part with its example options."""
        torch.manual_seed(0)
        options = {**self.target.example(LAYERS), **self.options}
        return self.target(build(self.target.Config, options, self.part.name))

    @cached_property
    def home(self) -> Family:
        """The first family that takes the part. Raises `Broken` if none does."""
        reasons = []
        for name in FAMILIES:
            found = family(name)
            try:
                with torch.no_grad(), plug(found.model, self.made()):
                    found.model(**found.inputs)
            except UserError as error:
                reasons.append(f"{name}: {error}")
            else:
                return found
        raise Broken(f"{self.part.name} is refused by every family that is tried. {' '.join(reasons)}")

    @contextmanager
    def plugged(self) -> Iterator[tuple[Any, Host]]:
        """The model with the part in it."""
        with plug(self.home.model, self.made()) as host:
            yield self.home.model, host

    def check_builds(self) -> None:
        """Its options for doing nothing and for doing its work, what it needs and claims, and a forward."""
        for options in (self.target.identity(), self.target.example(LAYERS), self.target.example(32)):
            made = self.target(build(self.target.Config, options, self.part.name))
            demand(made.positions in ("keep", "reindex"), f"{self.part.name}: positions {made.positions!r}.")
        unknown = (set(self.target.needs) - set(CAPABILITIES)) | (set(self.target.claims) - CHANGES)
        demand(not unknown, f"{self.part.name} needs or claims what does not exist: {', '.join(sorted(unknown))}.")
        with torch.no_grad(), self.plugged() as (model, _):
            demand(bool(model(**self.home.inputs).logits.isfinite().all()), "what comes out is not finite.")

    def check_identity(self) -> None:
        """A forward with the options for doing nothing, bit for bit."""
        idle = self.target(build(self.target.Config, self.target.identity(), self.part.name))
        with torch.no_grad(), plug(self.home.model, idle):
            logits = self.home.forward()
        gap = difference(logits, self.home.logits)
        demand(torch.equal(logits, self.home.logits), f"{self.part.name}: set to do nothing, logits differ by {gap:.2g}.")

    def check_undone(self) -> None:
        """Plugged in, run and taken out: the model's modules and outputs are as before."""
        from tessera.hosts.check import fingerprint

        with self.plugged():
            self.home.forward()
        left = fingerprint(self.home.model)
        other = [key for key, value in self.home.state.items() if left.pop(key, None) != value]
        other += [key for key in left if key not in self.home.changing]
        if other or not torch.equal(self.home.forward(), self.home.logits):
            family.cache_clear()  # nobody knows what it left behind
            raise Broken(f"{self.part.name} left something behind: {other[:3]}.")

    def check_batch(self) -> None:
        """Two rows together and by themselves."""
        inputs = self.home.inputs
        together = self._logits(inputs)
        for row in range(2):
            alone = self._logits(_one(inputs, row))
            gap = difference(together[row], alone[0])
            demand(gap <= TOLERANCE, f"{self.part.name}: row {row} of a batch of two differs by {gap:.2g} from the row alone.")

    def check_padding(self) -> None:
        """Rows padded on the left, and moved to the left so that they are padded on the right."""
        inputs = self.home.inputs
        moved = {**inputs, **{name: _turned(value, inputs) for name, value in inputs.items() if _per_token(value, inputs)}}
        for row, (a, b) in enumerate(zip(self._logits(inputs), self._logits(moved), strict=True)):
            gap = difference(a, b)
            demand(gap <= TOLERANCE, f"{self.part.name}: row {row} differs by {gap:.2g} with the side of the padding.")

    def check_gradients(self) -> None:
        """Of the part's own parameters if it has any, and of the host's decoder layers through it."""
        with self.plugged() as (model, host):
            model.requires_grad_(False)
            try:
                layer = list(host.layers[0].parameters())
                for parameter in layer:
                    parameter.requires_grad_(True)
                logits = model(**self.home.inputs).logits
                logits[self.home.inputs["attention_mask"].bool()].float().square().mean().backward()
                demand(any(p.grad is not None and bool(p.grad.any()) for p in layer), f"{self.part.name}: no gradient passes it.")
                others = [p for p in model.parameters() if not p.requires_grad and p.grad is not None]
                demand(not others, f"{self.part.name}: a frozen parameter got a gradient.")
            finally:
                model.zero_grad(set_to_none=True)
                model.requires_grad_(True)

    def check_bf16(self) -> None:
        """A forward under autocast."""
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), self.plugged() as (model, _):
            logits = model(**self.home.inputs).logits
        demand(bool(logits.isfinite().all()), f"{self.part.name}: logits under bfloat16 autocast are not finite.")

    def _logits(self, inputs: dict[str, Any]) -> list[Tensor]:
        """Logits of the tokens that are there, row by row; of the last one where the part dropped some."""
        with torch.no_grad(), self.plugged() as (model, host):
            logits = model(**inputs).logits
            sequence = host.sequence
        real = inputs["attention_mask"].bool()
        dropped = sequence is not None and any(stage.index.shape[1] != real.shape[1] for stage in sequence.stages)
        if dropped or logits.shape[1] != real.shape[1]:
            last = real.shape[1] - 1 - real.flip(1).int().argmax(1)
            return [logits[row, place][None] for row, place in enumerate(last.tolist())]
        return [row[there] for row, there in zip(logits, real, strict=True)]


def _per_token(value: Any, inputs: dict[str, Any]) -> bool:
    return isinstance(value, Tensor) and value.shape == inputs["input_ids"].shape


def _turned(value: Tensor, inputs: dict[str, Any]) -> Tensor:
    """Rows padded on the left [B, S] -> padded on the right."""
    lengths = inputs["attention_mask"].sum(1).tolist()
    return torch.stack([row.roll(length - len(row)) for row, length in zip(value, lengths, strict=True)])


def _one(inputs: dict[str, Any], row: int) -> dict[str, Any]:
    """Row `row` of a batch of two with as many images each, without its padding."""
    there = inputs["attention_mask"][row].bool()
    found = {}
    for name, value in inputs.items():
        if _per_token(value, inputs):
            found[name] = value[row][there][None]
        elif isinstance(value, Tensor):
            found[name] = value.chunk(2)[row]
        else:
            found[name] = value
    assert int((found["input_ids"] == PAD).sum()) == 0
    return found
