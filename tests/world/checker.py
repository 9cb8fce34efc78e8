"""A checker of questions that shares no code with their generators.

For every "op" of a query `OPS` holds a function that works out, by brute force over the scene records, every answer that
somebody with a ruler of limited accuracy could defend. A question is sound if its answer is the only such one, what it offers as
wrong is wrong, its evidence shows what the answer rests on, and its text says what its query means.
"""

from __future__ import annotations

from typing import Any

from tests.world import checker_attributes, checker_ops, checker_text_time
from tests.world.checker_ops import Verdict
from tests.world.measured import EPS, Facts, Shown, Unclear, cells_of, overlap

from tessera.world.concepts import concepts
from tessera.world.scene import Question
from tessera.world.text import SIGN_COLOURS

OPS = {**checker_ops.OPS, **checker_attributes.OPS, **checker_text_time.OPS}
SAID = {"left": "left of", "right": "right of", "above": "above", "below": "below"}


def check(question: Question, facts: Facts) -> list[str]:
    """What is wrong with a question, in sentences; empty if it is sound."""
    query = dict(question.query)
    try:
        verdict = OPS[str(query["op"])](facts, query, question)
    except Unclear as unclear:
        return [str(unclear)]
    faults = []
    if verdict.valid != {question.answer}:
        faults.append(f"the answer is {question.answer!r}, but {sorted(verdict.valid)} can be defended")
    faults += _wrong_answers(question, verdict)
    faults += _form(question)
    faults += _evidence(question, facts, verdict)
    faults += [f"the text does not say {word!r}" for word in _words(query, facts) if word not in question.text]
    return faults


def _wrong_answers(question: Question, verdict: Verdict) -> list[str]:
    right = {question.answer, *verdict.valid, *verdict.also}
    faults = [f"the distractor {d!r} is right too" for d in question.distractors if d in right]
    if not question.distractors or len(set(question.distractors)) != len(question.distractors):
        faults.append(f"distractors are missing or repeated: {question.distractors}")
    if dict(question.query)["op"] == "box":
        cells = cells_of(question.answer)
        faults += [
            f"the distractor {d!r} overlaps the true box by half"
            for d in question.distractors
            if overlap(cells_of(d), cells) >= 0.5
        ]
    others = [c for c in question.choices if c != question.answer]
    faults += [f"the choice {c!r} is right too" for c in others if c in right]
    return faults


def _form(question: Question) -> list[str]:
    choices = question.choices
    if question.form == "choice":
        good = choices.count(question.answer) == 1 and len(set(choices)) == len(choices) >= 3
        said = question.text.endswith(f" Choose: {', '.join(choices)}.")
        return [] if good and said else [f"choices {choices} do not fit the answer or the text"]
    if choices:
        return [f"a question of form {question.form} has choices"]
    if question.form == "yesno" and {question.answer, *question.distractors} != {"yes", "no"}:
        return ["a yes/no question is answered otherwise"]
    return [] if question.answer.strip() and question.rationale.endswith(".") else ["answer or rationale is missing"]


def _evidence(question: Question, facts: Facts, verdict: Verdict) -> list[str]:
    faults = []
    for frame, (x0, y0, x1, y1) in question.evidence:
        if not (0 <= frame < len(facts.frames) and -EPS <= x0 < x1 <= 1 + EPS and -EPS <= y0 < y1 <= 1 + EPS):
            faults.append(f"evidence {frame}, {(x0, y0, x1, y1)} lies outside")
    faults += [f"the evidence lacks {need}" for need in verdict.needed if not any(_same(need, e) for e in question.evidence)]
    known: list[Shown] = [s.shown for frame in facts.frames for s in frame]
    for i, scene in enumerate(facts.sample.frames):
        known += [(i, sign.box) for sign in scene.signs] + ([(i, scene.panel.box)] if scene.panel else []) + [(i, (0, 0, 1, 1))]
    faults += [f"evidence {e} is of nothing" for e in question.evidence if not any(_same(e, k) for k in known)]
    return faults


def _same(a: Shown, b: Shown) -> bool:
    return a[0] == b[0] and all(abs(p - q) < EPS for p, q in zip(a[1], b[1], strict=True))


def _words(query: dict[str, Any], facts: Facts) -> list[str]:
    """What the text has to say of the query."""
    words = [concepts()[query[key]].name for key in ("concept", "a", "b") if key in query]
    words += [str(query[key]) for key in ("category", "region", "label", "colour") if key in query]
    words += [SAID[query["direction"]]] if "direction" in query else []
    words += [" ".join(f"{v:02d}" for v in query["box"])] if "box" in query else []
    signs = facts.sample.frames[0].signs
    return words + ([SIGN_COLOURS[signs[query["sign"]].palette][0]] if "sign" in query and len(signs) > 1 else [])
