"""Where contenders meet: one model, one set of questions, one prompt whose cost is measured.

What can be plugged into a model is plugged into it; what cuts pictures or acts around a model does so; what a composed model is
built of is put in the place of the reference model's own part and trained for as many steps as all others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tessera import registry
from tessera.errors import UserError
from tessera.evaluation import provenance
from tessera.lab.compare.runs import Runs, plugged_copy

if TYPE_CHECKING:
    from tessera.evaluation.result import Result
    from tessera.lab.local_lab import LocalLab

QUESTION = "Where is the dog?"
"""What is asked where only the cost matters."""
ANSWER = 2
"""Tokens of that answer, about as many as answers have."""
"""Sockets of composed models."""


@dataclass(slots=True, kw_only=True)
class Entrant:
    """What competes, before anything is measured. work: answers one prompt."""

    name: str
    how: str
    options: dict[str, Any]
    budget: float | None
    result: Result
    work: Callable[[], Any]
    tokens: Callable[[], float | None]
    parameters: int


def way_of(part: registry.Part) -> str:
    """How a part takes part: "plugged", "around", "trained", "" not at all."""
    from tessera.models.parts import SOCKETS

    if "plugged" in part.uses or "around" in part.uses:
        return "plugged" if "plugged" in part.uses else "around"
    return "trained" if "built" in part.uses and part.socket in SOCKETS.values() else ""


class Ring:
    """Where contenders meet: one model, one set of questions, one prompt whose cost is measured."""

    def __init__(
        self, lab: LocalLab, model: Any, processor: Any, on: str, n: int, types: tuple[str, ...], stack: ExitStack
    ) -> None:
        self.lab, self.model, self.processor, self.on, self.n, self.types, self.stack = lab, model, processor, on, n, types, stack
        self.scale = 1
        self.runs = Runs(lab.cache / "compare")

    def plain_model(self, scale: int) -> Entrant:
        """The model as it is."""
        self.scale = scale
        return Entrant(
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

    def enter(self, part: registry.Part, way: str, budgets: Sequence[float], steps: int) -> Iterator[Entrant]:
        """The part as one contender, or one for each budget. Raises `UserError` where the model cannot take it."""
        if way == "plugged":
            return self._plugged(part, budgets)
        if way == "around":
            return self._around(part)
        if way == "trained":
            return self._trained(part, steps)
        raise UserError(f"{part.name} answers no questions.")

    def _plugged(self, part: registry.Part, budgets: Sequence[float]) -> Iterator[Entrant]:
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
            yield self._entrant(part.name, "plugged", options, budget, result, host.model, counts)

    def _around(self, part: registry.Part) -> Iterator[Entrant]:
        from tessera.config import build
        from tessera.generation.host_generate import HostGenerator
        from tessera.hosts.pixels import Pixels
        from tessera.lab.around import ByAgent, ThroughViews

        side = int(getattr(self.model, "image_size", 0)) or 336
        options = part.target.example(side) if issubclass(part.target, Pixels) else {}
        made = part.target(build(part.target.Config, options, part.name))
        if isinstance(made, Pixels):
            answers: Any = ThroughViews(HostGenerator(self.model, self.processor), made)
        else:
            from tessera.generation.agent import SessionModel
            from tessera.generation.session import session_with

            ours = getattr(self.model.config, "model_type", "") == "tessera_vlm"
            session = session_with(self.model, self.processor, self.on)
            answers = ByAgent(SessionModel(session, ("yes", "no") if ours else ("Yes", "No"), side, 16), made)
        result = self.ask(self.model, (part,), answers=answers, options={part.name: options})
        picture = self.picture()
        yield Entrant(
            name=part.name,
            how="around",
            options=options,
            budget=None,
            result=result,
            work=lambda: answers.answer_batch([([picture], [QUESTION])], ANSWER),
            tokens=lambda: None,
            parameters=provenance.parameter_count(self.model),
        )

    def _trained(self, part: registry.Part, steps: int) -> Iterator[Entrant]:
        if self.on != "nano":
            raise UserError(f"{part.name} is built into a model and trained with it: compare it on nano.")
        model, _ = self.runs.train(swapped(part, steps), (part,))
        model.eval()
        result = self.ask(model, (part,))
        yield self._entrant(part.name, "trained", {}, float(steps), result, model, lambda: self.placeholders(model))

    def _entrant(
        self,
        name: str,
        how: str,
        options: dict[str, Any],
        budget: float | None,
        result: Result,
        model: Any,
        tokens: Callable[[], float | None],
    ) -> Entrant:
        return Entrant(
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
        from tessera.generation.asking import Asking

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
