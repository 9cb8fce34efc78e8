"""Chooses the two example answers of a report: one that shows what the model learned, and one that shows what it did not.

The rule knows nothing of the scenes. Question types are ranked by how far the model's accuracy is above all that needs no image
(guessing, the most frequent answer, answers without the image, where they were measured). The right answer is the first right
example kept of the highest type that has one, the wrong answer the first wrong example kept of the lowest type that has one;
equal types are taken in the order of the result. Which examples are kept is drawn by the evaluation's seed.
"""

from __future__ import annotations

from collections.abc import Iterable

from tessera.evaluation.result import Example, Result, TypeResult

RULE = (
    "The right answer is of the question type in which the model is farthest above all that needs no image, the wrong one of the "
    "type in which it is least."
)


def shown(result: Result) -> list[Example]:
    """The right answer and then the wrong one; fewer where the result keeps none of a kind."""
    ranked = sorted(result.types, key=lambda name: -learned(result.types[name]))
    found = [_first(result, ranked, True), _first(result, reversed(ranked), False)]
    return [example for example in found if example is not None]


def learned(found: TypeResult) -> float:
    """Accuracy of a type above the best of all that needs no image, -1 to 1."""
    return found.accuracy - max(found.chance, found.majority, found.blind or 0.0)


def _first(result: Result, types: Iterable[str], right: bool) -> Example | None:
    for name in types:
        for example in result.examples:
            if example.type == name and example.right == right:
                return example
    return None
