"""Model cards: what a model is, what was measured of it, how it was trained, how it is used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tessera.config import to_dict
from tessera.evaluation.experts import ExpertResult
from tessera.evaluation.result import Result
from tessera.io import write_text

_FRONT = """---
library_name: transformers
license: apache-2.0
pipeline_tag: {tag}
tags: [tessera]
---
"""
_USE_VLM = """```python
import tessera

model, processor = tessera.load("{name}")
inputs = processor(images=image, text=processor.prompt("How many objects are there?"), return_tensors="pt")
print(processor.batch_decode(model.generate(**inputs, max_new_tokens=16), skip_special_tokens=True)[0])
```

In the terminal: `tessera ask picture.png "How many objects are there?" --model {name}`
"""
_USE_EXPERT = """```python
import tessera

model, processor = tessera.load("{name}")
```
"""
_LIMITS = (
    "It knows the drawn scenes of Tessera's built-in world only: emoji artwork, signs, simple charts. On photographs, other "
    "drawings and other kinds of questions its answers mean nothing. It is meant for experiments with methods, not for use."
)
_TAGS = {"questions": "image-text-to-text", "captions": "zero-shot-image-classification"}


def model_card(
    result: Result | ExpertResult,
    blind: Result | None = None,
    recipe: Any = None,
    *,
    about: str = "",
    name: str = "",
    preconditions: Mapping[str, Any] | None = None,
    trained: str = "",
) -> str:
    """The card as Markdown with a YAML head.

    result: of an evaluation; blind: of the same one without the images; recipe: the experiment (plain data or a config) in full;
    about: a sentence on what the model is; name: what `tessera.load` takes, the result's own name if empty; preconditions: what
    `tessera.lab.preconditions.measure` gives; trained: how it was trained, in words, where the recipe alone does not tell.
    Raises `UserError` when `blind` answers other questions than `result`.
    """
    plain = to_dict(recipe) or {}
    name = name or result.model
    tag = _TAGS.get(plain.get("task", "questions"), "image-feature-extraction")
    about = about or plain.get("about", "")
    world = result.config.get("world", {})
    parts = [
        _FRONT.format(tag=tag),
        f"# {name}",
        about,
        "## What it can do",
        _measured(result, world),
        _table(result, blind) if isinstance(result, Result) else _expert_table(result),
        *(["## What methods find in it", _preconditions(preconditions)] if preconditions else []),
        "## How it is used",
        (_USE_VLM if isinstance(result, Result) else _USE_EXPERT).format(name=name).rstrip(),
        "## Limits",
        _LIMITS,
    ]
    if plain or trained:
        parts += ["## How it was trained", trained or _trained(plain)]
    parts += ["## Where the numbers come from", _provenance(result)]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_card(folder: str | Path, *args: Any, **options: Any) -> Path:
    """Writes `model_card(...)` as README.md of a model's folder."""
    path = Path(folder) / "README.md"
    write_text(path, model_card(*args, **options))
    return path


def _measured(result: Result | ExpertResult, world: dict[str, Any]) -> str:
    where = (
        f"the {world.get('split', '?')} split (concepts: {world.get('pool', '?')}; styles: {', '.join(world.get('styles', ()))}; "
        f"{world.get('width', '?')} x {world.get('height', '?')} pixels)"
    )
    if isinstance(result, ExpertResult):
        return f"Measured on {where}. {result.parameters / 1e6:.2f} million parameters."
    return (
        f"{result.parameters / 1e6:.2f} million parameters. Measured on {result.n:,} questions about {result.samples:,} "
        f"scenes of {where}, every question type equally often: **{_share(result.accuracy)}** right as a mean over the types "
        f"({_share(result.low)} to {_share(result.high)}). Intervals are 95 %."
    )


