from __future__ import annotations

import pytest

from tessera.errors import UserError
from tessera.world import World
from tessera.world.contrasts import contrasts, singles
from tessera.world.lists import LIST_PROMPTS

WORLD = World(split="val")


def test_contrasts_are_answered_differently_and_are_the_same_every_time() -> None:
    kinds: set[str] = set()
    for index in range(40):
        sample = WORLD.sample(index, "pair")
        found = contrasts(sample)
        assert found == contrasts(WORLD.sample(index, "pair"))
        assert all(first != second for _, (first, second) in found)
        assert all("Choose" not in question for question, _ in found)
        kinds |= {sample.changes[0].kind} if found else set()
    assert {"added", "removed", "moved"} <= kinds


def test_questions_about_the_changed_thing_say_what_changed() -> None:
    asked = 0
    for index in range(60):
        sample = WORLD.sample(index, "pair")
        change = sample.changes[0]
        names = [{t.name for t in sample.truth(frame)} for frame in (0, 1)]
        for question, answers in contrasts(sample):
            if question in LIST_PROMPTS.values():
                things = [s.split(", ") for s in answers]
                assert all(any(name in said for said in things[f]) for f in (0, 1) for name in names[f])
            if question.startswith(("Is there", "Does the picture")):
                assert answers == {"added": ("no", "yes"), "removed": ("yes", "no")}[change.kind]
                asked += 1
                changed = (names[1] - names[0]) | (names[0] - names[1])
                assert any(name in question for name in changed)
            if question.startswith(("Where", "In which part")):
                assert change.kind == "moved"
    assert asked >= 5


def test_only_pairs_have_contrasts() -> None:
    with pytest.raises(UserError, match="pair"):
        singles(WORLD.sample(0, "scene"))
    first, second = singles(WORLD.sample(0, "pair"))
    assert first.frames[0] != second.frames[0] and first.kind == "scene"
