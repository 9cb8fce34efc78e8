"""Fingerprints of parts: what they give on their contract fixtures, tiny models with fixed random weights.

Every part is tried with its tiny options, with its options for doing nothing, and once with every other value of an option
that is one of a few words or a yes or no, because such an option hides code. A part whose socket has no model around it (engines,
benchmarks, probes, grounding, agents) is tried on fixed samples of the world and scripted answers (`things.py`). What a fixture
cannot reach a part may add itself, as a function `behaviour()` that returns `Numbers` in its claims file or, of a part of
ours, in `claims/<socket>/<part>_behaviour.py`.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator
from types import UnionType
from typing import Any, Literal

from tessera import registry
from tessera.config import build, field_types, to_dict
from tessera.errors import TesseraError, UserError
from tessera.hosts.tiny_configs import RECIPES
from tessera.lab import claims
from tessera.lab.behaviour import Numbers, summary
from tessera.lab.contract.dual import DualFixture
from tessera.lab.contract.fixture import Fixture
from tessera.lab.contract.hosted import HostFixture
from tessera.lab.contract.models import ComposedFixture, ModelFixture
from tessera.lab.contract.others import CompressionFixture, FewShotFixture, PixelsFixture
from tessera.lab.contract.table import fixtures
from tessera.lab.contract.training import ObjectiveFixture, TuningFixture
from tessera.lab.fingerprints import things

MOST = 24
"""Gradients of more parameters than this are told by a summary."""


def of_part(part: registry.Part) -> Numbers:
    """What the part does on every fixture that it has, in every variant, and its own `behaviour()`.

    Raises `TesseraError` for a part whose socket has no fixture and which has no `behaviour()`.
    """
    own = _own(part)
    found: dict[str, list[float] | str] = {f"own: {name}": value for name, value in own.items()}
    for kind in fixtures(part):
        if kind is Fixture and part.socket not in things.BEHAVIOURS:  # nothing is known of such a part but what it says itself
            if not own:
                raise TesseraError(
                    f"{part.socket}/{part.name}: socket {part.socket!r} has no fixture, so its claims file needs a function "
                    "behaviour() that returns what the part does as {what: [numbers] or a text}; freshness is judged by it."
                )
            continue
        plain = _of_fixture(kind(part))
        found |= {f"{_label(kind)}: {name}": value for name, value in plain.items()}
        for label, options in variants(kind(part)):
            fixture = kind(part)
            fixture.options = {**fixture.options, **options}
            try:
                values = _of_fixture(fixture)
            except (UserError, AssertionError) as error:  # `Broken` where no model takes these options: that is a behaviour too
                values = {"refused": type(error).__name__}
            found |= {f"{_label(kind)}, {label}: {name}": _short(value) for name, value in values.items()}
    return found


def _label(kind: type[Fixture]) -> str:
    """What fingerprints on disk are called, as fixtures were called when they were written."""
    return f"{kind.__name__.removesuffix('Fixture')}Bench"


def _short(value: Any) -> Any:
    """Many numbers as six."""
    import torch

    return value if isinstance(value, str) or len(value) <= 6 else summary(torch.tensor(value, dtype=torch.float64), 4)


def variants(fixture: Fixture) -> Iterator[tuple[str, dict[str, Any]]]:
    """(label, options): those for doing nothing, and each other value of options that are Literals or booleans."""
    if fixture.Config is None:
        return
    if (nothing := fixture.part.identity()) is not None:
        yield "doing nothing", nothing
    example = fixture.target.example(things.LAYERS) if isinstance(fixture, HostFixture) else {}
    try:
        now = to_dict(build(fixture.Config, {**example, **fixture.options}, fixture.part.name))
    except UserError:  # options that must be given, which the fixture knows
        now = dict(fixture.options)
    for name, kind in field_types(fixture.Config).items():
        for value in _values(kind):
            if value != now.get(name):
                yield f"{name} {value}", {name: value}


def _values(kind: Any) -> tuple[Any, ...]:
    """Values of an option that hide code: those of a Literal, of a bool; of a tuple of Literals all at once."""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return inside
    if kind is bool:
        return (True, False)
    if origin in (typing.Union, UnionType):
        return tuple(value for one in inside for value in _values(one))
    if origin is tuple and inside and typing.get_origin(inside[0]) is Literal:
        return (list(typing.get_args(inside[0])),)
    return ()


def _own(part: registry.Part) -> Numbers:
    """What the part's `behaviour()` gives, nothing without one."""
    found: dict[str, list[float] | str] = {}
    for home in claims.behaviour_modules(part.socket, part.name):
        make = getattr(home, "behaviour", None)
        if callable(make):
            found |= make()
    return found


