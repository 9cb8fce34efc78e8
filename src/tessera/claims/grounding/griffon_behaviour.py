"""Notation, scores, suppression, examples."""

from __future__ import annotations

from tessera.lab.behaviour import Numbers


def behaviour() -> Numbers:
    """Fixed things written and read in both notations, with scores; examples of four scenarios."""
    from tessera.evaluation.grounding import Located
    from tessera.parts.grounding.griffon import Griffon, read, score, spell, suppress
    from tessera.world import World

    things = [("dog", (0.1, 0.2, 0.4, 0.55)), ("T-shirt", (0.0, 0.31, 0.999, 1.0)), ("fire engine", (0.25, 0.25, 0.5, 0.5))]
    found: dict[str, list[float] | str] = {}
    for codec in ("decimal", "hundredths"):
        text = spell(things, codec)
        spelled = read(f"{text} and [0.9,0.1,0.2,0.3] 90 10 20 30", codec)
        found[f"written, {codec}"] = text + spell([], codec)
        found[f"read, {codec}"] = str([(s.label, s.label_span, s.box_span) for s in spelled])
        found[f"boxes, {codec}"] = [x for s in spelled for x in s.box]
        spans = [(i, i + 2) for i in range(0, len(text), 2)]
        sure = [0.5 + 0.5 / (1 + i) for i in range(len(spans))]
        found[f"scores, {codec}"] = [score(s, spans, sure) for s in spelled]
        part = Griffon(Griffon.Config(codec=codec))
        examples = []
        for index in (1, 2, 3):
            sample = World(split="train").sample(index, "scene")
            examples += part.examples(sample, sample.rng("examples"))
        found[f"examples, {codec}"] = str(examples)
    finds = [Located("dog", (0, 0, 0.4, 0.4), 0.3), Located("dog", (0, 0, 0.4, 0.44), 0.9), Located("cat", (0, 0, 0.4, 0.4), 0.2)]
    found["suppressed"] = str([[(f.label, f.score) for f in suppress(finds, iou)] for iou in (0.5, 0.95)])
    return found
