"""Every registered part on every family: what `tessera hosts --check` measures.

Tiny random models, a batch of two rows padded on the left with one image each, or as many as the part needs. For each
family and part:

- with the part's identity setting the host is bit-identical to the plain model: logits of a forward, logits and greedy tokens of
  a generation with cache and without;
- with the part's example setting, where that drops tokens, a cached generation equals one that computes everything again at
  every step with the same decisions;
- afterwards hooks, methods and outputs of the model are exactly as before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tessera import registry
from tessera.config import build
from tessera.errors import UserError, unknown
from tessera.hosts import zoo
from tessera.hosts.architecture import Architecture, architecture
from tessera.hosts.part import HostPart
from tessera.hosts.plug import PluggedHost, plug
from tessera.hosts.tiny_configs import IMAGE, LAYERS, RECIPES, VIDEO

TOLERANCE = 1e-5
"""Greatest difference between cached and uncached logits, as a share of the greatest logit."""
STEPS = 4
"""Tokens that are generated."""

State = Literal["true", "refused", "false"]
Progress = Callable[[int, int, str], object]
"""Called with cells done, cells in all, and what comes next."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One family and one part.

    state     true: everything holds; refused: the part or the host said no; false: something does not hold
    reason    why it is refused or false, empty otherwise
    measured  what was looked at: True or False, or a number
    """

    family: str
    part: str
    socket: str
    state: State
    reason: str = ""
    measured: dict[str, bool | float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CheckTable:
    """All cells, by families and then parts.

    counts   state -> cells
    by_part  part -> state -> families
    whole    families on which every part of socket `tokens` is true
    sound    families on which none is false and at least one is true
    """

    families: list[str]
    parts: list[str]
    cells: list[Cell]
    counts: dict[str, int]
    by_part: dict[str, dict[str, int]]
    whole: list[str]
    sound: list[str]
    seconds: float


@dataclass(frozen=True, slots=True)
class FamilyRow:
    """A family as the list shows it; `capabilities` is None without the package that its tower needs."""

    name: str
    title: str
    model_type: str
    capabilities: list[str] | None
    note: str = ""


def list_families(names: Sequence[str] = ()) -> list[FamilyRow]:
    """Families and what they offer, from their tiny models. Raises `UserError` for an unknown name."""
    from tessera.hosts.architecture import families

    adapters = families()
    rows = []
    for name in _chosen("family", names, zoo.names()):
        kind = RECIPES[name].model_type
        title = adapters[kind].title + {"pixtral": " (Pixtral)", "instructblip_opt": " (OPT)"}.get(name, "")
        try:
            offers = sorted(architecture(zoo.tiny(name).model).capabilities)
            rows.append(FamilyRow(name, title, kind, offers))
        except ModuleNotFoundError as error:
            rows.append(FamilyRow(name, title, kind, None, f"needs the package {error.name!r}"))
    return rows


def host_parts() -> dict[str, tuple[str, type[HostPart]]]:
    """Name -> (socket, class) of every registered part that plugs into a host, over all sockets."""
    found: dict[str, tuple[str, type[HostPart]]] = {}
    for socket in registry.SOCKETS:
        for name in registry.names(socket):
            target = registry.get(socket, name).target
            if isinstance(target, type) and issubclass(target, HostPart):
                found[name if name not in found else f"{socket}.{name}"] = (socket, target)
    return found


def check(families: Sequence[str] = (), parts: Sequence[str] = (), progress: Progress | None = None) -> CheckTable:
    """The cells of the named families and parts, all by default. Raises `UserError` for unknown names."""
    begin = time.perf_counter()
    known = host_parts()
    chosen_families, chosen_parts = _chosen("family", families, zoo.names()), _chosen("part", parts, known)
    cells: list[Cell] = []
    total = len(chosen_families) * len(chosen_parts)
    for family in chosen_families:
        fixtures: dict[int, FamilyFixture] = {}
        for name in chosen_parts:
            if progress is not None:
                progress(len(cells), total, f"{family} x {name}")
            socket, target = known[name]
            try:
                fixture = fixtures.get(target.images) or fixtures.setdefault(target.images, FamilyFixture(family, target.images))
                cell = fixture.cell(name, socket, target)
            except UserError as error:
                cell = Cell(family, name, socket, "refused", str(error))
            except ModuleNotFoundError as error:
                reason = f"{family} needs the package {error.name!r}, which is not installed"
                cell = Cell(family, name, socket, "refused", reason)
            if cell.state == "false":  # nobody knows what it left behind
                fixtures.pop(target.images, None)
            cells.append(cell)
    tokens = {f: {c.state for c in cells if c.family == f and c.socket == "tokens"} for f in chosen_families}
    return CheckTable(
        families=chosen_families,
        parts=chosen_parts,
        cells=cells,
        counts=_counts(cells),
        by_part={name: _counts(cell for cell in cells if cell.part == name) for name in chosen_parts},
        whole=[family for family, states in tokens.items() if states == {"true"}],
        sound=[family for family, states in tokens.items() if "true" in states and "false" not in states],
        seconds=time.perf_counter() - begin,
    )


def _counts(cells: Iterable[Cell]) -> dict[str, int]:
    found = {"true": 0, "refused": 0, "false": 0}
    for cell in cells:
        found[cell.state] += 1
    return found


def _chosen(what: str, wanted: Sequence[str], valid: Iterable[str]) -> list[str]:
    valid = list(valid)
    for name in wanted:
        if name not in valid:
            raise unknown(what, name, valid)
    return [name for name in valid if not wanted or name in wanted]


@dataclass(frozen=True, slots=True)
class Generation:
    """A generation: tokens [B, STEPS], logits of the model and scores after logits processors [B, STEPS, V]."""

    tokens: Tensor
    logits: Tensor
    scores: Tensor

    def equals(self, other: Generation) -> bool:
        """Bit for bit."""
        return all(torch.equal(getattr(self, name), getattr(other, name)) for name in ("tokens", "logits", "scores"))


class FamilyFixture:
    """A tiny model of a family with what it does without parts."""

    def __init__(self, family: str, images: int = 1) -> None:
        """images: how many each of the two rows has. Raises `UserError` where the family takes fewer."""
        if images > RECIPES[family].most_images:
            raise UserError(f"{family} takes {RECIPES[family].most_images} image(s) in a prompt; the part compares {images}.")
        self.family = family
        self.tiny = zoo.tiny(family)
        self.model: Any = self.tiny.model
        self.inputs = self.tiny.inputs((images, images))
        self.architecture: Architecture = architecture(self.model)
        self.logits = self.forward()
        self.cached = self.generate(True)
        before = fingerprint(self.model)  # behind the first forward, in which transformers puts in hooks of its own
        self.uncached = self.generate(False)
        after = fingerprint(self.model)
        self.state = {key: value for key, value in after.items() if before.get(key) == value}
        self.changing = after.keys() - self.state.keys()  # what a plain run changes too, such as Qwen's rope_deltas

    @torch.no_grad()
    def forward(self) -> Tensor:
        """Logits [B, S, V] of the prompt."""
        return self.model(**self.inputs).logits

    @torch.no_grad()
    def generate(self, use_cache: bool) -> Generation:
        """A greedy generation. Placeholders, which would stand for images that do not exist, are never chosen."""
        out = self.model.generate(
            **self.inputs,
            max_new_tokens=STEPS,
            do_sample=False,
            use_cache=use_cache,
            suppress_tokens=[IMAGE, VIDEO],
            return_dict_in_generate=True,
            output_logits=True,
            output_scores=True,
        )
        return Generation(out.sequences[:, -STEPS:], torch.stack(out.logits, 1), torch.stack(out.scores, 1))

    @torch.no_grad()
    def recompute(self, said: Generation) -> Tensor:
        """Logits [B, STEPS, V] of the tokens that were said, computed without any cache.

        By `generate` without cache; InstructBLIP's has a cache even so, and gets prompt and answer in one forward.
        """
        if not self.family.startswith("instructblip"):
            return self.generate(False).logits
        inputs = dict(self.inputs)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], said.tokens[:, :-1]], 1)
        inputs["attention_mask"] = nn.functional.pad(inputs["attention_mask"], (0, STEPS - 1), value=1)
        return self.model(**inputs, use_cache=False).logits[:, -STEPS:]

    def cell(self, name: str, socket: str, target: type[HostPart]) -> Cell:
        """Everything about one part. Raises nothing: what goes wrong is in the cell."""
        measured: dict[str, bool | float] = {}
        reason = ""
        state: State = "true"
        try:
            self._identity(_part(target, target.identity(), name), measured)
            self._example(_part(target, target.example(LAYERS), name), measured)
        except UserError as error:
            state, reason = "refused", str(error)
        except Exception as error:
            state, reason = "false", f"{type(error).__name__}: {' '.join(str(error).split())}"
        self._undone(measured)
        wrong = [what for what, value in measured.items() if value is False]
        if state != "false" and wrong:
            numbers = {what: value for what, value in measured.items() if not isinstance(value, bool)}
            said = ", ".join(f"{what} {value:.2g}" for what, value in numbers.items())
            state, reason = "false", "does not hold: " + ", ".join(wrong) + (f" ({said})" if said else "")
        return Cell(self.family, name, socket, state, reason, measured)

    def _identity(self, part: HostPart, measured: dict[str, bool | float]) -> None:
        with plug(self.model, part):
            logits, cached, uncached = self.forward(), self.generate(True), self.generate(False)
        measured["identity, forward"] = torch.equal(logits, self.logits)
        measured["identity, cached"] = cached.equals(self.cached)
        measured["identity, uncached"] = uncached.equals(self.uncached)
        if not measured["identity, forward"]:
            measured["identity differs by"] = _difference(logits, self.logits)

    def _example(self, part: HostPart, measured: dict[str, bool | float]) -> None:
        with plug(self.model, part) as host:
            said = self.generate(True)
            measured["has an effect"] = not said.equals(self.cached)
            sequence = host.prefilled
            if sequence is None or not sequence.plan:
                return
            measured["visual tokens left"] = _left(host)
            with host.replay(sequence):
                logits = self.recompute(said)
        difference = _difference(said.logits, logits)
        measured["cached = uncached"] = difference <= TOLERANCE
        measured["cached differs by"] = difference

    def _undone(self, measured: dict[str, bool | float]) -> None:
        left = fingerprint(self.model)
        same = all(left.pop(key, None) == value for key, value in self.state.items())
        measured["undone"] = same and left.keys() <= self.changing and torch.equal(self.forward(), self.logits)


def _part(target: type[HostPart], options: dict[str, Any], name: str) -> HostPart:
    return target(build(target.Config, options, name))


def _left(host: PluggedHost) -> float:
    """Share of the visual tokens that reach the last layer."""
    assert host.prefilled is not None
    return int(host.prefilled.stages[-1].visual.sum()) / int(host.prefilled.visual.sum())


def _difference(found: Tensor, wanted: Tensor) -> float:
    """Greatest difference as a share of the greatest magnitude."""
    return float((found - wanted).abs().max() / wanted.abs().max())


def fingerprint(model: nn.Module) -> dict[tuple[str, str], Any]:
    """What plugging in could leave behind: (module, attribute) -> which object it is, with hooks, parameters and submodules."""
    found: dict[tuple[str, str], Any] = {}
    for name, module in model.named_modules():
        found[name, "__class__"] = type(module)
        found.update({(name, key): _identities(value) for key, value in module.__dict__.items()})
    return found


def _identities(value: Any) -> Any:
    """Which object it is; of a module's own dictionaries (hooks, parameters, submodules) also which entries."""
    return (id(value), tuple((key, id(entry)) for key, entry in value.items())) if isinstance(value, dict) else id(value)
