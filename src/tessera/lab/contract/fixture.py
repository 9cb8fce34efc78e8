"""The checks that every part is under, whatever its socket: its page, its options, its claims."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tessera import registry
from tessera.config import build, field_types
from tessera.errors import UserError
from tessera.hosts.zoo import fill
from tessera.lab.claims import claims_of, part_module
from tessera.lab.contract import CHECKS, Unsupported

TOLERANCE = 1e-5
"""Greatest difference, as a share of the greatest magnitude."""
_ALWAYS = ("imports", "contract", "page", "options", "claims", "builds")
_ADDRESS = re.compile(r"arXiv[: ]\s*\d{4}\.\d{4,5}|https?://\S+|doi[:.]\S+", re.IGNORECASE)


class Broken(AssertionError):
    """A part breaks its contract; the message says how."""


def demand(true: bool, sentence: str) -> None:
    """Raises `Broken` with the sentence unless it is true."""
    if not true:
        raise Broken(sentence)


def difference(found: Tensor, wanted: Tensor) -> float:
    """Greatest difference as a share of the greatest magnitude, at least of 1."""
    demand(found.shape == wanted.shape, f"the shapes differ: {list(found.shape)} and {list(wanted.shape)}.")
    if not wanted.numel():
        return 0.0
    return float((found - wanted).detach().abs().max() / max(1.0, float(wanted.detach().abs().max())))


class Fixture:
    """A part with the checks that its socket has. A subclass adds `check_<name>` methods and names them in `own`."""

    own: ClassVar[tuple[str, ...]] = ()

    def __init__(self, part: registry.Part) -> None:
        self.part, self.target = part, part.target
        self.module = part_module(part)
        tiny = getattr(self.module, "TINY", {})
        self.options: dict[str, Any] = {k: v for k, v in tiny.items() if k != "kind"} if isinstance(tiny, Mapping) else {}
        self.unsupported: dict[str, str] = dict(getattr(self.module, "UNSUPPORTED", {}))
        self.Config: Any = part.config

    def checks(self) -> tuple[str, ...]:
        """Names of the part's checks, in order."""
        found = {"contract", "page", "options", "claims", "builds", *self.own}
        if self.part.catalog is None:
            found.discard("claims")
        if self.Config is None:
            found.discard("options")
        return tuple(name for name in CHECKS if name in found)

    def run(self, check: str) -> None:
        """One check. Raises `Broken`, or `Unsupported` with the part's reason."""
        wrong = [name for name, reason in self.unsupported.items() if name not in CHECKS or name in _ALWAYS or not reason]
        demand(not wrong, f"UNSUPPORTED of {self.part.name}: {', '.join(wrong)} cannot be left out, or has no reason.")
        if check in self.unsupported:
            raise Unsupported(self.unsupported[check])
        with quiet(), seeded():
            getattr(self, f"check_{check}")()

    def config(self, **changes: Any) -> Any:
        """The part's `Config` with its tiny options."""
        return build(self.Config, {**self.options, **changes}, self.part.name)

    def made(self) -> Any:
        """The part, built from its options alone."""
        if self.Config is None:
            return self.target
        return self.target(self.config())

    def check_builds(self) -> None:
        """The constructor takes the part's options and nothing else."""
        try:
            self.made()
        except TypeError as error:
            raise Broken(f"{self.part.name} cannot be built from its Config alone: {error}.") from error

    def check_contract(self) -> None:
        """It derives from one of its socket's, leaves nothing abstract, and takes what the contract's functions take."""
        wanted, kept = registry.CONTRACTS[self.part.socket], self.part.contracts
        named = " or ".join(contract.base for contract in wanted)
        demand(bool(kept) or not wanted, f"{self.part.name}: a part of socket {self.part.socket!r} derives from {named}.")
        for contract in kept:
            left = sorted(getattr(self.target, "__abstractmethods__", ()))
            demand(not left, f"{self.part.name} derives from {contract.base} and does not define {', '.join(left)}.")
            for name, promised in functions(contract.load()).items():
                said = refusal(getattr(self.target, name), promised)
                demand(not said, f"{self.part.name}: {name} cannot be called as {contract.base} says, {name}{promised}: {said}.")

    def check_page(self) -> None:
        """Docstrings."""
        page, where = self.module.__doc__ or "", self.part.name
        demand(
            bool(re.search(r"\bShapes?\b[^:\n]{0,12}:|\bLegend:", page)), f"{where}: the docstring has no paragraph `Shapes:`."
        )
        demand(bool(self.target.__doc__), f"{where}: the registered {type(self.target).__name__} has no docstring.")
        if self.Config is not None:
            own = self.Config.__doc__ or ""
            demand(
                bool(own) and not own.startswith("Config("), f"{where}: Config has no docstring that says what the options do."
            )
        if self.part.catalog is None:
            return
        demand(bool(re.search(r"\bDeviations?:", page)), f"{where}: the docstring does not say how it deviates (`Deviations:`).")
        demand(bool(_ADDRESS.search(page)), f"{where}: the docstring names no arXiv number or address of the paper.")
        demand(bool(re.search(r"\b(19|20)\d\d\b", page)), f"{where}: the docstring names no year of the paper.")
        demand(len(page.split()) >= 30, f"{where}: two or three sentences on what the method does are missing.")

    def check_options(self) -> None:
        """Unknown keys and wrong types."""
        fields = field_types(self.Config)
        names = ["no_such_option", *(f"{name}x" for name in list(fields)[:1] if f"{name}x" not in fields)]
        for name in names:
            said = self._refusal({**self.options, name: 1}, f"the unknown option {name!r}")
            near = name[:-1] if name != "no_such_option" else name
            demand(near in said, f"{self.part.name}: the refusal of {name!r} does not name {near!r}: {said}")
        for name, kind in fields.items():
            if kind is not typing.Any:
                said = self._refusal({**self.options, name: object()}, f"an object as {name!r}")
                demand(name in said, f"{self.part.name}: the refusal of a wrong {name!r} does not name it: {said}")

    def _refusal(self, options: dict[str, Any], what: str) -> str:
        try:
            build(self.Config, options, self.part.name)
        except UserError as error:
            return str(error)
        raise Broken(f"{self.part.name} takes {what}.")

    def check_claims(self) -> None:
        """An exact claim."""
        kinds = [claim.kind for claim in claims_of(self.part.socket, self.part.name)]
        demand("exact" in kinds, f"{self.part.name} implements number {self.part.catalog} and has no exact claim, only {kinds}.")


