"""What is written: signs, and the data of charts, tables and receipts."""

from __future__ import annotations

from tessera.world.questions.base import ask, others, question_type
from tessera.world.questions.facts import Facts
from tessera.world.questions.phrasing import phrase, reason
from tessera.world.rng import Rng
from tessera.world.scene import Panel, Question

# Their values are lengths and angles, which are seen less exactly than digits.
_DRAWN = ("bar", "line", "pie")
_DRAWN_MARGIN = 0.05  # of the largest value, between the best and the second best
_ALIKE = (
    "0OQD",
    "1ILT",
    "2Z",
    "5S",
    "8B",
    "6G",
    "CGO",
    "EF",
    "MNW",
    "UVY",
    "PR",
    "KX",
    "AH",
    "479",
    "3B8",
    "J1",
)
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_DIGITS = "0123456789"


@question_type("reading", "open", "choice")
def reading(facts: Facts, rng: Rng) -> list[Question]:
    """What the sign says; with several signs they are told apart by their colour."""
    frame = facts.single
    if frame is None or not frame.scene.signs:
        return []
    signs = frame.scene.signs
    colours = [facts.lexicon.sign_colours[s.palette % len(facts.lexicon.sign_colours)] for s in signs]
    made: list[Question] = []
    for i in rng.pick([i for i, c in enumerate(colours) if colours.count(c) == 1], 3):
        sign, colour = signs[i], colours[i]
        texts = others(rng, list(dict.fromkeys(s.text for s in signs)), sign.text)
        wrong = (texts + misreadings(rng, sign.text))[:3]
        text = phrase(rng, "read") if len(signs) == 1 else phrase(rng, "read_colour", colour=colour)
        made.append(
            ask(
                "reading",
                rng,
                text,
                sign.text,
                reason("read", colour=colour, text=sign.text),
                ((frame.index, sign.box),),
                (("op", "read"), ("sign", i)),
                wrong=wrong,
                # Only texts of the picture: of words and misspelt words the right one could be told unseen.
                offered=texts,
            )
        )
    return made


def misreadings(rng: Rng, text: str, k: int = 3) -> list[str]:
    """K texts that differ from `text` in one character, if possible one that looks alike."""
    found: list[str] = []
    for _ in range(8 * k):
        if len(found) == k or not text:
            break
        at = rng.below(len(text))
        alike = [c for group in _ALIKE if text[at] in group for c in group if c != text[at]]
        kin = _DIGITS if text[at].isdigit() else _LETTERS
        other = text[:at] + rng.choice(alike if alike and rng.chance(0.7) else kin) + text[at + 1 :]
        if other != text and other not in found:
            found.append(other)
    return found


@question_type("chart", "open", "choice")
def chart(facts: Facts, rng: Rng) -> list[Question]:
    """A value of a chart, table or receipt; which is highest or lowest; the total of a receipt."""
    frame = facts.single
    panel = frame.scene.panel if frame is not None else None
    if panel is None or not panel.labels:
        return []
    makers = [_value, _highest_or_lowest, _sum if panel.kind == "receipt" else _value_by_colour]
    return [q for make in makers if (q := make(facts, panel, rng)) is not None]


def _value(facts: Facts, panel: Panel, rng: Rng) -> Question | None:
    once = [i for i, label in enumerate(panel.labels) if panel.labels.count(label) == 1]
    if not once:
        return None
    i = rng.choice(once)
    label, value = panel.labels[i], panel.values[i]
    wrong, offered = _wrong_values(panel, rng, value)
    return ask(
        "chart",
        rng,
        phrase(rng, "price" if panel.kind == "receipt" else "value", label=label),
        str(value),
        reason("value", label=label, value=value),
        ((0, panel.box),),
        (("op", "value"), ("label", label)),
        wrong=wrong,
        offered=offered,
    )


def _highest_or_lowest(facts: Facts, panel: Panel, rng: Rng) -> Question | None:
    if len(panel.values) < 2:
        return None
    line = sorted(range(len(panel.values)), key=lambda i: panel.values[i])
    op, best, second = ("highest", line[-1], line[-2]) if rng.chance(0.5) else ("lowest", line[0], line[1])
    gap = abs(panel.values[best] - panel.values[second])
    needed = max(1.0, _DRAWN_MARGIN * panel.values[line[-1]]) if panel.kind in _DRAWN else 1
    label = panel.labels[best]
    if gap < needed or panel.labels.count(label) > 1:
        return None
    wrong = others(rng, panel.labels, label)
    return ask(
        "chart",
        rng,
        phrase(rng, op),
        label,
        reason(op, label=label, value=panel.values[best]),
        ((0, panel.box),),
        (("op", op),),
        wrong=wrong,
        offered=wrong,
    )


def _sum(facts: Facts, panel: Panel, rng: Rng) -> Question | None:
    total = sum(panel.values)
    wrong = [str(total + d) for d in rng.pick([d for d in (-10, -9, -2, -1, 1, 2, 9, 10) if total + d > 0], 3)]
    return ask(
        "chart",
        rng,
        phrase(rng, "sum"),
        str(total),
        reason("sum", values=", ".join(map(str, panel.values)), value=total),
        ((0, panel.box),),
        (("op", "sum"),),
        wrong=wrong,
    )


def _value_by_colour(facts: Facts, panel: Panel, rng: Rng) -> Question | None:
    if panel.kind not in ("bar", "pie"):
        return None
    once = [i for i, colour in enumerate(panel.colours) if panel.colours.count(colour) == 1]
    if not once:
        return None
    i = rng.choice(once)
    colour, mark, value = panel.colours[i], "bar" if panel.kind == "bar" else "slice", panel.values[i]
    wrong, offered = _wrong_values(panel, rng, value)
    return ask(
        "chart",
        rng,
        phrase(rng, "value_colour", colour=colour, mark=mark),
        str(value),
        reason("value_colour", colour=colour, mark=mark, label=panel.labels[i], value=value),
        ((0, panel.box),),
        (("op", "value_colour"), ("colour", colour)),
        wrong=wrong,
        offered=offered,
    )


def _wrong_values(panel: Panel, rng: Rng, value: int) -> tuple[list[str], list[str]]:
    """(wrong values, those that a choice may offer: only values of the panel itself, so that none stands
    out).
    """
    own = rng.pick([str(v) for v in dict.fromkeys(panel.values) if v != value], 3)
    near = [str(value + d) for d in rng.shuffled((-10, -2, -1, 1, 2, 10)) if value + d >= 0]
    return (own + [v for v in near if v not in own])[:3], own
