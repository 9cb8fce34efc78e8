"""Everything in a picture as a list, in four forms: from them a model learns to find things by name and by place.

One list says as much about a picture as a dozen questions: every thing by name, with its place, or with its box.
"""

from __future__ import annotations

from tessera.world.dataset import Sample
from tessera.world.questions.boxes import box_text
from tessera.world.questions.phrasing import place

LIST_PROMPTS = {
    "names": "List everything from left to right.",
    "places": "List everything with its place.",
    "boxes": "List everything with its box.",
    "finds": "List every box with what it shows.",
}


def lists(sample: Sample, frame: int = 0) -> dict[str, str]:
    """The lists of one frame; a sign is listed by its text.

    "names" goes from left to right by the boxes' centres. The others are in an order that cannot be guessed, drawn from the
    sample: in a known order the next place could be told from the last one, and nobody would learn to find things by name.
    "names": "dog, cup, TEA"; "places": "dog left, cup top right"; "boxes": "dog 12 20 45 60, cup ...", whole hundredths;
    "finds": "12 20 45 60 dog, ...". All are "nothing" for a frame without things and signs.
    """
    found = [(t.name, t.box) for t in sample.truth(frame)] + [(s.text, s.box) for s in sample.frames[frame].signs]
    ordered = sorted(found, key=lambda item: ((item[1][0] + item[1][2]) / 2, item[1]))
    found = sample.rng(f"list {frame}").shuffled(ordered)
    parts = {
        "names": [name for name, _ in ordered],
        "places": [f"{name} {place((b[0] + b[2]) / 2, (b[1] + b[3]) / 2)}" for name, b in found],
        "boxes": [f"{name} {box_text(b)}" for name, b in found],
        "finds": [f"{box_text(b)} {name}" for name, b in found],
    }
    return {kind: ", ".join(said) or "nothing" for kind, said in parts.items()}
