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
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from tessera import registry
from tessera.config import build
from tessera.errors import TesseraError, UserError, unknown
from tessera.hosts.architecture import CAPABILITIES, Architecture, architecture
from tessera.hosts.boundary import ForwardPass
from tessera.hosts.caches import detach_sequence
from tessera.hosts.layers import LayerSocket
from tessera.hosts.logits import wrap_generate
from tessera.hosts.part import HostPart, LayerView, Layout
from tessera.hosts.positions import PositionSocket
from tessera.hosts.prompts import Prompt
from tessera.hosts.sequence import PlugSession, TokenStage
from tessera.hosts.sequence import Sequence as HostSequence
from tessera.hosts.views import Captures

if TYPE_CHECKING:
    from tessera.hosts.report import CostReport


class Host:
    """A transformers vision-language model and its sockets. Made by `attach`, filled by `plug`."""

    def __init__(self, model: nn.Module, found: Architecture | None = None) -> None:
        """Raises `UserError` for a model that cannot be a host, with the reason."""
        self.model = model
        self.architecture = architecture(model) if found is None else found
        self.layers = self.architecture.layers
        self.layer_count = len(self.layers)
        self.parts: tuple[HostPart, ...] = ()
        self.prompt = Prompt(self.architecture)
        self.current: ForwardPass | None = None
        self.replayed: HostSequence | None = None
        self.asking: tuple[HostPart, TokenStage] | None = None
        self.session = PlugSession()
        self.session.open = False
        self.caches: weakref.WeakSet[Any] = weakref.WeakSet()
        self.example: tuple[nn.Module, tuple[Any, ...], dict[str, Any]] | None = None
        self.prefilled: HostSequence | None = None
        self.undo: ExitStack | None = None
        """What takes the hooks out again; None while nothing is plugged in."""
        self._captures = Captures(self)

    @property
    def title(self) -> str:
        """The model's family, for people."""
        title = self.architecture.family.title
        return title if title != "generic" else str(getattr(self.model.config, "model_type", type(self.model).__name__))

    @property
    def implementation(self) -> str:
        """The language model's attention implementation."""
        return str(self.architecture.language_model.config._attn_implementation or "eager")  # type: ignore[union-attr]

    @property
    def sequence(self) -> HostSequence | None:
        """The sequence of the forward that runs, or ran last."""
        return None if self.current is None else self.current.sequence

    @property
    def prefill(self) -> bool:
        """Whether that forward is a prefill."""
        return self.current is not None and self.current.prefill

    def visual_at(self, layer: int) -> Tensor | None:
        """[B, K] bool: visual ones among the tokens of decoder layer `layer` in this forward; None when there are none (decoding,
        or a prompt without images)."""
        current = self.current
        if current is None or not current.prefill or not current.sequence.has_visual:
            return None
        return current.sequence.stages[layer].visual

    def captured(self, layer: int) -> Tensor:
        """What the asking part's tap at language-model layer `layer` captured in this prefill, for the tokens of its view."""
        return self._captures.language(layer)

    def probe(self, view: LayerView) -> Tensor:
        """[B, K] float32: attention of the last instruction token by the layer's own queries and keys on `view.hidden`."""
        return self._captures.probe(view)

    def tower_scores(self, view: LayerView) -> Tensor:
        """[B, K] float32: the tower tap's score of each visual token, -inf elsewhere, +inf for tokens that show no place."""
        return self._captures.tower_scores(view)

    def layouts(self, view: LayerView) -> Sequence[Sequence[Layout]]:
        """Per row, the layouts of its images, in the order of their tokens."""
        return self._captures.layouts(view.sequence)

    def image_lengths(self, sequence: HostSequence) -> list[int] | None:
        """Tokens per image in the order of the prompt; None where the family does not know."""
        if "raster" not in self.architecture.capabilities or sequence.images is None:
            return None
        return [layout.tokens for layout in self.architecture.family.layouts(self.model, sequence.images.inputs)]

    def logits_processors(self, inputs: Mapping[str, Any]) -> list[Any]:
        """The logits processors of all parts, for a generation that begins with `inputs`."""
        return [processor for part in self.parts for processor in part.logits_processors(self, inputs)]

    def begin(self, current: ForwardPass, call: tuple[nn.Module, tuple[Any, ...], dict[str, Any]]) -> None:
        """A prefill begins."""
        self.current, self.prefilled = current, current.sequence
        module, args, kwargs = call
        self.example = (module, args, {k: v for k, v in kwargs.items() if k != "past_key_values"})

    def report(self, rounds: int = 5, decode_tokens: int = 8) -> CostReport:
        """Tokens, FLOPs, key-value bytes and measured time of the last prompt, against the plain model. Runs both `rounds` times.

        Raises `UserError` if nothing has run yet.
        """
        from tessera.hosts.report import measure

        return measure(self, rounds, decode_tokens)

    # Plugging

    @contextmanager
    def plug(self, *parts: HostPart | str, **options: Any) -> Iterator[Host]:
        """Plugs parts (or names of registered parts, `options` being those of the one name) in, for the time of the context.

        Raises `UserError` for parts that this host cannot take or that exclude each other.
        """
        if self.parts or "_tessera_plugged" in self.model.__dict__:
            raise UserError("parts are plugged into this model already: plug all of them at once, plug(model, first, second).")
        built = _built(parts, options)
        self._check(built)
        self.parts, self.session = built, PlugSession()
        self.model.__dict__["_tessera_plugged"] = True
        try:
            self.insert()
            yield self
        finally:
            self.remove()
            self.session.open = False
            self.model.__dict__.pop("_tessera_plugged", None)
            for cache in list(self.caches):
                detach_sequence(cache)
            self.caches.clear()
            self.parts = ()
            self.current = self.replayed = self.asking = self.example = self.prefilled = None

    def insert(self) -> None:
        """Puts the hooks of all parts into the model."""
        with ExitStack() as undo:
            self.prompt.install(self.model, undo)
            layers = LayerSocket(self)
            self.position_socket = PositionSocket(self)
            self.layer_socket = layers
            self._captures.install(undo)
            for part in self.parts:
                part.install(self, undo)
            layers.install(undo)
            self.position_socket.install(undo)
            if any(type(part).logits_processors is not HostPart.logits_processors for part in self.parts):
                wrap_generate(self, undo)
            self.undo = undo.pop_all()

    def remove(self) -> None:
        """Takes all hooks out of the model."""
        if self.undo is not None:
            self.undo.close()
            self.undo = None

    @contextmanager
    def replay(self, sequence: HostSequence) -> Iterator[Host]:
        """Prefills drop and merge what was dropped and merged in `sequence`, instead of asking the parts; further tokens stay.

        So a forward without cache computes what a cached generation did.
        """
        before, self.replayed = self.replayed, sequence
        try:
            yield self
        finally:
            self.replayed = before

    def _check(self, parts: tuple[HostPart, ...]) -> None:
        has, claimed = self.architecture.capabilities, dict[str, str]()
        for part in parts:
            name = self.name_of(part)
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

    @staticmethod
    def name_of(part: HostPart) -> str:
        """The name of a part: its file's in the wing, else its class's."""
        module = type(part).__module__.split(".")
        return module[3] if module[:2] == ["tessera", "parts"] else type(part).__name__


def attach(model: nn.Module) -> Host:
    """A transformers vision-language model as a host. Raises `UserError` for one that cannot be, with the reason."""
    return Host(model)


@contextmanager
def plug(model: nn.Module, *parts: HostPart | str, **options: Any) -> Iterator[Host]:
    """Plugs parts into a model for the time of the context, and gives its `Host`.

    A part is a `HostPart` or the name of a registered one; `options` belong to the one name there is. Raises `UserError` for an
    unknown name or option, a model that cannot be a host, and parts that it cannot take.
    """
    with attach(model).plug(*parts, **options) as host:
        yield host


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
