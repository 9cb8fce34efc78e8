"""Freshness notices what a harmful edit of the source does, and nothing of a harmless one.

`pytest -m mutants` runs all edits and prints a table of them; otherwise six are drawn, other ones every day of the year. An edit
is noticed where a fingerprint changes that claims depend on.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest
from tests.lab.mutants import Edit
from tests.lab.mutants.edited import SOURCE, Copy, Found, every, harm, likely, near, others
from tests.lab.mutants.harmful import HARMFUL
from tests.lab.mutants.harmless import HARMLESS

from tessera.lab import freshness
from tessera.lab.claims import claims_of

SHARE = 0.95
"""Of the harmful edits at least this many are noticed."""
_TODAY = random.Random(datetime.now(tz=UTC).timetuple().tm_yday)
DRAWN = (_TODAY.sample(HARMFUL, 4), _TODAY.sample(HARMLESS, 2))

Say = Callable[[str, object], None]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Copy]:
    made = Copy(tmp_path_factory.mktemp("mutants"))
    yield made
    made.close()


def line(kind: str, edit: Edit, found: Found) -> str:
    said = f"noticed by {', '.join(found.names)}" if found.names else "not noticed"
    return f"{kind:<8}  {edit.name:<48}  {edit.file:<40}  {found.seconds:5.1f} s  {said}"


def test_every_edit_finds_its_place() -> None:
    edits = [*HARMFUL, *HARMLESS]
    assert len(HARMFUL) >= 60 and len(HARMLESS) >= 40
    assert len({edit.name for edit in edits}) == len(edits)
    lost = {e.name: n for e in edits if (n := (SOURCE / e.file).read_text(encoding="utf-8").count(e.old)) != 1}
    assert lost == {}


def test_harmful_edits_are_spread_over_the_package() -> None:
    counts = {folder: sum(e.file.startswith(f"{folder}/") for e in HARMFUL) for folder in (*likely_folders(), "parts")}
    assert min(counts.values()) >= 3, counts


def likely_folders() -> tuple[str, ...]:
    return ("nn", "hosts", "models", "training", "evaluation", "world")


def test_claims_depend_on_every_golden_run_of_the_core() -> None:
    """An edit that only such a run notices makes something stale."""
    from tessera.lab.fingerprints.core import CORE
    from tessera.lab.protocols.base import CostProtocol, Protocol

    class Trained(Protocol):
        name, version, unit, looks, arms = "trained", 1, "seed", (3,), ()

    class Answered(Protocol):
        name, version, unit, looks, arms = "answered", 1, "image", (30,), ()

    assert set(Trained().core()) == set(CORE) - {"judge"}  # which every experiment depends on, whatever its protocol
    assert set(Trained().core()) - set(Answered().core()) == {"plans", "labels", "trainer"}
    assert set(CostProtocol().core()) <= set(CORE)


def test_a_comment_leaves_claims_fresh_and_an_inverted_selection_does_not(copy: Copy) -> None:
    socket, part = "tokens", "pyramiddrop"
    depends = {name for claim in claims_of(socket, part) for name in freshness.depends(socket, part, claim)}
    names = sorted(name for name in depends if not name.startswith("model "))
    named = {edit.name: edit for edit in (*HARMFUL, *HARMLESS)}
    comments = [named[f"comment in {where}"] for where in ("look", "the lab", "the judge", "a protocol")]
    assert copy.noticed(comments, names, first=False).names == []
    stale = copy.noticed([named["keep_top inverted"]], names, first=False).names
    assert {"core layers", f"part {socket}/{part}"} <= set(stale)


def test_drawn_harmful_edits_are_noticed(copy: Copy, record_property: Say) -> None:
    unnoticed = []
    for edit in DRAWN[0]:
        found = harm(copy, edit)
        record_property("edits drawn today", line("harmful", edit, found))
        unnoticed += [] if found.names else [edit.name]
    assert unnoticed == []


def test_drawn_harmless_edits_are_not(copy: Copy, record_property: Say) -> None:
    """Only where they most likely show, to be cheap."""
    for edit in DRAWN[1]:
        found = copy.noticed([edit], likely(edit), first=False)
        record_property("edits drawn today", line("harmless", edit, found))
        assert found.names == [], edit.name


@pytest.mark.mutants
def test_harmful_edits_are_noticed(copy: Copy, record_property: Say) -> None:
    unnoticed = []
    for edit in HARMFUL:
        found = harm(copy, edit)
        record_property("harmful edits", line("harmful", edit, found))
        unnoticed += [] if found.names else [edit.name]
    record_property("harmful edits", f"{len(HARMFUL) - len(unnoticed)} of {len(HARMFUL)} noticed; not noticed: {unnoticed}")
    assert len(unnoticed) <= (1 - SHARE) * len(HARMFUL), unnoticed


@pytest.mark.mutants
def test_harmless_edits_are_not(copy: Copy, record_property: Say) -> None:
    """All at once, and where something is noticed one by one, to name it."""
    together = copy.noticed(HARMLESS, every(), first=False)
    wrong = {}
    for edit in HARMLESS:
        found = (
            copy.noticed([edit], [*likely(edit), *near(edit), *others(edit)], first=True) if together.names else Found([], 0.0)
        )
        record_property("harmless edits", line("harmless", edit, found))
        wrong |= {edit.name: found.names} if found.names else {}
    record_property("harmless edits", f"{len(HARMLESS) - len(wrong)} of {len(HARMLESS)} not noticed, together {together.names}")
    assert (together.names, wrong) == ([], {})
