"""The 14 programs for several pictures, and the search for pictures that they can ask about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations

from tessera.parts.engines.provision.corpus import Corpus
from tessera.parts.engines.provision.draft import Draft, Query, certain, counts_near
from tessera.world.rng import Rng

Found = tuple[tuple[int, ...], Draft]
"""The pictures in the order in which they are shown, and what is asked about them."""
Search = Callable[[Corpus, Rng, int, int], "Found | None"]
"""(corpus, rng, pictures of one question, most options) -> one question, or None if the pictures drawn allow none."""


def which(shown: Sequence[int], answer: int, words: dict[str, str], query: Query) -> Found:
    """The question in which of the pictures something is so: the answer is the number of the picture, from 1."""
    names = [f"picture {i + 1}" for i in range(len(shown))]
    right = names[list(shown).index(answer)]
    return tuple(shown), Draft(words, (right,), tuple(n for n in names if n != right), query)


def _choice(rng: Rng, items: Sequence[object]) -> object | None:
    return rng.choice(items) if items else None


def _with_a_thing(corpus: Corpus, rng: Rng, n: int) -> tuple[str, list[int]] | None:
    """A label, and n pictures that show such a thing."""
    label = _choice(rng, corpus.often("by_label", n))
    return (label, rng.pick(corpus.by_label[label], n)) if isinstance(label, str) else None


def _with_a_kind(corpus: Corpus, rng: Rng, n: int) -> tuple[str, list[int], str] | None:
    """A label, n pictures that show such things, and a kind of attribute that is known of all of them."""
    if (found := _with_a_thing(corpus, rng, n)) is None:
        return None
    kind = _choice(rng, corpus.kinds(found[1], found[0]))
    return (*found, kind) if isinstance(kind, str) else None


def _has_object(has: bool) -> Search:
    """One picture shows (lacks) a thing, all others lack (show) it."""

    def search(corpus: Corpus, rng: Rng, n: int, options: int) -> Found | None:
        label = _choice(rng, corpus.often("by_label", 1 if has else n - 1))
        if not isinstance(label, str):
            return None
        inside = corpus.by_label[label]
        outside = [i for i in rng.pick(corpus.usable, 4 * n) if i not in inside]
        one, rest = (rng.pick(inside, 1), rng.pick(outside, n - 1)) if has else (rng.pick(outside, 1), rng.pick(inside, n - 1))
        if len(one) + len(rest) < n:
            return None
        return which(
            rng.shuffled([*one, *rest]), one[0], {"name": label}, (("op", "has" if has else "has_not"), ("label", label))
        )

    return search


def _has_attribute(has: bool) -> Search:
    """One picture shows the thing with (without) an attribute, all others the thing without (with) it."""

    def search(corpus: Corpus, rng: Rng, n: int, options: int) -> Found | None:
        if (found := _with_a_kind(corpus, rng, n)) is None:
            return None
        label, shown, kind = found
        values = [corpus.attribute(p, label, kind) or [] for p in shown]
        fits = []
        for value in sorted({v for vs in values for v in vs}):
            with_it = [p for p, vs in zip(shown, values, strict=True) if value in vs]
            without = [p for p in shown if p not in with_it]
            if len(with_it if has else without) == 1:
                fits.append((value, (with_it if has else without)[0]))
        if not fits:
            return None
        value, answer = rng.choice(fits)
        query = (("op", "has_attribute" if has else "has_not_attribute"), ("label", label), ("kind", kind), ("value", value))
        return which(shown, answer, {"name": f"{value} {label}"}, query)

    return search


def _has_relation(has: bool) -> Search:
    """One picture has two things in (not in) a relation, all others have both things but not in it (in it)."""

    def search(corpus: Corpus, rng: Rng, n: int, options: int) -> Found | None:
        edge = _choice(rng, corpus.often("by_edge", 1 if has else n - 1))
        if not isinstance(edge, tuple):
            return None
        a, name, b = edge
        inside = corpus.by_edge[edge]
        outside = [i for i in corpus.by_pair[a, b] if i not in inside]
        one, rest = (rng.pick(inside, 1), rng.pick(outside, n - 1)) if has else (rng.pick(outside, 1), rng.pick(inside, n - 1))
        if len(one) + len(rest) < n:
            return None
        query = (("op", "has_relation" if has else "has_not_relation"), ("a", a), ("relation", name), ("b", b))
        return which(rng.shuffled([*one, *rest]), one[0], {"a": a, "relation": name, "b": b}, query)

    return search


def _has_frequent(most: bool) -> Search:
    """The picture with the most (least) of a thing, which all pictures show, each another number of times."""

    def search(corpus: Corpus, rng: Rng, n: int, options: int) -> Found | None:
        label = _choice(rng, corpus.varied(n))
        if not isinstance(label, str):
            return None
        by_count = corpus.by_count(label)
        chosen = {count: rng.choice(by_count[count]) for count in rng.pick(sorted(by_count), n)}
        answer = chosen[max(chosen) if most else min(chosen)]
        query = (("op", "has_most" if most else "has_least"), ("label", label))
        return which(list(chosen.values()), answer, {"name": label}, query)

    return search


def common_object(corpus: Corpus, rng: Rng, n: int, options: int) -> Found | None:
    """What all pictures show."""
    if (found := _with_a_thing(corpus, rng, n)) is None:
        return None
    _, shown = found
    sets = [set(corpus.graphs[p].labels()) for p in shown]
    common, rest = sorted(sets[0].intersection(*sets[1:])), sorted(sets[0].union(*sets[1:]) - sets[0].intersection(*sets[1:]))
    if not rest:
        return None
    return tuple(shown), Draft({}, tuple(common), tuple(rng.pick(rest, options - 1)), (("op", "common_object"),))


def common_attribute(corpus: Corpus, rng: Rng, n: int, options: int) -> Found | None:
    """What attribute a thing has in all pictures."""
    if (found := _with_a_thing(corpus, rng, n)) is None:
        return None
    label, shown = found
    common, rest = [], set()
    for kind in corpus.kinds(shown, label):
        sets = [set(corpus.attribute(p, label, kind) or ()) for p in shown]
        common += sorted(sets[0].intersection(*sets[1:]))
        rest |= sets[0].union(*sets[1:]) - sets[0].intersection(*sets[1:])
    if not common or not rest:
        return None
    query = (("op", "common_attribute"), ("label", label), ("kinds", tuple(corpus.kinds(shown, label))))
    return tuple(shown), Draft({"name": label}, tuple(common), tuple(rng.pick(sorted(rest), options - 1)), query)


def count_objects(corpus: Corpus, rng: Rng, n: int, options: int) -> Found | None:
    """How often a thing occurs in all pictures together."""
    if (found := _with_a_thing(corpus, rng, n)) is None:
        return None
    label, shown = found
    count = sum(corpus.graphs[p].labels().count(label) for p in shown)
    return tuple(shown), Draft({"name": label}, (str(count),), counts_near(count), (("op", "count_all"), ("label", label)))


def count_attribute_objects(corpus: Corpus, rng: Rng, n: int, options: int) -> Found | None:
    """How often a thing with an attribute occurs in all pictures together, at least twice."""
    if (found := _with_a_kind(corpus, rng, n)) is None:
        return None
    label, shown, kind = found
    counts = Counter(v for p in shown for v in corpus.attribute(p, label, kind) or ())
    often = sorted(v for v, count in counts.items() if count > 1)
    if not often:
        return None
    value = rng.choice(often)
    query = (("op", "count_attribute_all"), ("label", label), ("kind", kind), ("value", value))
    return tuple(shown), Draft({"name": f"{value} {label}"}, (str(counts[value]),), counts_near(counts[value]), query)


def _differences(texts: Sequence[str], rng: Rng, options: int) -> tuple[str, tuple[str, ...]]:
    """What is said of the pictures in turn, and the same in wrong orders."""

    def said(order: Sequence[str]) -> str:
        return "; ".join(f"picture {i + 1}: {text}" for i, text in enumerate(order))

    wrong = [said(order) for order in permutations(texts) if list(order) != list(texts)]
    return said(texts), tuple(rng.pick(wrong, options - 1))


def compare_relation(corpus: Corpus, rng: Rng, n: int, options: int) -> Found | None:
    """How two things stand to each other in every picture, each time otherwise."""
    ends = _choice(rng, corpus.often("by_pair", n))
    if not isinstance(ends, tuple):
        return None
    shown = rng.pick(corpus.by_pair[ends], n)
    texts = []
    for p in shown:
        labels = corpus.graphs[p].labels()
        texts.append(" and ".join(certain(corpus.graphs[p], labels.index(ends[0]), labels.index(ends[1])) or ()))
    if len(set(texts)) < n:
        return None
    answer, wrong = _differences(texts, rng, options)
    query = (("op", "compare_relation"), ("a", ends[0]), ("b", ends[1]))
    return tuple(shown), Draft({"a": ends[0], "b": ends[1]}, (answer,), wrong, query)


def compare_attribute(corpus: Corpus, rng: Rng, n: int, options: int) -> Found | None:
    """What attributes a thing has in every picture, where there is one of it in each, each time others."""
    if (found := _with_a_thing(corpus, rng, n)) is None:
        return None
    label, shown = found
    kinds = corpus.kinds(shown, label)
    if not kinds or any(corpus.graphs[p].labels().count(label) > 1 for p in shown):
        return None
    texts = [" and ".join(v for k in kinds for v in corpus.attribute(p, label, k) or ()) for p in shown]
    if len(set(texts)) < n:
        return None
    answer, wrong = _differences(texts, rng, options)
    return tuple(shown), Draft(
        {"name": label}, (answer,), wrong, (("op", "compare_attribute"), ("label", label), ("kinds", tuple(kinds)))
    )


@dataclass(frozen=True, slots=True)
class MultiProgram:
    """A program for several pictures, and the phrasings of its questions (the last is held out)."""

    name: str
    search: Search
    phrases: tuple[str, ...]


def multi_programs() -> tuple[MultiProgram, ...]:
    """All 14."""

    def pictures(says: str) -> tuple[str, ...]:
        return (f"Which picture {says}?", f"In which picture is it so: it {says}?", f"Name the picture that {says}.")

    count = (
        "How many times does the {name} appear in all pictures?",
        "How often does the {name} appear in all?",
        "In all, how many of {name} are there?",
    )
    return (
        MultiProgram("has_object", _has_object(True), pictures("shows the {name}")),
        MultiProgram("has_not_object", _has_object(False), pictures("does not show the {name}")),
        MultiProgram("has_attributed_object", _has_attribute(True), pictures("shows the {name}")),
        MultiProgram("has_not_attributed_object", _has_attribute(False), pictures("does not show the {name}")),
        MultiProgram("has_relation", _has_relation(True), pictures("has the {a} {relation} the {b}")),
        MultiProgram("has_not_relation", _has_relation(False), pictures("does not have the {a} {relation} the {b}")),
        MultiProgram("has_most_object", _has_frequent(True), pictures("shows the {name} most often")),
        MultiProgram("has_least_object", _has_frequent(False), pictures("shows the {name} least often")),
        MultiProgram(
            "common_object",
            common_object,
            ("Which object is in all pictures?", "What do all pictures show?", "Name what is in every picture."),
        ),
        MultiProgram(
            "common_attribute",
            common_attribute,
            (
                "How does the {name} look in all pictures?",
                "Which look does the {name} have in all pictures?",
                "Name the look that the {name} has in every picture.",
            ),
        ),
        MultiProgram("count_objects", count_objects, count),
        MultiProgram("count_attributed_objects", count_attribute_objects, count),
        MultiProgram(
            "compare_relation",
            compare_relation,
            (
                "Where is the {a} as seen from the {b}, picture by picture?",
                "How is the {a} placed to the {b} in the pictures?",
                "Picture by picture, where is the {a} to the {b}?",
            ),
        ),
        MultiProgram(
            "compare_attribute",
            compare_attribute,
            (
                "How does the {name} look, picture by picture?",
                "What is the look of the {name} in the pictures?",
                "Picture by picture, how does the {name} look?",
            ),
        ),
    )
