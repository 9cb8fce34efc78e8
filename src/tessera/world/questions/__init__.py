"""Questions about samples: every type in its place in `TYPES`, all of them made by `generate`.

A type is a function `make(facts, rng) -> list[Question]` under the decorator `question_type`; see `base`.
Every answer is the only right one, by margins that `facts` keeps; `Question.query` says in plain values what
is asked, so that a checker can answer it from the ground truth without this code.
"""

from __future__ import annotations

from collections.abc import Iterable

from tessera.errors import unknown
from tessera.world.questions import attributes, hops, presence, space, text, time  # noqa: F401  (registers the types)
from tessera.world.questions.base import TYPES, Form, QuestionType, question_type
from tessera.world.questions.boxes import box_text, cell_box, iou, parse_box
from tessera.world.questions.facts import Facts, SampleLike
from tessera.world.questions.lexicon import Lexicon, world_lexicon
from tessera.world.questions.phrasing import template_words
from tessera.world.rng import Rng
from tessera.world.scene import Question

__all__ = [
    "TYPES",
    "Form",
    "Lexicon",
    "Question",
    "QuestionType",
    "SampleLike",
    "box_text",
    "cell_box",
    "generate",
    "iou",
    "parse_box",
    "question_type",
    "template_words",
    "world_lexicon",
]


def generate(
    sample: SampleLike,
    rng: Rng,
    types: Iterable[str] | None = None,
    *,
    lexicon: Lexicon | None = None,
) -> list[Question]:
    """Every question that can be asked about a sample, at most three of each type, in the order of `TYPES`.

    The same sample and the same state of `rng` give the same questions. With `types` only those are made;
    since they draw from one stream, they may be others than in the full list. Raises `UserError` for an
    unknown type.
    """
    if types is None:
        chosen = list(TYPES.values())
    else:
        wanted = set(types)
        for name in sorted(wanted - TYPES.keys()):
            raise unknown("question type", name, TYPES)
        chosen = [t for t in TYPES.values() if t.name in wanted]
    facts = Facts(sample, lexicon or world_lexicon())
    return [question for kind in chosen for question in kind.make(facts, rng)]