def _table(result: Result, blind: Result | None) -> str:
    if blind is not None:
        result = result.with_blind(blind)
    seen = any(t.blind is not None for t in result.types.values())
    head = [
        "question type",
        "n",
        "accuracy",
        "interval",
        *(["without images", "seeing adds"] if seen else []),
        "chance",
        "majority",
    ]
    rows = []
    for name, t in result.types.items():
        gain = [] if not seen else [_share(t.blind), "" if t.gain is None else f"{100 * t.gain.value:+.1f}"]
        label = f"{name} (IoU at least 0.5; mean IoU {t.iou:.2f})" if t.iou is not None else name
        rows.append(
            [
                label,
                f"{t.n:,}",
                _share(t.accuracy),
                f"{_share(t.low)} – {_share(t.high)}",
                *gain,
                _share(t.chance),
                _share(t.majority),
            ]
        )
    means = [_share(result.blind), f"{100 * (result.accuracy - (result.blind or 0)):+.1f}"] if seen else []
    rows.append(
        [
            "**mean**",
            f"{result.n:,}",
            f"**{_share(result.accuracy)}**",
            f"{_share(result.low)} – {_share(result.high)}",
            *means,
            _share(result.chance),
            _share(result.majority),
        ]
    )
    note = (
        "*chance*: a guess among the answers that the question names. *majority*: always the answer that is most frequent for "
        "the same kind of question."
    )
    return f"{_markdown(head, rows)}\n\n{note}"


def _preconditions(found: Mapping[str, Any]) -> str:
    """Tables of redundancy and of the encoders, sentences on prior and calibration."""
    chosen = found["redundancy"]
    shares = list(chosen["random"])
    kept = [[f"{how} choice", *(_share(chosen[how][share]) for share in shares)] for how in chosen]
    head = ["visual tokens kept", *(f"{100 * float(share):g} %" for share in shares)]
    prior, sure, towers = found["prior"], found["calibration"], found["encoders"]
    rows = [[kind, *(_share(towers[how][kind]) for how in towers)] for kind in towers["all"]]
    return "\n\n".join(
        [
            f"Accuracy on {found['questions']:,} questions about single scenes of the test split. Oracle choice: tokens that "
            "drawn things cover, of every thing equally many.",
            _markdown(head, kept),
            f"Without the image {_share(prior['accuracy, without the image'])} of its answers are right. It says yes to "
            f"{_share(prior['yes rate, without the image'])} of the yes-or-no questions then, to "
            f"{_share(prior['yes rate, seeing'])} with the image; yes is right for {_share(prior['yes is right'])}. Its answers "
            f"have a mean probability of {_share(sure['probability'])}; {_share(sure['accuracy'])} are right. The expected "
            f"calibration error is "
            f"{_share(sure['expected calibration error'])}.",
            "What each encoder alone knows: accuracy when an encoder says the same of every place.",
            _markdown(["question type", *towers], rows),
        ]
    )


def _expert_table(result: ExpertResult) -> str:
    rows = [
        [m.about, f"{m.n:,}", _share(m.accuracy), f"{_share(m.low)} – {_share(m.high)}", _share(m.chance)]
        for m in result.measures.values()
    ]
    return _markdown(["what is sought", "n", "accuracy", "interval", "chance"], rows)


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (head, rule, *rows))


def _trained(recipe: dict[str, Any]) -> str:
    stages = recipe.get("training", {}).get("stages", [])
    text = ", then ".join(f"{s['steps']:,} steps of stage *{s['name']}*" for s in stages)
    batch = recipe.get("training", {}).get("batch_size")
    opening = f"By the recipe `{recipe.get('name', '?')}`: {text}, {batch} samples a step." if text else ""
    settings = json.dumps(recipe, indent=2, ensure_ascii=False, default=str)
    return f"{opening}\n\n<details><summary>All settings</summary>\n\n```json\n{settings}\n```\n\n</details>".strip()


def _provenance(result: Result | ExpertResult) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in result.versions.items())
    rows = [f"- weights: `{result.weights}`", f"- world: version {result.world_version}, seed {result.config.get('seed', 0)}"]
    if isinstance(result, Result):
        rows.append(f"- questions: `{result.items}`")
    return "\n".join([*rows, f"- versions: {versions}", f"- machine: {result.machine}, {result.seconds:.0f} s"])


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"
