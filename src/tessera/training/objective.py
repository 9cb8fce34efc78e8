"""The contract of objectives: a loss that a run minimises instead of the model's own, and how the trainer is given it.

An objective takes a batch, the model and, if it wants one, a frozen copy of the model as it was at the start (teacher, reference)
and gives a loss with named numbers. It is a module, so that heads and decoders which exist for training alone train with the
model and are left behind; and it makes its own batches from the world's samples, where it needs other ones than the recipe's
task gives.

    subject = Subject(model, objective, reference=model)     # what the trainer trains
    Trainer(subject, Batches(objective.collate(worlds, processor, 24), config), config, out).run()
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from tessera import registry
from tessera.config import build, to_dict
from tessera.errors import TesseraError, UserError, unknown
from tessera.training.features import cacheable, fingerprint
from tessera.training.stages import sockets_of
from tessera.training.tuning import Tuning

if TYPE_CHECKING:
    from tessera.world import World

SOCKETS = ("objectives", "distillation", "preference")
"""Sockets whose parts are objectives."""
Collate: TypeAlias = "Callable[[Sequence[int]], dict[str, Any]]"
"""Running numbers of samples -> one batch, a function of the numbers alone."""


@dataclass(slots=True)
class Loss:
    """What an objective gives, scalars.

    The loss of a step is the quotient of the sums of `loss_sum` and `loss_weight` over its micro-batches and processes. `numbers`
    are sums over the same units; divided by the same weight they go to the log under their names.
    """

    loss_sum: Tensor
    loss_weight: Tensor
    numbers: dict[str, Tensor] = field(default_factory=dict)


class Objective(nn.Module):
    """A batch, the model and a frozen copy of it -> a loss with named numbers; `loss` is what a part has to write.

    Whatever is left to chance belongs into `collate`, drawn from the samples' numbers: then a run resumes exactly and
    micro-batches add up to the whole batch.
    """

    Config: ClassVar[type]
    wants_reference: ClassVar[bool] = False
    """Whether `loss` is given a frozen copy of the model as it was at the start."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def prepare(self, model: nn.Module, processor: Any) -> None:
        """Builds what depends on the model, before training. Raises `UserError` for a model that the objective cannot train."""

    def sockets(self, model: nn.Module) -> dict[str, nn.Module]:
        """The sockets of the model that stages may train; what is in none of them is frozen."""
        return sockets_of(model)

    def collate(self, worlds: Sequence[World], processor: Any, batch_size: int) -> Collate | None:
        """Makes the objective's batches; None: those of the recipe's task will do."""
        return None

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor], reference: nn.Module | None) -> Loss:
        """The loss of a batch. `reference` is in evaluation mode and has no gradients; None unless `wants_reference`."""
        raise NotImplementedError


class Frozen(nn.Module):
    """Holds a frozen copy of a module that moves between devices with its owner, but is none of its parameters.

    So it is neither trained, nor cast, nor saved.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        held = copy.deepcopy(module).eval().requires_grad_(False)
        self.__dict__["held"] = held  # past nn.Module's registration, on purpose

    def _apply(self, fn: Any, recurse: bool = True) -> Frozen:
        self.__dict__["held"]._apply(fn, recurse)
        super()._apply(fn, recurse)
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the held module gives, without gradients."""
        with torch.no_grad():
            return self.held(*args, **kwargs)

    @property
    def held(self) -> nn.Module:
        """The copy."""
        found: nn.Module = self.__dict__["held"]
        return found


