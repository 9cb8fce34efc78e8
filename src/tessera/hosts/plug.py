"""A host: a model with sockets, and parts plugged into them.

    with tessera.plug(model, "pyramiddrop", keep=(0.5, 0.25, 0.125)) as host:
        model.generate(**inputs)
        print(host.report())

Hooks only: no forward is copied, no class is changed, and everything is undone on exit.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from tessera import registry
from tessera.config import build
from tessera.errors import TesseraError, UserError, unknown
from tessera.hosts.architecture import CAPABILITIES, Architecture, architecture
from tessera.hosts.caches import detach_sequence
from tessera.hosts.context import PlugContext
from tessera.hosts.contract import Host
from tessera.hosts.forward import ForwardPass, ThreadStates
from tessera.hosts.inputs import InputHooks
from tessera.hosts.layers import LayerSocket
from tessera.hosts.logits import wrap_generate
from tessera.hosts.part import HostPart, name_of
from tessera.hosts.positions import PositionSocket
from tessera.hosts.prompts import Prompt
from tessera.hosts.report import CostReport, Measured, measure
from tessera.hosts.sequence import PlugSession
from tessera.hosts.sequence import Sequence as HostSequence


class PluggedHost(Host):
    """A transformers vision-language model and its sockets. Made by `attach`, filled by `plug`."""

    def __init__(self, model: nn.Module, found: Architecture | None = None) -> None:
        """Raises `UserError` for a model that cannot be a host, with the reason."""
        self._model = model
        self._architecture = architecture(model) if found is None else found
        self.parts: tuple[HostPart, ...] = ()
        self._states = self._new_states()
        self._context: PlugContext | None = None
        self._undo: ExitStack | None = None
        """What takes the hooks out again; None while nothing is plugged in."""

    def _new_states(self) -> ThreadStates:
        return ThreadStates(lambda: Prompt(self.architecture.image_token_ids))

    # What it is

    @property
    def model(self) -> Any:
        """See `Host`."""
        return self._model

    @property
    def architecture(self) -> Architecture:
        """See `Host`."""
        return self._architecture

    @property
    def layers(self) -> nn.ModuleList:
        """See `Host`."""
        return self._architecture.layers

    @property
    def layer_count(self) -> int:
        """See `Host`."""
        return len(self._architecture.layers)

    @property
    def title(self) -> str:
        """See `Host`."""
        title = self.architecture.family.title
        return title if title != "generic" else str(getattr(self.model.config, "model_type", type(self.model).__name__))

    # What it does in this thread

    @property
    def current(self) -> ForwardPass | None:
        """The forward that this thread runs, or ran last."""
        return self._states.here().current

    @property
    def prefilled(self) -> HostSequence | None:
        """The sequence of this thread's last prefill."""
        return self._states.own().prefilled

    @property
    def sequence(self) -> HostSequence | None:
        """See `Host`."""
        current = self.current
        return None if current is None else current.sequence

    @property
    def prefill(self) -> bool:
        """See `Host`."""
        current = self.current
        return current is not None and current.prefill

    def visual_at(self, layer: int) -> Tensor | None:
        """See `Host`."""
        current = self.current
        if current is None or not current.prefill or not current.sequence.has_visual:
            return None
        return current.sequence.stages[layer].visual

    def logits_processors(self, inputs: Mapping[str, Any]) -> list[Any]:
        """The logits processors of all parts, for a generation that begins with `inputs`."""
        return [processor for part in self.parts for processor in part.logits_processors(self, inputs)]

    @contextmanager
    def replay(self, sequence: HostSequence) -> Iterator[Host]:
        """Prefills of this thread drop and merge what was dropped and merged in `sequence`, instead of asking the parts; further
        tokens stay. So a forward without cache computes what a cached generation did.
        """
        state = self._states.own()
        before, state.replayed = state.replayed, sequence
        try:
            yield self
        finally:
            state.replayed = before

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What this thread runs meanwhile leaves no trace: the host goes on telling of the forward before."""
        with self._states.aside():
            yield

    def report(self, rounds: int = 5, decode_tokens: int = 8) -> CostReport:
        """Tokens, FLOPs, key-value bytes and measured time of this thread's last prompt, against the plain model. Runs both
        `rounds` times.

        Raises `UserError` if nothing has run yet.
        """
        state = self._states.own()
        if self._undo is None or state.prefilled is None or state.example is None:
            raise UserError("nothing has run yet: call the model or generate inside the context, then ask for the report.")
        names = tuple(name_of(part) for part in self.parts)
        measured = Measured(self.model, self.architecture, self.title, names, state.prefilled, state.example)
        with self.aside():
            return measure(measured, self._states, self.plain, rounds, decode_tokens)

    # Plugging

    @contextmanager
    def plug(self, *parts: HostPart | str, **options: Any) -> Iterator[PluggedHost]:
        """Plugs parts (or names of registered parts, `options` being those of the one name) in, for the time of the context.

        Raises `UserError` for parts that this host cannot take or that exclude each other.
        """
        if self.parts or "_tessera_plugged" in self.model.__dict__:
            raise UserError("parts are plugged into this model already: plug all of them at once, plug(model, first, second).")
        built = _built(parts, options)
        self._check(built)
        self.parts, self._states = built, self._new_states()
        context = self._context = PlugContext(self, self.architecture, built, self._states)
        self.model.__dict__["_tessera_plugged"] = weakref.ref(self)
        try:
            self._insert(context)
            yield self
        finally:
            self._remove()
            context.session.open = False
            self.model.__dict__.pop("_tessera_plugged", None)
            for cache in list(context.caches):
                detach_sequence(cache)
            self._context, self.parts, self._states = None, (), self._new_states()

    def _insert(self, context: PlugContext) -> None:
        """Puts the hooks of all parts into the model."""
        with ExitStack() as undo:
            InputHooks(context.states).install(self.model, self.architecture.base, undo)
            layers, positions = LayerSocket(context), PositionSocket(context)
            layers.tap(undo)
            for part in self.parts:
                part.install(self, undo)
            layers.install(undo)
            positions.install(undo)
            undo.callback(layers.close)
            if any(type(part).logits_processors is not HostPart.logits_processors for part in self.parts):
                wrap_generate(self.model, self.logits_processors, undo)
            self._undo = undo.pop_all()

    def _remove(self) -> None:
        """Takes all hooks out of the model."""
        if self._undo is not None:
            self._undo.close()
            self._undo = None

    @property
    def session(self) -> PlugSession | None:
        """The time for which the parts are plugged in; None while none are."""
        return None if self._context is None else self._context.session

    @contextmanager
    def plain(self) -> Iterator[None]:
        """The model without its parts for a while."""
        assert self._context is not None
        self._remove()
        try:
            yield
        finally:
            self._insert(self._context)

    def _check(self, parts: tuple[HostPart, ...]) -> None:
        has, claimed = self.architecture.capabilities, dict[str, str]()
        for part in parts:
            name = name_of(part)
            for needed in part.needs:
                if needed not in CAPABILITIES:
                    raise TesseraError(f"{name} needs {needed!r}, which is no capability of hosts.")
                if needed not in has:
                    raise UserError(f"{name} needs {needed!r} ({CAPABILITIES[needed]}), which {self.title} does not offer.")
            if part.positions == "reindex" and "rope" not in has:
                other = "M-RoPE" if "mrope" in has else "no rotary positions"
                raise UserError(f"{name} needs 1-D rotary positions to re-index; {self.title} has {other}: use positions='keep'.")
            claims = set(part.claims) | ({"positions"} if part.positions == "reindex" else set())
            for claim in sorted(claims):
                if claim in claimed:
                    raise UserError(f"{name} and {claimed[claim]} both change the {claim}: plug in one of them.")
                claimed[claim] = name
        selecting = [part for part in parts if type(part).select is not HostPart.select]
        if len({part.positions for part in selecting}) > 1:
            raise UserError("of the parts that drop tokens some keep positions and some count anew: choose one for all.")


def attach(model: nn.Module) -> PluggedHost:
    """A transformers vision-language model as a host. Raises `UserError` for one that cannot be, with the reason."""
    return PluggedHost(model)


@contextmanager
def plug(model: nn.Module, *parts: HostPart | str, **options: Any) -> Iterator[PluggedHost]:
    """Plugs parts into a model for the time of the context, and gives its host.

    A part is a `HostPart` or the name of a registered one; `options` belong to the one name there is. Raises `UserError` for an
    unknown name or option, a model that cannot be a host, and parts that it cannot take.
    """
    with attach(model).plug(*parts, **options) as host:
        yield host


def plugged(model: nn.Module) -> PluggedHost | None:
    """The host whose parts are plugged into a model now, None without any."""
    found = model.__dict__.get("_tessera_plugged")
    return None if found is None else found()


def find(name: str) -> registry.Part:
    """The registered part `name` that plugs into hosts. Raises `UserError` if there is none."""
    found = [registry.get(socket, name) for socket in registry.SOCKETS if name in registry.names(socket)]
    fitting = [part for part in found if isinstance(part.target, type) and issubclass(part.target, HostPart)]
    if not found:
        raise unknown("part", name, {known for socket in registry.SOCKETS for known in registry.names(socket)})
    if not fitting:
        sockets = ", ".join(part.socket for part in found)
        raise UserError(f"{name!r} is a part of Tessera's own models (socket {sockets}); it cannot be plugged into a host.")
    if len(fitting) > 1:
        sockets = ", ".join(part.socket for part in fitting)
        raise UserError(f"{name!r} is a part of several sockets ({sockets}): build the one that is meant and plug that in.")
    return fitting[0]


def part_named(name: str, options: Mapping[str, Any] | None = None) -> HostPart:
    """The registered part `name`, built with its options. Raises `UserError` as `find` does, and for unknown or wrong options."""
    target: Any = find(name).target
    part: HostPart = target(build(target.Config, options or {}, name))
    return part


def _built(parts: Sequence[HostPart | str], options: Mapping[str, Any]) -> tuple[HostPart, ...]:
    names = [part for part in parts if isinstance(part, str)]
    if options and len(names) != 1:
        raise UserError(f"options ({', '.join(options)}) belong to one named part; {len(names)} are named.")
    built = []
    for part in parts:
        if isinstance(part, str):
            built.append(part_named(part, options))
        elif isinstance(part, HostPart):
            built.append(part)
        else:
            raise UserError(f"a part is a name or a HostPart, not {type(part).__name__}.")
    return tuple(built)
