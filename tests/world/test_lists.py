"""Lists of everything in a picture."""

from __future__ import annotations

from tessera.world import World
from tessera.world.lists import LIST_PROMPTS, lists
from tessera.world.questions.boxes import parse_box
from tessera.world.text import SIGN_COLOURS


def test_every_form_lists_every_thing_once() -> None:
    world = World(kinds={"scene": 0.7, "text": 0.3})
    for index in range(60):
        sample = world[index]
        names = sorted([t.name for t in sample.truth(0)] + [s.text for s in sample.frames[0].signs])
        found = lists(sample)
        assert set(found) == set(LIST_PROMPTS) - {"values"}
        if not names:
            assert set(found.values()) == {"nothing"}
            continue
        assert sorted(found["names"].split(", ")) == names
        assert sorted(item.rsplit(" ", 4)[0] for item in found["boxes"].split(", ")) == names
        assert sorted(item.split(" ", 4)[4] for item in found["finds"].split(", ")) == names
        look = {t.name: [*([t.tint] if t.tint else []), t.style] for t in sample.truth(0)}
        look |= {s.text: [SIGN_COLOURS[s.palette][0]] for s in sample.frames[0].signs}
        if len(look) == len(names):
            assert sorted(found["looks"].split(", ")) == sorted(" ".join([name, *said]) for name, said in look.items())
        kinds = [f"{t.name} {t.category}" for t in sample.truth(0)] + [f"{s.text} sign" for s in sample.frames[0].signs]
        assert sorted(found["kinds"].split(", ")) == sorted(kinds)
        assert all(parse_box(" ".join(item.split(" ")[:4])) for item in found["finds"].split(", "))


def test_a_chart_is_listed_by_its_values() -> None:
    world = World(kinds={"chart": 1.0})
    for index in range(30):
        panel = world[index].frames[0].panel
        assert panel is not None
        found = lists(world[index])
        assert set(found) == {"values"}
        said = [item.split(" ") for item in found["values"].split(", ")]
        assert sorted((label, int(value)) for label, value, *_ in said) == sorted(zip(panel.labels, panel.values, strict=True))
        coloured = {len(item) == 3 for item in said}
        assert coloured == {panel.kind in ("bar", "pie")}


def test_names_go_from_left_to_right_and_the_others_in_no_order() -> None:
    world = World(kinds={"scene": 1.0}, things=(4, 4))
    rising = seen = 0
    for index in range(120):
        sample = world[index]
        if len({t.name for t in sample.truth(0)}) < 4 or sample.frames[0].signs:
            continue
        seen += 1
        place = {t.name: (t.box[0] + t.box[2]) / 2 for t in sample.truth(0)}
        found = lists(sample)
        ordered = [place[name] for name in found["names"].split(", ")]
        assert ordered == sorted(ordered)
        drawn = [place[item.rsplit(" ", 4)[0]] for item in found["boxes"].split(", ")]
        rising += drawn == sorted(drawn)
    assert seen > 40 and rising < seen / 5, "one order in 24 is from left to right"
    assert lists(world[3]) == lists(world[3])