class Subject(nn.Module):
    """What the trainer trains in place of the model alone: the model with an objective, with a tuning, or with both.

    Its sockets are the model's and, where they have parameters, "objective" and "tuning". With a tuning only what a stage names
    beside it moves in the model itself: `train={"tuning": 1.0}` is the usual plan.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective | None = None,
        tuning: Tuning | None = None,
        reference: nn.Module | None = None,
    ) -> None:
        """`reference`: what a frozen copy is made of for an objective that wants one, usually `model` itself."""
        super().__init__()
        self.model, self.objective = model, objective
        wanted = objective is not None and objective.wants_reference
        if wanted and reference is None:
            raise TesseraError(f"{type(objective).__name__} wants a reference, but none was given.")
        self.reference = Frozen(reference) if wanted and reference is not None else None
        self.tuning = None if tuning is None else tuning.put_in(model)
        self._tuning = tuning

    def sockets(self) -> dict[str, nn.Module]:
        """Socket name -> module, for freeze plans."""
        found = sockets_of(self.model) if self.objective is None else self.objective.sockets(self.model)
        own = {"objective": self.objective, "tuning": self.tuning}
        return found | {name: m for name, m in own.items() if m is not None and any(True for _ in m.parameters())}

    def forward(self, **batch: Any) -> Any:
        """The objective's `Loss` of the batch, or what the model gives."""
        if self.objective is None:
            return self.model(**batch)
        return self.objective.loss(self.model, batch, None if self.reference is None else self.reference.held)

    def require_images(self, input_ids: Tensor, images: int) -> None:
        """What the model checks of its batches; those of an objective are its own business."""
        check = getattr(self.model, "require_images", None)
        if self.objective is None and check is not None:
            check(input_ids, images)

    def settings(self) -> dict[str, Any]:
        """What a resumed run must share with the one before: options, and the hash of teachers and reference."""
        found: dict[str, Any] = {}
        for name, part in (("objective", self.objective), ("tuning", self._tuning)):
            if part is not None:
                found[name] = {"class": type(part).__name__, **to_dict(part.config)}
        held = [module.held for module in self.modules() if isinstance(module, Frozen)]
        return found | ({"frozen": fingerprint(held, "")} if held else {})


def unwrapped(model: nn.Module) -> nn.Module:
    """The model that is evaluated and saved: that of a `Subject`, else the model itself."""
    return model.model if isinstance(model, Subject) else model


def numbers_of(output: Any) -> dict[str, Tensor]:
    """The named sums of an output, none of a model's own."""
    found: dict[str, Tensor] = getattr(output, "numbers", None) or {}
    return found


def objective_named(spec: Mapping[str, Any]) -> Objective:
    """The objective of `{"kind": name, **options}`. Raises `UserError` for unknown names and options."""
    part, options = _part(spec, SOCKETS, "objective")
    made = part.target(build(part.target.Config, options, f"objective {part.name}"))
    if not isinstance(made, Objective):
        raise UserError(f"{part.name!r} of socket {part.socket!r} is no objective: a run cannot train by it.")
    return made


def tuning_named(spec: Mapping[str, Any]) -> Tuning:
    """The tuning of `{"kind": name, **options}`. Raises `UserError` for unknown names and options."""
    part, options = _part(spec, ("tuning",), "tuning")
    made = part.target(build(part.target.Config, options, f"tuning {part.name}"))
    if not isinstance(made, Tuning):
        raise UserError(f"{part.name!r} is a part of socket 'tuning' that trains nothing.")
    return made


def _part(spec: Mapping[str, Any], sockets: Sequence[str], what: str) -> tuple[registry.Part, dict[str, Any]]:
    options = dict(spec)
    kind = options.pop("kind", None)
    offered = {name: socket for socket in sockets for name in registry.names(socket)}
    if not isinstance(kind, str):
        raise UserError(f"{what} wants the name of a part as `kind`: {', '.join(sorted(offered))}.")
    if kind not in offered:
        raise unknown(what, kind, offered)
    return registry.get(offered[kind], kind), options


def encoded(model: Any, batch: Mapping[str, Tensor], reference: Any = None) -> dict[str, Tensor]:
    """The batch with images as features, so that model and reference need not both encode them.

    Only where nothing in front of the connector trains, or has trained since the reference was made; else the batch as it is.
    """
    found = dict(batch)
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    front = cacheable(model, sockets_of(model), trained)
    if "pixel_values" not in found or not front or not (reference is None or _alike(model, reference, front)):
        return found
    with torch.no_grad():
        found["visual_features"] = model.encode_images(found.pop("pixel_values")).features
    return found


def _alike(model: nn.Module, reference: nn.Module, names: Sequence[str]) -> bool:
    """Whether two models have the same weights in some sockets."""
    mine, other = sockets_of(model), sockets_of(reference)
    return all(torch.equal(a, b) for n in names for a, b in zip(mine[n].parameters(), other[n].parameters(), strict=True))