def functions(contract: type) -> dict[str, inspect.Signature]:
    """The public functions of a contract, its constructor among them, by name."""
    own = {name for base in contract.__mro__ if base.__module__.partition(".")[0] == "tessera" for name in vars(base)}
    public = {name: getattr(contract, name) for name in sorted(own) if not name.startswith("_") or name == "__init__"}
    return {name: inspect.signature(found) for name, found in public.items() if inspect.isroutine(found)}


def refusal(function: Any, promised: inspect.Signature) -> str:
    """Why a function cannot be called as another one's signature says, "" if it can; all but a constructor's options by place."""
    known = {n: p.kind for n, p in promised.parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    first = 2 if function.__name__ == "__init__" else len(known)
    by_name = [n for place, (n, kind) in enumerate(known.items()) if place >= first or kind is inspect.Parameter.KEYWORD_ONLY]
    try:
        inspect.signature(function).bind(*known.keys() - by_name, **dict.fromkeys(by_name))
    except TypeError as error:
        return str(error)
    return ""


def stir(module: nn.Module, seed: int = 0) -> None:
    """Large random weights, so that every input leads elsewhere and what begins at zero (gates, last norms) is open."""
    fill(module, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in module.parameters():
            if not bool(parameter.any()):
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


def trainable(modules: list[nn.Module]) -> dict[str, nn.Parameter]:
    """Parameters that ask for a gradient, each once."""
    return {f"{i}.{n}": p for i, module in enumerate(modules) for n, p in module.named_parameters() if p.requires_grad}


def demand_gradients(modules: list[nn.Module], loss: Tensor, who: str) -> None:
    """Backward: every trainable parameter of the modules gets a gradient that is finite and not zero."""
    parameters = trainable(modules)
    frozen = [p for module in modules for p in module.parameters() if not p.requires_grad]
    demand(loss.requires_grad or not parameters, f"{who}: no gradient comes back from what it gives.")
    if loss.requires_grad:
        loss.backward()
    missing = [name for name, p in parameters.items() if p.grad is None or not bool(p.grad.any())]
    demand(not missing, f"{who}: no gradient reaches {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}.")
    odd = [name for name, p in parameters.items() if p.grad is not None and not bool(p.grad.isfinite().all())]
    demand(not odd, f"{who}: the gradient of {', '.join(odd[:5])} is not finite.")
    demand(all(p.grad is None for p in frozen), f"{who}: a frozen parameter got a gradient.")


@contextmanager
def seeded() -> Iterator[None]:
    """The same random numbers for every check, and those of everyone else untouched."""
    state = torch.get_rng_state()
    torch.manual_seed(0)
    try:
        yield
    finally:
        torch.set_rng_state(state)


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars and hints."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
