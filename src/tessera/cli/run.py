"""`tessera run`: says how long it takes, trains, evaluates against blind and chance, writes a report, shows two answers."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessera.cli.train import FreshOption, OutOption, SetOption, prepare
from tessera.console import JsonOption, emit, note, progress
from tessera.errors import UserError

if TYPE_CHECKING:
    from rich.console import Group

    from tessera.evaluation.result import Result
    from tessera.recipes.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweredQuestion:
    """A question about a scene of the world, what the model said, and what is true."""

    scene: str
    type: str
    question: str
    said: str
    answer: str
    right: bool


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
    expected: float | None
    """Seconds that were announced at the start; None where a finished or interrupted run was taken up again."""
    peak_memory: int | None
    asked: list[AnsweredQuestion]
    """One right and one wrong answer, by the rule of `tessera.evaluation.shown`."""


def run(
    recipe: Annotated[str, typer.Argument(help="A built-in recipe, or FILE.py:FUNCTION.")] = "quickstart",
    set_: SetOption = None,
    out: OutOption = None,
    fresh: FreshOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a recipe, evaluate it against blind and chance, write report.html, and show one right and one wrong answer.

    Says at the start how long it will take on this machine. Without a recipe: the quickstart, minutes on two cores. A finished
    run is not trained again, only evaluated.
    """
    chosen = prepare(recipe, set_ or [])
    if chosen.task != "questions":
        raise UserError(f"tessera run asks questions, and recipe {recipe!r} trains none; use tessera train {recipe}.")
    folder = out or Path("runs") / chosen.name
    from tessera.training.run import run as train

    note(f"{chosen.name}: {chosen.about}")
    begin = time.perf_counter()
    announced = None if (folder / "checkpoint").exists() and not fresh else _announce(chosen)
    trained, model, processor = train(chosen, folder, resume=not fresh)
    if trained.interrupted:
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
        expected=announced,
        peak_memory=memory,
        asked=_asked(result),
    )
    emit(outcome, as_json, lambda o: _render(o, result))


def _announce(recipe: Recipe) -> float:
    """Says how long the run will take on this machine, and returns the seconds."""
    from tessera.bench.expected import expected

    found = expected(recipe)
    parts = {"reading scenes": found.reading, "training": found.training, "evaluation": found.evaluation}
    told = ", ".join(f"{name} {_minutes(seconds)}" for name, seconds in parts.items() if seconds)
    note(f"This will take about {_minutes(found.all)} on this machine: {told} (measured in {found.measuring:.0f} s).")
    return round(found.all, 1)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds >= 90 else f"{seconds:.0f} s"


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


def _asked(result: Result) -> list[AnsweredQuestion]:
    from tessera.evaluation.shown import shown

    split = result.config.get("world", {}).get("split", "test")
    return [
        AnsweredQuestion(
            scene=f"{split}:{e.index}:{e.kind}", type=e.type, question=e.question, said=e.said, answer=e.answer, right=e.right
        )
        for e in shown(result)
    ]


def _render(outcome: Outcome, result: Result) -> Group:
    from rich.console import Group
    from rich.text import Text

    from tessera.cli.eval import result_table

    taken = _minutes(outcome.seconds["all"])
    announced = "" if outcome.expected is None else f", {_minutes(outcome.expected)} were expected"
    lines: list[Any] = [
        result_table(result),
        Text(
            f"\n{outcome.accuracy:.0%} of {outcome.questions:,} questions right, {outcome.blind:.0%} without the images "
            f"({taken} in all{announced})."
        ),
        Text(f"\nReport: {outcome.report}\n"),
    ]
    for asked in outcome.asked:
        lines += [
            Text(f"  {asked.question}"),
            Text(f"  {asked.said or 'nothing'}" + _verdict(asked), style="bold"),
            Text(f"  tessera ask --world {asked.scene} --model {outcome.model}\n", style="dim"),
        ]
    return Group(*lines)


def _verdict(asked: AnsweredQuestion) -> str:
    return "  (right)" if asked.right else f"  (wrong: it is {asked.answer})"
