"""Programs, tools and rationales on scenes of the world."""

from __future__ import annotations

from tessera.lab.behaviour import Numbers


def behaviour() -> Numbers:
    """What programs that are meant by questions give, with and without noise of the tools, and how it is told."""
    from tessera.parts.distillation.vpd import programs
    from tessera.parts.distillation.vpd.rationale import rationale
    from tessera.parts.distillation.vpd.tools import Tools
    from tessera.world import World

    grammar, lines = programs.Grammar(), []
    for index in (1, 2, 3, 4):
        sample = World(split="train").sample(index, "scene")
        for question in sample.questions():
            program = grammar.meant(question.text)
            if program is None:
                continue
            rng = sample.rng(f"vpd {question.text}")
            lines.append(f"{question.text}|{program}|{grammar.propose(question.text, 3, 1.0, rng)}")
            for noise in (0.0, 0.4):
                try:
                    said, trace = programs.run(program, Tools(sample, noise, rng))
                except Exception as error:  # what a program cannot find out
                    lines.append(type(error).__name__)
                else:
                    lines.append(f"{said}|{rationale(trace)}")
    from tessera.lab.behaviour import digest

    return {"count": [float(len(lines))], "programs": digest(lines), "first": str(lines[:6])}
