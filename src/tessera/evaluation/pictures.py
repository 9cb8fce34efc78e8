"""Questions with their pictures and the model's answers, as HTML."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence

from markupsafe import Markup
from PIL import Image

from tessera.config import build
from tessera.evaluation.pages import piece
from tessera.evaluation.result import Example, Result
from tessera.world import World, WorldConfig
from tessera.world.questions import cell_box, parse_box
from tessera.world.scene import Box

_SIDE = 224
"""Pixels of a picture: enough for a card on a phone with a dense screen."""


def cards(result: Result, right: bool, limit: int = 18) -> Markup:
    """At most `limit` right (wrong) answers as cards, first one of every type."""
    return draw(result, spread([e for e in result.examples if e.right == right], limit))


def draw(result: Result, examples: Iterable[Example]) -> Markup:
    """These examples of `result` as cards, in order."""
    world = World(build(WorldConfig, result.config.get("world", {}), "world"))
    return Markup().join(_card(example, world) for example in examples)


def spread(examples: Sequence[Example], limit: int) -> list[Example]:
    """At most `limit` examples: the first of every type, then the second of every type, and so on."""
    seen: dict[str, int] = {}
    ranked = []
    for place, example in enumerate(examples):
        seen[example.type] = seen.get(example.type, 0) + 1
        ranked.append((seen[example.type], place, example))
    return [example for *_, example in sorted(ranked, key=lambda entry: entry[:2])[:limit]]


def data_uri(image: Image.Image) -> str:
    """The image as a data URI (WebP, good quality)."""
    file = io.BytesIO()
    image.save(file, "WEBP", quality=88, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _card(example: Example, world: World) -> Markup:
    sample = world.sample(example.index, example.kind)
    shorter = min(world.config.width, world.config.height)
    scale = max(1, round(_SIDE / shorter))
    size = (world.config.width * scale, world.config.height * scale)
    images = [
        {"uri": data_uri(image), "alternative": _alternative(example, number), "boxes": _boxes(example) if number == 0 else []}
        for number, image in enumerate(sample.images(size))
    ]
    return piece("card.html", example=example, images=images, size=size, several=len(sample.frames) > 1, split=world.config.split)


def _alternative(example: Example, number: int) -> str:
    return f"{example.kind} {example.index}" + (f", frame {number + 1}" if number or example.kind in ("pair", "clip") else "")


def _boxes(example: Example) -> list[tuple[str, Box]]:
    """(css class, box) of the truth and of the answer, for questions about boxes, which are asked of single pictures."""
    truth, said = parse_box(example.answer), parse_box(example.said)
    found = [("truth", truth), ("said", said)] if truth is not None else []
    return [(css, cell_box(cells)) for css, cells in found if cells is not None]