def _of_fixture(fixture: Fixture) -> dict[str, Any]:
    from tessera.lab.contract.fixture import quiet, seeded

    kinds: tuple[tuple[type[Fixture], Any], ...] = (
        (HostFixture, _hosted),
        (ModelFixture, _composed),
        (ObjectiveFixture, _objective),
        (TuningFixture, _tuning),
        (PixelsFixture, _pixels),
        (CompressionFixture, _compression),
        (FewShotFixture, _few_shot),
    )
    with quiet():
        if isinstance(fixture, (ObjectiveFixture, TuningFixture, FewShotFixture)):
            _warm()
        with seeded():
            for kind, look in kinds:
                if isinstance(fixture, kind):
                    return look(fixture)
            if fixture.part.socket in things.BEHAVIOURS:
                return things.BEHAVIOURS[fixture.part.socket](fixture)
    raise TesseraError(f"{fixture.part.socket}/{fixture.part.name}: {type(fixture).__name__} has no fingerprint yet.")


def _warm() -> None:
    """The miniature models, each from the same random numbers, whichever part asks first."""
    from tessera.lab.contract import training
    from tessera.lab.contract.fixture import seeded

    for name in training.RECIPES:
        with seeded():
            training.subject(name)


def _hosted(fixture: HostFixture) -> dict[str, Any]:
    """Logits of a forward with the part plugged in, which tokens enter every layer, what is generated; with two images too."""
    import torch

    with torch.no_grad(), fixture.plugged() as (model, host):
        logits = model(**fixture.home.inputs).logits
        stages = [] if host.sequence is None else host.sequence.stages
        places = [float(x) for stage in stages for row in stage.index for x in (len(row), int(row.sum()))]
        said = fixture.home.generate(use_cache=True)
    found = {"logits": summary(logits), "places": places, "generated": str(said.tokens.tolist())}
    if RECIPES[fixture.home.family].most_images > 1:
        try:
            with torch.no_grad(), fixture.plugged() as (model, host):
                logits = model(**fixture.home.tiny.inputs((2, 1))).logits
                stages = [] if host.sequence is None else host.sequence.stages
                places = [float(x) for stage in stages for row in stage.index for x in (len(row), int(row.sum()))]
        except UserError as error:
            found["two images"] = type(error).__name__
        else:
            found |= {"two images: logits": summary(logits), "two images: places": places}
    return found


def _composed(fixture: ModelFixture) -> dict[str, Any]:
    """What a model around the part gives for two rows, padded on either side, its loss, and in training mode (where capacities
    and auxiliary losses act) the loss and the gradients of the part's parameters."""
    import torch

    model = fixture.model
    found: dict[str, Any] = {f"row {n}": summary(out) for n, out in enumerate(fixture.seen(model, [0, 1]))}
    found |= {f"row {n}, padded on the right": summary(out, 2) for n, out in enumerate(fixture.seen(model, [0, 1], "right"))}
    if isinstance(fixture, DualFixture):
        with torch.no_grad():
            found["likeness"] = summary(model(**fixture.inputs(model, [0, 1, 2])).logits_per_image)
    if isinstance(fixture, ComposedFixture):
        with torch.no_grad():
            found["two images"] = summary(model(**_two_images(fixture)).logits)
    rows = [0, 1, 2]  # an odd number: means over rows differ from sums and from halves
    found["loss"] = [float(fixture.loss(model, fixture.inputs(model, rows)).detach())]
    torch.manual_seed(0)
    model.train()
    loss = fixture.loss(model, fixture.inputs(model, rows))
    found["loss in training"] = [float(loss.detach())]
    if loss.requires_grad:
        loss.backward()
        for number, module in enumerate(fixture.modules(model)):
            found[f"gradients {number}"] = _gradients(module)
    model.zero_grad(set_to_none=True)
    model.eval()
    return found


