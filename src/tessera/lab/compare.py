"""All parts of a socket under one budget: accuracy per question type, tokens, FLOPs, measured time, parameters.

    found = compare(Lab(), "tokens", budgets=(0.25,))
    for row in found.rows: print(row.name, row.accuracy, row.flops, row.time.median)

What can be plugged into a model is plugged into it; what cuts pictures or acts around a model does so; what a composed model is
built of is put in the place of the reference model's own part and trained for as many steps as all others. Accuracies are kept on
disk (`compare_runs.Runs`), times are measured anew, all contenders in turns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tessera import registry
from tessera.errors import UserError
from tessera.evaluation import provenance
from tessera.lab.compare_runs import Runs, difference, plugged_copy
from tessera.measure.sides import Ratio, interleaved, ratio

if TYPE_CHECKING:
    from tessera.evaluation.intervals import Interval
    from tessera.evaluation.result import Result
    from tessera.lab.lab import Lab

QUESTION = "Where is the dog?"
"""What is asked where only the cost matters."""
ANSWER = 2
"""Tokens of that answer, about as many as answers have."""
"""Sockets of composed models."""
SEEING = ("existence", "count", "relation", "position", "size", "attribute", "category", "at")
"""Question types about single scenes that need the picture."""
OnStep = Callable[[str], object]


@dataclass(slots=True, kw_only=True)
class Kind:
    """Accuracy of one question type with its 95 % interval, over n questions."""

    n: int
    accuracy: float
    low: float
    high: float


@dataclass(slots=True, kw_only=True)
class Contender:
    """One contender.

    name        of the part, "none" for the plain model; how: "bare", "plugged", "around" or "trained"
    budget      what it was given, None where it has no such setting
    accuracy    mean over the types, low and high its 95 % interval; against: the difference to "none" (paired bootstrap)
    tokens      visual tokens of an image in a decoder layer, mean over layers
    flops       of reading one prompt and answering it
    time        how many times faster than "none" that is, and milliseconds
    parameters  of the model
    """

    name: str
    how: str
    options: dict[str, Any]
    budget: float | None
    accuracy: float
    low: float
    high: float
    types: dict[str, Kind]
    against: Interval | None
    tokens: float | None
    flops: int
    time: Ratio
    milliseconds: float
    parameters: int
    best: bool = False
    """Whether nothing else is as accurate for as few FLOPs."""


@dataclass(slots=True, kw_only=True)
class Comparison:
    """All contenders in the order in which they were asked for, "none" first; refused: name -> why it could not take part."""

    socket: str
    on: str
    budgets: tuple[float, ...]
    questions: int
    rows: list[Contender]
    refused: dict[str, str]
    shape: str
    machine: str
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class _Contender:
    """What competes, before anything is measured. work: answers one prompt."""

    name: str
    how: str
    options: dict[str, Any]
    budget: float | None
    result: Result
    work: Callable[[], Any]
    tokens: Callable[[], float | None]
    parameters: int


def compare(
    lab: Lab,
    socket: str,
    names: Sequence[str] = (),
    *,
    on: str = "nano",
    budgets: Sequence[float] = (0.25,),
    steps: int = 150,
    n: int = 400,
    rounds: int = 5,
    types: Sequence[str] = SEEING,
    on_step: OnStep = lambda what: None,
) -> Comparison:
    """Compares the parts of `socket`, or the named ones, on the model `on`, on `n` questions of `types`.

    budgets: shares of the visual tokens for parts that say how they meet one; steps: of training for parts of composed models.
    Raises `UserError` for unknown names, a budget out of range, and a socket whose parts answer no questions.
    """
    from tessera.models import reference

    for budget in budgets:
        if not 0 < budget <= 1:
            raise UserError(f"a budget is a share of the visual tokens above 0, at most 1, not {budget:g}.")
    parts = [registry.get(socket, name) for name in names or registry.names(socket)]
    ways = {part.name: _way(part) for part in parts}
    if not names and any(way == "plugged" for way in ways.values()):
        parts = [part for part in parts if ways[part.name] != "trained"]  # those that are built in are asked for by name
    if not any(ways.values()):
        raise UserError(
            f"the parts of socket {socket!r} answer no questions, so they cannot be compared on a model. {_other(socket)}"
        )
    model, processor = lab.reference(on) if on in reference.REFERENCES else reference.load(on)
    if not hasattr(model, "generate"):
        raise UserError(f"{on} answers no questions; compare parts on nano, or on a vision-language model's folder.")
    refused: dict[str, str] = {}
    with ExitStack() as stack:
        ring = _Ring(lab, model, processor, on, n, tuple(types), stack)
        contenders = [ring.plain_model(size) for size in [_size(ways[part.name] for part in parts)]]
        for part in parts:
            on_step(part.name)
            try:
                contenders += ring.enter(part, ways[part.name], budgets, steps)
            except UserError as error:
                refused[part.name] = str(error)
        on_step("time and FLOPs")
        rows = _measured(lab, contenders, rounds)
    return Comparison(
        socket=socket,
        on=on,
        budgets=tuple(budgets),
        questions=n,
        rows=rows,
        refused=refused,
        shape=f"one image and a short question, {ANSWER} tokens of answer, {lab.shape()}",
        machine=provenance.machine(),
        versions=provenance.versions(),
    )


def _way(part: registry.Part) -> str:
    """How a part takes part: "plugged", "around", "trained", "" not at all."""
    from tessera.models.parts import SOCKETS

    if "plugged" in part.uses or "around" in part.uses:
        return "plugged" if "plugged" in part.uses else "around"
    return "trained" if "built" in part.uses and part.socket in SOCKETS.values() else ""


def _size(ways: Iterator[str]) -> int:
    """How many times larger the pictures are than what the model reads: parts around a model look closer."""
    return 3 if "around" in set(ways) else 1


def _other(socket: str) -> str:
    shown = registry.names(socket)[:3]
    return f"Their claims say what they do: tessera verify {' '.join(shown)}" if shown else f"No part fills {socket!r} yet."


class _Ring:
    """Where contenders meet: one model, one set of questions, one prompt whose cost is measured."""

    def __init__(self, lab: Lab, model: Any, processor: Any, on: str, n: int, types: tuple[str, ...], stack: ExitStack) -> None:
        self.lab, self.model, self.processor, self.on, self.n, self.types, self.stack = lab, model, processor, on, n, types, stack
        self.scale = 1
        self.runs = Runs(lab.cache / "compare")

    def plain_model(self, scale: int) -> _Contender:
        """The model as it is."""
        self.scale = scale
        return _Contender(
            name="none",
            how="bare",
            options={},
            budget=None,
            result=self.ask(self.model, ()),
            work=self.answer(self.model),
            tokens=self._all,
            parameters=provenance.parameter_count(self.model),
        )

    def _all(self) -> float:
        return self.placeholders(self.model)

    def enter(self, part: registry.Part, way: str, budgets: Sequence[float], steps: int) -> Iterator[_Contender]:
        """The part as one contender, or one for each budget. Raises `UserError` where the model cannot take it."""
        if way == "plugged":
            return self._plugged(part, budgets)
        if way == "around":
            return self._around(part)
        if way == "trained":
            return self._trained(part, steps)
        raise UserError(f"{part.name} answers no questions.")

    def _plugged(self, part: registry.Part, budgets: Sequence[float]) -> Iterator[_Contender]:
        from tessera.hosts.plug import attach

        layers = attach(self.model).layer_count
        asked: list[tuple[float | None, dict[str, Any]]] = [(None, {})]
        if part.target.budget(budgets[0], layers) is not None:
            asked = [(share, part.target.budget(share, layers)) for share in budgets]
        elif part.socket == "tokens":
            asked = [(None, part.target.example(layers))]
        for budget, options in asked:
            host = plugged_copy(self.stack, self.model, part.name, options)
            result = self.ask(self.model, (part,), plug={part.name: options})
            counts = (lambda host=host: _entering(host)) if "visual tokens" in part.target.claims else self._all
            yield self._contender(part.name, "plugged", options, budget, result, host.model, counts)

    def _around(self, part: registry.Part) -> Iterator[_Contender]:
        from tessera.config import build
        from tessera.hosts.host_generate import HostGenerator
        from tessera.hosts.pixels import Pixels
        from tessera.lab.around import ByAgent, ThroughViews

        side = int(getattr(self.model, "image_size", 0)) or 336
        options = part.target.example(side) if issubclass(part.target, Pixels) else {}
        made = part.target(build(part.target.Config, options, part.name))
        if isinstance(made, Pixels):
            answers: Any = ThroughViews(HostGenerator(self.model, self.processor), made)
        else:
            from tessera.hosts.agent import SessionModel
            from tessera.hosts.session import OwnSession, TransformersSession

            ours = getattr(self.model.config, "model_type", "") == "tessera_vlm"
            session: Any = (
                OwnSession(self.model, self.processor) if ours else TransformersSession(self.model, self.processor, self.on)
            )
            answers = ByAgent(SessionModel(session, ("yes", "no") if ours else ("Yes", "No"), side, 16), made)
        result = self.ask(self.model, (part,), answers=answers, options={part.name: options})
        picture = self.picture()
        yield _Contender(
            name=part.name,
            how="around",
            options=options,
            budget=None,
            result=result,
            work=lambda: answers.answer_batch([([picture], [QUESTION])], ANSWER),
            tokens=lambda: None,
            parameters=provenance.parameter_count(self.model),
        )

    def _trained(self, part: registry.Part, steps: int) -> Iterator[_Contender]:
        if self.on != "nano":
            raise UserError(f"{part.name} is built into a model and trained with it: compare it on nano.")
        model, _ = self.runs.train(swapped(part, steps), (part,))
        model.eval()
        result = self.ask(model, (part,))
        yield self._contender(part.name, "trained", {}, float(steps), result, model, lambda: self.placeholders(model))

    def _contender(
        self,
        name: str,
        how: str,
        options: dict[str, Any],
        budget: float | None,
        result: Result,
        model: Any,
        tokens: Callable[[], float | None],
    ) -> _Contender:
        return _Contender(
            name=name,
            how=how,
            options=options,
            budget=budget,
            result=result,
            work=self.answer(model),
            tokens=tokens,
            parameters=provenance.parameter_count(model),
        )

    def ask(self, model: Any, parts: Sequence[registry.Part], **options: Any) -> Result:
        """The questions; pictures are larger than the model reads where parts look closer."""
        side = int(getattr(model, "image_size", 0)) or 336
        world = {"kinds": {"scene": 1.0}, "width": self.scale * side, "height": self.scale * side}
        return self.runs.evaluate(model, self.processor, parts, types=self.types, n=self.n, world=world, **options)

    def picture(self) -> Any:
        """What the prompt shows."""
        from tessera.world import World

        side = self.scale * (int(getattr(self.model, "image_size", 0)) or 336)
        return World(split="test", width=side, height=side, kinds={"scene": 1.0})[0].images()[0]

    def inputs(self, model: Any) -> dict[str, Any]:
        """The prompt."""
        from tessera.hosts.asking import Asking

        asking = Asking(model, self.processor, self.on)
        return dict(asking.inputs([asking.render(asking.message(QUESTION, 1))], [[self.picture()]]))

    def answer(self, model: Any) -> Callable[[], Any]:
        """Answers the prompt."""
        inputs = self.inputs(model)
        settings = {"max_new_tokens": ANSWER, "min_new_tokens": ANSWER, "do_sample": False}
        return lambda: model.generate(**inputs, **settings)

    def placeholders(self, model: Any) -> float:
        """Visual tokens of the prompt."""
        import torch

        from tessera.hosts.plug import attach

        ids = torch.tensor(list(attach(model).architecture.image_token_ids))
        return float(torch.isin(self.inputs(model)["input_ids"], ids).sum())


def swapped(part: registry.Part, steps: int) -> Any:
    """The recipe that puts `part` in the place of the reference model's own and trains all but the encoders for `steps` steps;
    everything that fits starts from the reference model's weights."""
    from tessera.models import reference
    from tessera.recipes.recipe import recipe
    from tessera.training.plan import OptimConfig, Schedule, Stage, TrainConfig
    from tessera.training.run import build

    made = recipe("nano")
    made.name, made.about = f"compare {part.socket}/{part.name}", "The reference model with another part."
    parts = made.model["parts"]
    key = {"connectors": "connector", "couplings": "coupling"}.get(part.socket, part.socket)
    new = {"kind": part.name}
    parts[key] = [new, *parts["encoders"][1:]] if key == "encoders" else new
    made.start, made.lessons = {}, {}
    nano, _ = reference.load("nano")
    model, _ = build(made)
    theirs = nano.sockets()
    for name, module in model.sockets().items():
        if name in theirs and _shapes(module) == _shapes(theirs[name]) != {}:
            made.start[name] = "nano"
    made.training = TrainConfig(
        stages=[Stage(name="swap", steps=steps, train={"*": 1.0, "encoders.*": 0.0}, schedule=Schedule(warmup=20))],
        optim=OptimConfig(lr=1e-3, muon_lr=0.01),
        batch_size=16,
        compile="off",
    )
    return made


