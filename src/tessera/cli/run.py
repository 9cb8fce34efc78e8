"""`tessera run`, the main job: train, evaluate against blind and chance, report, ask."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessera.cli.common import JsonOption, emit, note, progress
from tessera.cli.train import FreshOption, OutOption, SetOption, prepare
from tessera.errors import UserError

if TYPE_CHECKING:
    from rich.console import Group

    from tessera.evaluation.result import Result
    from tessera.recipes.recipe import Recipe

SCENE = 17
"""The test scene that is asked about at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question about a scene of the world, what the model said, and what is true."""

    scene: str
    question: str
    said: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the main job leaves behind."""

    recipe: str
    report: str
    model: str
    accuracy: float
    blind: float
    chance: float
    questions: int
    seconds: dict[str, float]
    peak_memory: int | None
    asked: list[Asked]


def run(
    recipe: Annotated[str, typer.Argument(help="A built-in recipe, or FILE.py:FUNCTION.")] = "quickstart",
    set_: SetOption = None,
    out: OutOption = None,
    fresh: FreshOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a recipe, evaluate it against blind and chance, write report.html, and ask the model two questions.

    Without a recipe: the quickstart, minutes on two cores. A finished run is not trained again, only evaluated.
    """
    chosen = prepare(recipe, set_ or [])
    if chosen.task != "questions":
        raise UserError(f"tessera run asks questions, and recipe {recipe!r} trains none; use tessera train {recipe}.")
    folder = out or Path("runs") / chosen.name
    from tessera.training.run import run as train

    note(f"{chosen.name}: {chosen.about}")
    begin = time.perf_counter()
    trained, model, processor = train(chosen, folder, resume=not fresh)
    if trained.stopped:
        note(trained.text)
        raise typer.Exit(130)
    seconds = {"training": trained.seconds}
    model.eval()
    result, blind = (_evaluate(chosen, model, processor, blind) for blind in (False, True))
    seconds |= {"evaluation": result.seconds, "blind evaluation": blind.seconds}
    seconds["all"] = time.perf_counter() - begin
    from tessera.evaluation import provenance
    from tessera.evaluation.card import write_card
    from tessera.evaluation.report import Run, write_report

    result.save(folder / "result.json")
    blind.save(folder / "blind.json")
    memory = provenance.peak_memory()
    about = Run(
        title=chosen.name,
        about=chosen.about,
        log=folder / "log.jsonl",
        recipe=chosen,
        durations=seconds,
        peak_memory=memory,
        command=" ".join(["tessera run", recipe, *(f"--set {a}" for a in set_ or [])]),
    )
    report = write_report(folder / "report.html", result, about, blind)
    write_card(folder / "model", result, blind, chosen)
    result = result.with_blind(blind)
    outcome = Outcome(
        recipe=chosen.name,
        report=str(report),
        model=str(folder / "model"),
        accuracy=result.accuracy,
        blind=blind.accuracy,
        chance=result.chance,
        questions=result.n,
        seconds={k: round(v, 1) for k, v in seconds.items()},
        peak_memory=memory,
        asked=_ask(chosen, model, processor),
    )
    emit(outcome, as_json, lambda o: _render(o, result))


def _evaluate(recipe: Recipe, model: Any, processor: Any, blind: bool) -> Result:
    from tessera.evaluation.harness import evaluate

    with progress() as bars:
        task = bars.add_task("evaluating blind" if blind else "evaluating", total=None)
        return evaluate(
            model,
            processor,
            recipe.evaluation,
            blind=blind,
            name=recipe.name,
            progress=lambda done, total: bars.update(task, completed=done, total=total),
        )


def _ask(recipe: Recipe, model: Any, processor: Any) -> list[Asked]:
    """Two questions of different types about one test scene."""
    from tessera.hosts.generate import Generator
    from tessera.world import World

    sample = World(recipe.evaluation.world).sample(SCENE, "scene")
    wanted = recipe.evaluation.types or None
    by_type = {q.type: q for q in sample.questions(wanted) if q.form == "open"}
    chosen = [by_type[t] for t in ("attribute", "relation", "count", *by_type) if t in by_type][:2]
    generator = Generator(model, processor)
    prefix = generator.prefix(sample.images())
    answers = generator.answer(prefix, [q.text for q in chosen])
    return [
        Asked(scene=f"test:{SCENE}:scene", question=q.text, said=a.text, answer=q.answer)
        for q, a in zip(chosen, answers, strict=True)
    ]


def _render(outcome: Outcome, result: Result) -> Group:
    from rich.console import Group
    from rich.text import Text

    from tessera.cli.eval import result_table

    minutes = outcome.seconds["all"] / 60
    lines: list[Any] = [
        result_table(result),
        Text(
            f"\n{outcome.accuracy:.0%} of {outcome.questions:,} questions right, {outcome.blind:.0%} without the images "
            f"({minutes:.1f} minutes in all)."
        ),
        Text(f"\nReport: {outcome.report}"),
        Text(f"Ask it:  tessera ask --world {outcome.asked[0].scene} --model {outcome.model}\n"),
    ]
    for asked in outcome.asked:
        lines += [Text(f"  {asked.question}"), Text(f"  {asked.said}" + _verdict(asked), style="bold"), Text("")]
    return Group(*lines)


def _verdict(asked: Asked) -> str:
    return "  (right)" if asked.said == asked.answer else f"  (wrong: it is {asked.answer})"
