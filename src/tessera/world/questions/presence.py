"""What is there, and how often: existence, count, total, number."""

from __future__ import annotations

from tessera.world.questions.base import ask, others, question_type, yes_no
from tessera.world.questions.facts import Facts, Frame
from tessera.world.questions.phrasing import article, phrase, reason
from tessera.world.rng import Rng
from tessera.world.scene import Question

MOST = 6
_COUNTS = tuple(str(n) for n in range(1, MOST + 1))
# How frequent each total is in the world: wrong totals of a choice are drawn alike, so that none stands out.
_TOTALS = dict(zip(range(1, 13), (5, 7, 8, 8, 8, 10, 7, 4, 2, 1, 1, 1), strict=True))
# How often a count of one is asked for where nothing is repeated.
_P_SINGLE = 0.07
_P_SINGLE_KIND = 0.3


@question_type("existence", "yesno")
def existence(facts: Facts, rng: Rng) -> list[Question]:
    """Whether a thing is in the picture, yes or no by coin; the absent are mostly akin to the present."""
    frame = facts.single
    if frame is None or not frame.items:
        return []
    made: list[Question] = []
    asked: dict[int, object] = {}
    for _ in range(2):
        # Both must be possible before the coin is thrown: else scenes of one kind would tip the balance.
        present, absent = _present(frame, rng, asked), _absent(facts, frame, rng, asked)
        if present is None or absent is None:
            break
        there = rng.chance(0.5)
        concept = present if there else absent
        asked[concept] = None
        name = facts.lexicon.concepts[concept].name
        found = [item for item in frame.items if item.concept == concept]
        why = (
            reason("exists", a=article(name), name=name, place=found[0].place)
            if there
            else reason("absent", name=name)
        )  # fmt: skip
        made.append(
            yes_no(
                "existence",
                phrase(rng, "exists", a=article(name), name=name),
                there,
                why,
                tuple((frame.index, item.box) for item in found),
                (("op", "exists"), ("concept", concept)),
            )
        )
    return made


def _present(frame: Frame, rng: Rng, asked: dict[int, object]) -> int | None:
    clear = list(dict.fromkeys(i.concept for i in frame.items if i.visible and i.concept not in asked))
    return rng.choice(clear) if clear else None


def _absent(facts: Facts, frame: Frame, rng: Rng, asked: dict[int, object]) -> int | None:
    near = rng.choice(frame.items)
    pool = facts.pool
    family = pool.by_category.get(near.category, ())
    draw = rng.uniform()
    groups: tuple[tuple[int, ...], ...]
    if draw < 0.5:
        groups = (family, pool.ids)
    elif draw < 0.75:
        groups = (pool.by_subcategory.get(near.truth.subcategory, ()), family, pool.ids)
    else:
        groups = (pool.ids,)
    return facts.absent(rng, groups, {**frame.counts, **asked})


@question_type("count", "open", "choice")
def count(facts: Facts, rng: Rng) -> list[Question]:
    """How often a thing appears, or how many things of a kind there are: 1 to 6."""
    frame = facts.single
    if frame is None or not frame.items or not frame.clear:
        return []
    made: list[Question] = []
    clashes = facts.lexicon.clashes
    kinds = [c for c, n in frame.counts.items() if n <= MOST and clashes.get(c, frozenset()).isdisjoint(frame.counts)]
    if kinds:
        most = max(frame.counts[c] for c in kinds)
        concept = rng.choice([c for c in kinds if frame.counts[c] == most] if rng.chance(0.9) else kinds)
        if most > 1 or rng.chance(_P_SINGLE):
            n = frame.counts[concept]
            found = [i for i in frame.items if i.concept == concept]
            name = found[0].name
            why = reason("count", name=name, n=n) if n > 1 else reason("count_one", name=name)
            wrong = others(rng, _COUNTS, str(n))
            made.append(
                ask(
                    "count",
                    rng,
                    phrase(rng, "count", name=name),
                    str(n),
                    why,
                    tuple((frame.index, i.box) for i in found),
                    (("op", "count"), ("concept", concept)),
                    wrong=wrong,
                    offered=wrong,
                )
            )
    groups = [(c, n) for c, n in frame.categories.items() if n <= MOST]
    if groups:
        # Weights by the square, because small groups are far more frequent than large ones.
        kind, n = rng.weighted(groups, [n * n for _, n in groups])
        if n > 1 or rng.chance(_P_SINGLE_KIND):
            found = [i for i in frame.items if i.category == kind]
            wrong = others(rng, _COUNTS, str(n))
            made.append(
                ask(
                    "count",
                    rng,
                    phrase(rng, "count_category", kind=kind),
                    str(n),
                    reason("count_category", kind=kind, names=", ".join(i.name for i in found)),
                    tuple((frame.index, i.box) for i in found),
                    (("op", "count_category"), ("category", kind)),
                    wrong=wrong,
                    offered=wrong,
                )
            )
    return made


@question_type("total", "open", "choice")
def total(facts: Facts, rng: Rng) -> list[Question]:
    """How many objects there are."""
    frame = facts.single
    if frame is None or not frame.items or not frame.clear:
        return []
    n = len(frame.items)
    wrong: list[str] = []
    rest = {k: w for k, w in _TOTALS.items() if k != n}
    for _ in range(3):
        k = rng.weighted(list(rest), list(rest.values()))
        del rest[k]
        wrong.append(str(k))
    return [
        ask(
            "total",
            rng,
            phrase(rng, "total"),
            str(n),
            reason("total", n=n) if n > 1 else reason("total_one"),
            tuple((frame.index, i.box) for i in frame.items),
            (("op", "total"),),
            wrong=wrong,
            offered=wrong,
        )
    ]


@question_type("number", "open")
def number(facts: Facts, rng: Rng) -> list[Question]:
    """Which of two things appears more often."""
    frame = facts.single
    if frame is None or len(frame.counts) < 2 or not frame.clear:
        return []
    counts = frame.counts
    repeated = [c for c, n in counts.items() if n > 1]
    if not repeated:
        return []
    more = rng.choice(repeated)
    rivals = [c for c, n in counts.items() if n < counts[more]]
    if not rivals:
        return []
    less = rng.choice(rivals)
    clashes = facts.lexicon.clashes
    if any(not clashes.get(c, frozenset()).isdisjoint(counts) for c in (more, less)):
        return []
    first, second = (more, less) if rng.chance(0.5) else (less, more)
    names = [facts.lexicon.concepts[c].name for c in (first, second, more, less)]
    right = next(i for i in frame.items if i.concept == more)
    wrong, _ = facts.wrong_names(frame, rng, right, next(i for i in frame.items if i.concept == less))
    return [
        ask(
            "number",
            rng,
            phrase(rng, "more", a=names[0], b=names[1]),
            names[2],
            reason("more", a=names[2], b=names[3], n=counts[more], m=counts[less]),
            tuple((frame.index, i.box) for i in frame.items if i.concept in (more, less)),
            (("op", "more"), ("a", first), ("b", second)),
            wrong=(names[3], *wrong[:2]),
        )
    ]
