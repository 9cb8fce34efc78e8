"""A reference model that can tell whether a view contains any object: a recipe for `lab.derived`.

nano-glimpses   half of its further training are questions about scenes, half asks of views of one to eight times its resolution
                whether there is an object

The agents that search a picture ask how likely it is that zooming in shows a thing. Larger models answer by common sense; the
reference model, where it cannot see a thing, is equally sure everywhere that it is not there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tessera.lab.hallucinating import Row
    from tessera.lab.lab import Lab

GROUND = (210, 210, 210)
"""Colour of what is empty."""
ANYTHING = "Is there an object?"
SEEING = ("existence", "count", "relation", "position", "size", "attribute", "category", "at")


def glimpses(lab: Lab) -> tuple[Any, Any]:
    """Recipe of nano-glimpses."""
    from tessera.lab.hallucinating import learn

    model, processor = lab.reference("nano", copy=True)
    return learn(model, processor, lambda step: rows(step, side=int(model.image_size)))


def rows(step: int, count: int = 16, side: int = 112) -> list[Row]:
    """Rows of one step, of the training split; of the views every second one shows a scene of one thing somewhere."""
    from PIL import Image

    from tessera.world import World
    from tessera.world.rng import Rng

    world, found = World(split="train", kinds={"scene": 1.0}, width=side, height=side), list["Row"]()
    index = 40_000_000 + step * 4 * count
    while len(found) < count // 2:
        sample = world[index]
        questions = sample.questions(SEEING)
        index += 1
        if questions:
            asked = sample.rng("glimpses").choice(questions)
            found.append((sample.images(), asked.text, asked.answer))
    single = World(split="train", kinds={"scene": 1.0}, things=(1, 1), width=side, height=side)
    for number in range(count - len(found)):
        index = 50_000_000 + step * count + number
        rng = Rng("glimpse", index)
        size = side * 2 ** rng.below(4)
        view = Image.new("RGB", (size, size), GROUND)
        if number % 2:
            view.paste(single[index].images()[0], (rng.below(size - side + 1), rng.below(size - side + 1)))
        found.append(([view], ANYTHING, "yes" if number % 2 else "no"))
    return found