def _two_images(fixture: ComposedFixture) -> dict[str, Any]:
    """One row with two images and words behind each."""
    import torch

    first, second = (fixture.inputs(fixture.model, [row]) for row in (0, 2))
    joined = {name: torch.cat([first[name], second[name][:, 1:]], 1) for name in ("input_ids", "attention_mask")}
    return {**joined, "pixel_values": torch.cat([first["pixel_values"], second["pixel_values"]])}


def _gradients(module: Any) -> list[float]:
    """Norms of the gradients of a module's parameters, in their order; -1 where there is none."""
    import torch

    norms = [-1.0 if p.grad is None else float(p.grad.double().norm()) for p in module.parameters()]
    return norms if len(norms) <= MOST else summary(torch.tensor(norms, dtype=torch.float64))


def _objective(fixture: ObjectiveFixture) -> dict[str, Any]:
    """The loss of three samples with model, objective and reference stirred, its numbers, and gradients of both."""
    import torch

    from tessera.lab.contract.fixture import stir

    objective, model, collate, reference = fixture.ready
    stir(model, 0)
    stir(objective, 2)
    if reference is not None:
        stir(reference, 4)
        reference.requires_grad_(False)
    model.requires_grad_(True)
    found: dict[str, Any] = {}
    numbers = [0, 1, 2]
    for name, value in sorted(collate(numbers).items()):
        found[f"batch {name}"] = summary(value, 4) if isinstance(value, torch.Tensor) else str(value)[:200]
    loss = fixture.loss(numbers)
    found["loss"] = [float(loss.loss_sum.detach()), float(loss.loss_weight)]
    found["numbers"] = [float(torch.as_tensor(value).detach()) for _, value in sorted(loss.numbers.items())]
    torch.manual_seed(0)
    loss = fixture.loss(numbers, train=True)
    found["loss in training"] = [float(loss.loss_sum.detach())]
    loss.loss_sum.backward()
    found["gradients of the model"] = _gradients(model)
    found["gradients of the objective"] = _gradients(objective)
    found["own sockets"] = str(sorted(n for n, _ in objective.named_children()))
    model.zero_grad(set_to_none=True)
    return found


def _tuning(fixture: TuningFixture) -> dict[str, Any]:
    """Logits with the tuning's parameters random, switched off, and gradients of its parameters; what asks for gradients."""
    from tessera.lab.contract.fixture import stir
    from tessera.lab.contract.training import SIDE, subject, task_batches
    from tessera.world import World

    tuning, model, module = fixture.put()
    found: dict[str, Any] = {f"just put in, {n}": summary(p, 2) for n, p in sorted(module.named_parameters())[:4]}
    found["trained"] = [float(sum(p.numel() for p in part.parameters() if p.requires_grad)) for part in (module, model)]
    stir(module)
    found |= {f"row {n}": summary(out) for n, out in enumerate(fixture.seen(model, [0, 1]))}
    batch = task_batches("nano", model, subject("nano")[1], [World(width=SIDE, height=SIDE)])([0, 1])
    model(**batch).loss.backward()
    found["gradients"] = _gradients(module)
    with tuning.off():
        found["switched off"] = summary(fixture.seen(model, [0])[0])
    return found


def _pixels(fixture: PixelsFixture) -> dict[str, Any]:
    """Boxes, layers and pixels of the views of four pictures."""
    import numpy as np

    found: dict[str, Any] = {}
    for size in ((97, 61), (40, 200), (640, 320), (300, 310)):
        views = fixture.views(size)
        found[f"boxes {size}"] = [float(x) for view in views for x in view.box]
        found[f"views {size}"] = str([(v.layer, v.image.size) for v in views])
        found[f"pixels {size}"] = [float(np.asarray(v.image, dtype=np.float64)[::2, ::3].mean()) for v in views]
    return found


def _compression(fixture: CompressionFixture) -> dict[str, Any]:
    """Logits of what the part makes, and of its weights the first."""
    made = fixture.compressed()
    state = sorted(made.state_dict().items())
    total = [float(value.double().norm()) for _, value in state]
    import torch

    return {"logits": summary(fixture.seen(made, [0, 1, 2])), "weights": summary(torch.tensor(total, dtype=torch.float64))}


def _few_shot(fixture: FewShotFixture) -> dict[str, Any]:
    """Logits of the classifier that the part fits."""
    from tessera.lab.contract.fixture import stir

    stir(fixture.dual.model)
    return {"logits": summary(fixture.fitted().logits(fixture.images([8, 9, 10])))}
