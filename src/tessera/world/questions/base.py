"""One question type is one function, registered here by a decorator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from tessera.errors import TesseraError
from tessera.world.questions.facts import Facts
from tessera.world.rng import Rng
from tessera.world.scene import Box, Question

Form = Literal["open", "yesno", "choice"]
Make = Callable[[Facts, Rng], list[Question]]
Query = tuple[tuple[str, object], ...]
Evidence = tuple[tuple[int, Box], ...]

P_CHOICE = 0.3  # of the questions that could be asked as a choice


@dataclass(frozen=True, slots=True)
class QuestionType:
    """An ability that is asked for: its name, the forms it is asked in, and the function that makes its
    questions.
    """

    name: str
    forms: tuple[Form, ...]
    make: Make
    about: str


TYPES: dict[str, QuestionType] = {}


def question_type(name: str, *forms: Form) -> Callable[[Make], Make]:
    """Registers `make(facts, rng) -> list[Question]` (at most 3; empty if nothing can be asked) as type
    `name`.
    """

    def register(make: Make) -> Make:
        if name in TYPES:
            raise TesseraError(f"question type {name!r} is registered twice: {TYPES[name].make!r} and {make!r}.")
        TYPES[name] = QuestionType(name, forms, make, (make.__doc__ or "").strip().splitlines()[0] if make.__doc__ else "")
        return make

    return register


def yes_no(type: str, text: str, answer: bool, reason: str, evidence: Evidence, query: Query) -> Question:
    """A question whose answer is "yes" or "no"."""
    return Question(
        type=type,
        form="yesno",
        text=text,
        answer="yes" if answer else "no",
        distractors=("no",) if answer else ("yes",),
        rationale=reason,
        evidence=evidence,
        query=query,
    )


def ask(
    type: str,
    rng: Rng,
    text: str,
    answer: str,
    reason: str,
    evidence: Evidence,
    query: Query,
    *,
    wrong: Sequence[str] = (),
    offered: Sequence[str] = (),
) -> Question:
    """An open question, or with `P_CHOICE` one that offers the answer among 2 or 3 of `offered` (wrong
    answers in random order).

    With fewer than 2 offered it is always open. `wrong` are its distractors in the open form.
    """
    if len(offered) >= 2 and rng.chance(P_CHOICE):
        others = list(offered[: 2 + rng.below(2)])
        options = [*others]
        options.insert(rng.below(len(options) + 1), answer)
        return Question(
            type=type,
            form="choice",
            text=f"{text} Choose: {', '.join(options)}.",
            answer=answer,
            choices=tuple(options),
            distractors=tuple(dict.fromkeys((*others, *wrong)))[:3],
            rationale=reason,
            evidence=evidence,
            query=query,
        )
    return Question(
        type=type,
        form="open",
        text=text,
        answer=answer,
        distractors=tuple(wrong),
        rationale=reason,
        evidence=evidence,
        query=query,
    )


def others(rng: Rng, values: Sequence[str], answer: str, k: int = 3) -> list[str]:
    """K of the values other than the answer, in random order."""
    return rng.pick([v for v in values if v != answer], k)
