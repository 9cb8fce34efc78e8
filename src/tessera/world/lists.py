"""Everything in a picture as a list, in several forms: a model learns from them to find things by name, place and attributes.

One list says as much about a picture as a dozen questions: every thing by name, with its place, box, kind or attributes;
every label of a chart with its value.
"""

from __future__ import annotations

from tessera.world.dataset import Sample
from tessera.world.questions.boxes import box_text
from tessera.world.questions.phrasing import place
from tessera.world.scene import Panel
from tessera.world.text import SIGN_COLOURS

LIST_PROMPTS = {
    "names": "List everything from left to right.",
    "places": "List everything with its place.",
    "boxes": "List everything with its box.",
    "finds": "List every box with what it shows.",
    "kinds": "List everything with its kind.",
    "looks": "List everything with its colour and style.",
    "values": "List everything with its value.",
}


def lists(sample: Sample, frame: int = 0, turn: int = 0) -> dict[str, str]:
    """The lists of one frame, by form; a sign is listed by its text. Every `turn` draws another order.

    "names" goes from left to right by the boxes' centres. The others are in an order that cannot be guessed, drawn from the
    sample: in a known order the next place could be told from the last one, and nobody would learn to find things by name.
    "names": "dog, cup, TEA"; "places": "dog left, cup top right"; "boxes": "dog 12 20 45 60, cup ...", whole hundredths;
    "finds": "12 20 45 60 dog, ..."; "kinds": "dog animal, TEA sign"; "looks": "dog red noto, cup twemoji, TEA blue" (a colour
    where a thing is tinted). All are "nothing" for a frame without things and signs. A frame with a chart or a document has the
    one form "values": "JAM 12 red, TEA 30 blue", the colours where bars or slices have them.
    """
    scene = sample.frames[frame]
    rng = sample.rng(f"list {frame} {turn}" if turn else f"list {frame}")
    if scene.panel is not None:
        return {"values": ", ".join(rng.shuffled(_values(scene.panel))) or "nothing"}
    found = [(t.name, t.box, t.category, " ".join([*([t.tint] if t.tint else []), t.style])) for t in sample.truth(frame)]
    found += [(s.text, s.box, "sign", SIGN_COLOURS[s.palette][0]) for s in scene.signs]
    ordered = sorted(found, key=lambda item: ((item[1][0] + item[1][2]) / 2, item[1]))
    found = rng.shuffled(ordered)
    parts = {
        "names": [name for name, *_ in ordered],
        "places": [f"{name} {place((b[0] + b[2]) / 2, (b[1] + b[3]) / 2)}" for name, b, *_ in found],
        "boxes": [f"{name} {box_text(b)}" for name, b, *_ in found],
        "finds": [f"{box_text(b)} {name}" for name, b, *_ in found],
        "kinds": [f"{name} {kind}" for name, _, kind, _ in found],
        "looks": [f"{name} {look}" for name, _, _, look in found],
    }
    return {form: ", ".join(said) or "nothing" for form, said in parts.items()}


def _values(panel: Panel) -> list[str]:
    coloured = panel.kind in ("bar", "pie")
    rows = zip(panel.labels, panel.values, panel.colours, strict=True)
    return [f"{label} {value} {colour}" if coloured else f"{label} {value}" for label, value, colour in rows]