def _shapes(module: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _entering(host: Any) -> float | None:
    """Visual tokens that enter a decoder layer in the last prompt, mean over layers."""
    sequence = host.prefilled
    if sequence is None:
        return None
    counts = [float(stage.visual.sum()) for stage in sequence.stages]
    return sum(counts) / len(counts)


def _measured(lab: Lab, contenders: Sequence[_Contender], rounds: int) -> list[Contender]:
    import torch

    plain_model = contenders[0]
    with torch.inference_mode():
        flops = [lab.flops(one.work) for one in contenders]
        tokens = [one.tokens() for one in contenders]
        taken = interleaved({str(number): one.work for number, one in enumerate(contenders)}, rounds)
    rows = []
    for number, one in enumerate(contenders):
        result, seconds = one.result, sorted(taken[str(number)])
        same = result.items == plain_model.result.items
        rows.append(
            Contender(
                name=one.name,
                how=one.how,
                options=one.options,
                budget=one.budget,
                accuracy=result.accuracy,
                low=result.low,
                high=result.high,
                types={
                    kind: Kind(n=found.n, accuracy=found.accuracy, low=found.low, high=found.high)
                    for kind, found in result.types.items()
                },
                against=difference(result, plain_model.result) if number and same else None,
                tokens=tokens[number],
                flops=flops[number],
                time=ratio(taken["0"], taken[str(number)]),
                milliseconds=round(1e3 * seconds[len(seconds) // 2], 2),
                parameters=one.parameters,
            )
        )
    for row in rows:
        row.best = not any(
            other.accuracy >= row.accuracy
            and other.flops <= row.flops
            and (other.accuracy, -other.flops) != (row.accuracy, -row.flops)
            for other in rows
        )
    return rows
