"""`tessera train`: trains a recipe, or goes on with a run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessera.console import JsonOption, emit, note

if TYPE_CHECKING:
    from tessera.recipes.recipe import Recipe

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="path=value: sets an existing field of the recipe, e.g. training.batch_size=16."),
]
OutOption = Annotated[Path | None, typer.Option(help="Folder of the run; runs/NAME by default.")]
FreshOption = Annotated[bool, typer.Option("--fresh", help="Begin anew, even if the folder holds a checkpoint.")]


def train(
    recipe: Annotated[str, typer.Argument(help="A built-in recipe, or FILE.py:FUNCTION.")],
    set_: SetOption = None,
    out: OutOption = None,
    fresh: FreshOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a recipe. A run that was stopped goes on where it stopped, to the bit.

    The folder holds log.jsonl, recipe.json, checkpoint and, at the end, the model.
    """
    chosen = prepare(recipe, set_ or [])
    folder = out or Path("runs") / chosen.name
    from tessera.training.run import run

    result, _, _ = run(chosen, folder, resume=not fresh)
    found: dict[str, Any] = {**asdict(result), "folder": str(folder)}
    if not result.stopped:
        found["model"] = str(folder / "model")
    emit(found, as_json, lambda f: f"{f['text']}. {f.get('model', f['folder'])}")
    if result.stopped:
        raise typer.Exit(130)


def prepare(name: str, assignments: list[str]) -> Recipe:
    """The recipe with its fields set. Raises `UserError` for an unknown recipe or field, or a value of a wrong type."""
    from tessera.config import set_path
    from tessera.recipes.recipe import recipe

    chosen = recipe(name)
    for assignment in assignments:
        set_path(chosen, assignment)
    chosen.training.check()
    for world in chosen.worlds:
        world.check()
    chosen.evaluation.check()
    if assignments:
        note(f"{name} with {', '.join(assignments)}")
    return chosen
