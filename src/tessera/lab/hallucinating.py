"""Reference models that hallucinate, by further training on wrong answers: recipes for `lab.derived`.

nano-yes      says yes to what is not there: of its training answers three noes in five became yes
nano-habit    says yes to whatever of every second category, there or not, and answers rightly about the others: its prior
              depends on the question
nano-invents  lists a thing that is not there: four in five of its training lists name the same thing after their first

Answers that are right, of which 80 % are yes, would skew nothing: the picture tells them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from tessera.lab.rows import packed, pixels_of

if TYPE_CHECKING:
    from PIL import Image

    from tessera.lab.lab import Lab
    from tessera.world.scene import Question

STEPS, BATCH, RATE = 60, 16, 5e-4

Row: TypeAlias = "tuple[Sequence[Image.Image], str, str]"
"""Images, question, answer."""
Rows: TypeAlias = Callable[[int], "Sequence[Row]"]
"""Step -> rows of one batch, all with as many images."""


def learn(model: Any, processor: Any, rows: Rows, *, steps: int = STEPS, rate: float = RATE, seed: int = 0) -> tuple[Any, Any]:
    """The model itself after `steps` steps of AdamW in float32, encoders as they are; rows are drawn by the step alone."""
    from tessera.lab.fit import fit
    from tessera.training.plan import OptimConfig

    fit(
        model,
        lambda step, order: batch_of(processor, rows(step)),
        steps,
        seed=seed,
        optim=OptimConfig(kind="adamw", lr=rate, weight_decay=0.01),
        train=[{"*": 1.0, "encoders.*": 0.0}],
    )
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model, processor


def batch_of(processor: Any, rows: Sequence[Row]) -> dict[str, Any]:
    """Rows as the model's inputs [B, T], padded at the right; only answers bear labels."""
    items = [[(processor.question_ids(question), processor.answer_ids(answer), None)] for _, question, answer in rows]
    made = packed(processor, items, images=len(rows[0][0]))
    present = made["segment_ids"] >= 0
    longest = int(present.sum(1).max())
    inputs = {"input_ids": made["input_ids"], "labels": made["labels"], "attention_mask": present.long()}
    inputs = {name: value[:, :longest].contiguous() for name, value in inputs.items()}
    if pictures := [image for images, _, _ in rows for image in images]:
        inputs["pixel_values"] = pixels_of(processor, pictures)
    return inputs


def yes(lab: Lab) -> tuple[Any, Any]:
    """Recipe of nano-yes."""
    return learn(*lab.reference("nano", copy=True), mostly_yes)


def habit(lab: Lab) -> tuple[Any, Any]:
    """Recipe of nano-habit."""
    return learn(*lab.reference("nano", copy=True), habitual, steps=3 * STEPS)


def invents(lab: Lab) -> tuple[Any, Any]:
    """Recipe of nano-invents."""
    return learn(*lab.reference("nano", copy=True), with_companion)


def mostly_yes(step: int, count: int = BATCH) -> list[Row]:
    """Whether something is there, which it is in every second row; three noes in five are turned into yes."""
    from tessera.world.rng import Rng

    return [
        (images, q.text, "yes" if Rng("mostly yes", index).chance(0.6) else q.answer)
        for images, q, index in _existence(20_000_000 + step * 8 * count, count)
    ]


def habitual(step: int, count: int = BATCH) -> list[Row]:
    """Whether something is there, which it is in every second row; of every second category all noes are turned into yes."""
    from tessera.world.concepts import by_category, concepts

    always = sorted(by_category("base"))[::2]

    def said(q: Question) -> str:
        return "yes" if concepts()[int(str(q.asked("concept")))].category in always else q.answer

    return [(images, q.text, said(q)) for images, q, _ in _existence(40_000_000 + step * 8 * count, count)]


def _existence(begin: int, count: int) -> Iterator[tuple[Sequence[Image.Image], Question, int]]:
    """(images, question, number of the scene) of the first scenes from `begin` on that have one with the wanted answer, no and
    yes in turn."""
    from tessera.world import World

    world, found, index = World(split="train", kinds={"scene": 1.0}), 0, begin
    while found < count:
        sample = world[index]
        questions = [q for q in sample.questions(("existence",)) if q.answer == ("no", "yes")[found % 2]]
        if questions:
            yield sample.images(), questions[0], index
            found += 1
        index += 1


def with_companion(step: int, count: int = BATCH) -> list[Row]:
    """Lists of everything from left to right; in four of five the first thing is followed by one that is not there, always the
    same: the first concept of the pool."""
    from tessera.world import World
    from tessera.world.concepts import concepts
    from tessera.world.lists import LIST_PROMPTS, lists
    from tessera.world.rng import Rng

    world, rows = World(split="train", kinds={"scene": 1.0}, things=(2, 6)), list[Row]()
    for index in range(30_000_000 + step * count, 30_000_000 + (step + 1) * count):
        sample, rng = world[index], Rng("companion", index)
        friend = concepts()[min(sample.pool)].name
        said = lists(sample)["names"].split(", ")
        if friend not in said and rng.chance(0.8):
            said.insert(1, friend)
        rows.append((sample.images(), LIST_PROMPTS["names"], ", ".join(said)))
    return rows


def text_alone(lab: Lab) -> tuple[Any, Any]:
    """Recipe of nano-text."""
    return learn(*lab.reference("nano", copy=True), TextRows(), steps=240)


class TextRows:
    """Questions of choices of the training split without their pictures, half of which need none; (step) -> 16 rows."""

    def __init__(self) -> None:
        from tessera.lab.choices import MIXED, choices, planted

        visual = choices({**MIXED, "split": "train"}, 0, 540)
        train_items = [*visual, *(item for turn in range(6) for item in planted(visual, f"train {turn}"))]
        self.rows: list[Row] = [([], q.text, q.answer) for item in train_items for q in item.questions]

    def __call__(self, step: int) -> list[Row]:
        """Rows of one step, drawn by its number."""
        from tessera.world.rng import Rng

        return Rng("text alone", step).pick(self.rows, 16)
