"""Draws docs/images/answers.png: the first scene, signs and chart of the test split, and what nano answers about them.

python scripts/draw_answers.py
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from tessera import load
from tessera.evaluation.scoring import score
from tessera.generation.generate import Generator
from tessera.io import atomic_write
from tessera.world import World
from tessera.world.look import enlarged
from tessera.world.questions import Question
from tessera.world.text import load_font

OUT = Path(__file__).resolve().parent.parent / "docs/images/answers.png"
KINDS, QUESTIONS = ("scene", "text", "chart"), 5
SIDE, GAP, LINE = 448, 24, 21
PAPER, FAINT, GOOD, BAD = (250, 250, 248), (110, 110, 116), (20, 120, 50), (190, 40, 30)


def main() -> None:
    model, processor = load("nano")
    size = model.image_size
    world = World(split="test", width=size, height=size)
    generator = Generator(model, processor)
    font = load_font(14)
    sheet = Image.new("RGB", (len(KINDS) * (SIDE + GAP) + GAP, SIDE + 3 * GAP + 2 * QUESTIONS * LINE), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, kind in enumerate(KINDS):
        sample = world.sample(0, kind)
        asked = _of_different_types(sample.questions())
        images = sample.images()
        answers = generator.answer(generator.prefix(images), [question.text for question in asked])
        x = GAP + column * (SIDE + GAP)
        sheet.paste(enlarged(images[0], SIDE).resize((SIDE, SIDE), Image.Resampling.NEAREST), (x, GAP))
        y = SIDE + 2 * GAP
        for question, answer in zip(asked, answers, strict=True):
            right = score(question, answer.text).right
            draw.text((x, y), question.text, fill=FAINT, font=font)
            said = answer.text if right else f"{answer.text}  (it is {question.answer})"
            draw.text((x + 12, y + LINE), said, fill=GOOD if right else BAD, font=font)
            y += 2 * LINE
    with atomic_write(OUT) as path:
        sheet.save(path, "PNG", optimize=True)


def _of_different_types(questions: Sequence[Question]) -> list[Question]:
    """The first open question of each of the first few types."""
    first: dict[str, Question] = {}
    for question in questions:
        if question.form == "choice":
            continue
        first.setdefault(question.type, question)
    return list(first.values())[:QUESTIONS]


if __name__ == "__main__":
    main()
