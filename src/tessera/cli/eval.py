"""`tessera eval`: measures a model on the world, per question type."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessera.console import JsonOption, emit, note, progress
from tessera.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from tessera.evaluation.experts import ExpertResult
    from tessera.evaluation.items import EvaluationConfig
    from tessera.evaluation.result import Result

_DEFAULT_SIZE = 336
"""Pixels of the images for a model that does not say which size it wants."""


def eval_(
    model: Annotated[str, typer.Argument(help="nano, nano-clip, object-expert, reading-expert, or a folder.")],
    tasks: Annotated[str, typer.Option(help="Question types, separated by commas; all by default.")] = "",
    blind: Annotated[bool, typer.Option("--blind", help="Ask the same questions without the images.")] = False,
    n: Annotated[int, typer.Option("--n", help="Questions in all, shared equally among the types.")] = 5000,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    pool: Annotated[str, typer.Option(help="Concepts: base, novel, everyday or all.")] = "base",
    style: Annotated[str, typer.Option(help="Artwork: noto or twemoji; both by default.")] = "",
    combinations: Annotated[str, typer.Option(help="Colour and concept pairs: seen, held-out or all.")] = "seen",
    corruption: Annotated[str, typer.Option(help="Damage every image: name or name:strength (1 to 5).")] = "",
    size: Annotated[int, typer.Option(help="Side of the images in pixels; the model's own by default.")] = 0,
    seed: Annotated[int, typer.Option(help="Which scenes of the split; 0 the first ones.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Samples answered together.")] = 16,
    out: Annotated[Path | None, typer.Option(help="Also write the result to this JSON file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a model on the world: accuracy per question type with 95 % intervals, chance and majority beside it.

    Dual encoders are measured by naming single things and by caption retrieval, experts by their patches.
    """
    from tessera.evaluation.items import EvaluationConfig
    from tessera.world import WorldConfig

    world = WorldConfig(split=split, pool=pool, combinations=combinations)
    if style:
        world.styles = (style,)
    if corruption:
        world.corruption, world.strength = parse_corruption(corruption)
    types = tuple(t.strip() for t in tasks.split(",") if t.strip())
    config = EvaluationConfig(world=world, n=n, types=types, seed=seed, batch_size=batch_size)
    config.check()  # before a model is loaded for nothing

    from tessera.models import reference

    loaded, processor = reference.load(model)
    world.width = world.height = size or image_size(loaded, processor)
    config.check()
    if loaded.config.model_type in ("tessera_dual_encoder", "tessera_vision"):
        _refuse(model, blind, types)
        emit(_expert(loaded, processor, config, model), as_json, expert_table)
        return
    result = _questions(loaded, processor, config, model, blind)
    if out is not None:
        result.save(out)
        note(f"written: {out}")
    emit(result, as_json, result_table)


eval = eval_  # the attribute that the table of commands names


def _questions(model: Any, processor: Any, config: EvaluationConfig, name: str, blind: bool) -> Result:
    from tessera.evaluation.harness import evaluate

    with progress() as bars:
        task = bars.add_task("evaluating blind" if blind else "evaluating", total=None)
        return evaluate(
            model,
            processor,
            config,
            blind=blind,
            name=name,
            progress=lambda done, total: bars.update(task, completed=done, total=total),
        )


def _expert(model: Any, processor: Any, config: EvaluationConfig, name: str) -> ExpertResult:
    from tessera.evaluation.experts import evaluate_expert

    with progress() as bars:
        task = bars.add_task("evaluating", total=None)
        return evaluate_expert(
            model,
            processor,
            config,
            name=name,
            progress=lambda done, total: bars.update(task, completed=done, total=total),
        )


def _refuse(model: str, blind: bool, types: tuple[str, ...]) -> None:
    """Options that say nothing to a model that answers no questions."""
    for given, option in ((blind, "--blind"), (bool(types), "--tasks")):
        if given:
            raise UserError(f"{model} answers no questions, so {option} does not apply to it.")


def parse_corruption(text: str) -> tuple[str, int]:
    """("fog", 3) of "fog:3"; without a strength 3. Raises `UserError` for what is neither."""
    name, colon, strength = text.partition(":")
    if not name or (colon and strength not in ("1", "2", "3", "4", "5")):
        raise UserError(f"--corruption wants name:strength with strength 1 to 5, for example fog:3; got {text!r}.")
    return name, int(strength or 3)


def image_size(model: Any, processor: Any) -> int:
    """The side in pixels that a model's images have, as far as its configuration or processor says it."""
    found = getattr(model, "image_size", None) or getattr(model.config, "image_size", None)
    vision = getattr(model.config, "vision_config", None)
    if not isinstance(found, int):
        found = getattr(vision, "image_size", None)
    if not isinstance(found, int):
        sizes = getattr(getattr(processor, "image_processor", processor), "size", None)
        found = sizes.get("height") if isinstance(sizes, Mapping) else getattr(sizes, "height", None)
    return min(2048, max(64, found)) if isinstance(found, int) else _DEFAULT_SIZE


def result_table(result: Result) -> Table:
    """The result as a table: a row per question type, the means below."""
    from rich.table import Table

    blind = any(t.blind is not None for t in result.types.values())
    how = "without the images" if result.without_images else f"{result.samples:,} samples"
    table = Table(
        title=f"{result.model}: {result.n:,} questions, {how}, {result.seconds:.0f} s",
        caption="95 % intervals. chance: a guess among the answers named; majority: the most frequent answer.",
        title_justify="left",
        caption_justify="left",
        show_footer=True,
        box=None,
    )
    table.add_column("type", footer="mean")
    for name, footer in (
        ("n", f"{result.n:,}"),
        ("accuracy", _percent(result.accuracy)),
        ("interval", f"{_percent(result.low)} – {_percent(result.high)}"),
        *([("blind", _percent(result.blind))] if blind else []),
        ("chance", _percent(result.chance)),
        ("majority", _percent(result.majority)),
        ("mean IoU", ""),
    ):
        table.add_column(name, footer=footer, justify="right")
    for name, found in result.types.items():
        table.add_row(
            name,
            str(found.n),
            _percent(found.accuracy),
            f"{_percent(found.low)} – {_percent(found.high)}",
            *([_percent(found.blind)] if blind else []),
            _percent(found.chance),
            _percent(found.majority),
            "" if found.iou is None else f"{found.iou:.2f}",
        )
    return table


def expert_table(result: ExpertResult) -> Table:
    """The measures of a dual encoder or a vision expert as a table."""
    from rich.table import Table

    table = Table(title=f"{result.model}: {result.seconds:.0f} s", title_justify="left", box=None)
    table.add_column("measure")
    for name in ("n", "accuracy", "interval", "chance"):
        table.add_column(name, justify="right")
    table.add_column("what is sought")
    for name, found in result.measures.items():
        table.add_row(
            name,
            f"{found.n:,}",
            _percent(found.accuracy),
            f"{_percent(found.low)} – {_percent(found.high)}",
            _percent(found.chance),
            found.about,
        )
    return table


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"
