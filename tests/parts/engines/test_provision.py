"""ProVision's programs against the checker, what they refuse to ask, and the records they make."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tessera.config import build
from tessera.data.engine import Instruction, write
from tessera.data.readers import read
from tessera.data.records import validate
from tessera.data.scene_graph import Annotated, Node, SceneGraph, of_samples, of_world, relations_of
from tessera.errors import UserError
from tessera.parts.engines.provision import SEVERAL, SINGLE, ProVision, to_items
from tessera.parts.engines.provision.checker import wrong_with
from tessera.parts.engines.provision.draft import Context, apart, certain
from tessera.parts.engines.provision.hops import Reference, hop_object, reference_of
from tessera.parts.engines.provision.single import programs
from tessera.world import World
from tessera.world.rng import Rng


@pytest.fixture(scope="module")
def pictures() -> list[Annotated]:
    world = World(split="train", kinds={"scene": 0.5, "pair": 0.5}, things=(2, 5), width=64, height=64)
    return of_samples([world[i] for i in range(24)])


@pytest.fixture(scope="module")
def made(pictures: list[Annotated]) -> list[Instruction]:
    deep = [replace(p, graph=replace(p.graph, ordered=None)) for p in pictures]
    anchored = ProVision(ProVision.Config(single=("closer_to_anchor", "farther_from_anchor"), several=("none",)))
    return [*ProVision(ProVision.Config(multi=4)).instructions(pictures), *anchored.instructions(deep)]


def graph(*nodes: Node, complete: bool = True) -> SceneGraph:
    edges, doubtful = relations_of([n.box for n in nodes])
    return SceneGraph(nodes=nodes, edges=edges, doubtful=doubtful, complete=complete)


def test_there_are_24_and_14_programs_and_nearly_all_ask_on_a_few_scenes(made: list[Instruction]) -> None:
    assert (len(SINGLE), len(SEVERAL)) == (24, 14) and len({*SINGLE, *SEVERAL}) == 38
    assert {*SINGLE, *SEVERAL} - {i.question.type for i in made} <= {"least_object", "closer_object", "farther_object"}


def test_every_answer_is_right_and_the_only_one(made: list[Instruction]) -> None:
    assert not [(i.question, why) for i in made if (why := wrong_with(i))]


def test_the_checker_refuses_wrong_answers(made: list[Instruction]) -> None:
    wrong = [replace(i, question=replace(i.question, answer=i.question.distractors[0])) for i in made if i.question.distractors]
    assert wrong and all(wrong_with(i) for i in wrong)


def test_depth_that_cannot_be_seen_is_not_asked_about(pictures: list[Annotated]) -> None:
    none = [replace(p, graph=replace(p.graph, ordered=frozenset())) for p in pictures]
    names = ("closer_object", "farther_object", "closer_to_anchor")
    assert not list(ProVision(ProVision.Config(single=names, several=("none",))).instructions(none))


def test_right_options_stand_everywhere(pictures: list[Annotated]) -> None:
    engine = ProVision(
        ProVision.Config(single=("typed_attribute_box", "relation"), several=("none",), choices=1.0, per_picture=6)
    )
    places = Counter(q.choices.index(q.answer) for i in engine.instructions(pictures) if len((q := i.question).choices) == 3)
    total = sum(places.values())
    assert total > 60 and all(abs(places[k] / total - 1 / 3) < 0.2 for k in range(3))


def test_letters_and_phrasings(pictures: list[Annotated]) -> None:
    config = ProVision.Config(single=("relation",), several=("none",), choices=1.0, letters=True)
    lettered = [i.question for i in ProVision(config).instructions(pictures)]
    assert lettered and all(q.answer in q.choices and q.answer[:3] in ("A. ", "B. ", "C. ", "D. ") for q in lettered)
    texts = {}
    for phrasing in ("train", "held-out"):
        engine = ProVision(ProVision.Config(single=("relation",), several=("none",), choices=0.0, phrasing=phrasing))  # type: ignore[arg-type]
        texts[phrasing] = {i.question.text.split()[0] for i in engine.instructions(pictures)}
    assert texts["held-out"] == {"How"} and "How" not in texts["train"]


def test_the_same_seed_gives_the_same_questions(pictures: list[Annotated]) -> None:
    config = ProVision.Config(single=("relation", "same_object"), several=("has_object",), multi=3)
    first, second = ([i.question for i in ProVision(config).instructions(pictures)] for _ in range(2))
    other = [i.question for i in ProVision(replace(config, seed=1)).instructions(pictures)]
    assert first == second != other


def test_rare_answers_come_rather(pictures: list[Annotated]) -> None:
    one = Node(label="dog", box=(0.1, 0.1, 0.2, 0.2))
    graphs = graph(one, *(Node(label="cat", box=(0.1 + d, 0.5, 0.18 + d, 0.6)) for d in (0.2, 0.4, 0.6)))
    engine = ProVision(ProVision.Config(single=("count_object",), several=("none",), choices=0.0))
    many = [Annotated(f"p{i}", graphs, lambda: pictures[0].picture()) for i in range(40)]
    answers = Counter(i.question.answer for i in engine.instructions(many))
    assert abs(answers["1"] - answers["3"]) <= 8


def test_doubtful_relations_and_unknown_attributes_are_left_alone() -> None:
    near = graph(Node(label="dog", box=(0.1, 0.1, 0.3, 0.3)), Node(label="cat", box=(0.15, 0.6, 0.35, 0.8)))
    assert certain(near, 0, 1) is None and ("left of" not in {r for _, r, _ in near.edges})
    red = Node(label="dog", box=(0.0, 0.0, 0.2, 0.2), attributes={"colour": "red"})
    plain = Node(label="cat", box=(0.5, 0.5, 0.7, 0.7))
    assert reference_of(graph(red, plain), Reference("colour", "red", "", "")) is None
    blue = replace(plain, attributes={"colour": "blue"})
    assert reference_of(graph(red, blue), Reference("colour", "red", "", "")) == 0
    assert reference_of(graph(red, blue, complete=False), Reference("colour", "red", "", "")) is None
    context = Context(Rng("t"), 4, 0.2, False)
    told = {d.words["ref"]: d.answers for d in hop_object(graph(red, blue), context)}
    assert told["object that is left of the cat"] == ("dog",)


def test_counts_need_a_complete_graph() -> None:
    whole = graph(Node(label="dog", box=(0.1, 0.1, 0.2, 0.2)), Node(label="dog", box=(0.5, 0.1, 0.6, 0.2)))
    count = next(p for p in programs({}) if p.name == "count_object")
    context = Context(Rng("t"), 4, 0.2, False)
    assert [d.answers for d in count.make(whole, context)] == [("2",)]
    assert not list(count.make(replace(whole, complete=False), context))
    unsure = replace(whole, nodes=(replace(whole.nodes[0], sure=False), whole.nodes[1]))
    assert not list(count.make(unsure, context))


@pytest.mark.parametrize("axis", [0, 1])
def test_shadows_of_boxes(axis: int) -> None:
    a, b = (0.0, 0.0, 0.4, 0.4), (0.5, 0.0, 0.9, 0.4)
    assert apart(a, b) and apart(a, b, (axis,)) == (axis == 0)


def test_test_pictures_train_nothing_but_may_be_asked_about() -> None:
    picture = of_world(World(split="test", kinds={"scene": 1.0}, things=(3, 5), width=64, height=64)[0])
    engine = ProVision(ProVision.Config(several=("none",)))
    assert list(engine.instructions([picture]))
    with pytest.raises(UserError, match="test split"):
        engine.records([picture])


def test_records_are_written_read_and_trainable(made: list[Instruction], tmp_path: Path) -> None:
    chosen = [i.record() for i in made[:6] + made[-40:]]
    assert not any(validate(r) for r in chosen)
    path = write(chosen, tmp_path / "data")
    back = read(path)
    assert len(back) == len(chosen)
    for index in (0, len(chosen) - 1):
        record = back[index]
        assert len(record.images) == len(chosen[index].images) and record.messages[-1]["role"] == "assistant"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(list((path.parent / "images").iterdir())) == len({p for r in rows for p in r["images"]})
    with pytest.raises(UserError, match="no records"):
        write([], tmp_path / "none")


def test_a_model_trains_on_them(made: list[Instruction], tmp_path: Path) -> None:
    import torch

    from tessera.data.supervised import SupervisedData
    from tessera.recipes import nano
    from tessera.recipes.recipe import Recipe
    from tessera.training.run import build as built

    plan = nano.model(layers=1, width=16, heads=2, hidden=16)
    plan["parts"]["encoders"] = [{"kind": "conv_vit", "image_size": 32, "width": 24, "heads": 2, "depth": 1}]
    plan["parts"]["experts"] = {"kind": "single"}
    plan["parts"]["connector"] = {"kind": "linear"}
    model, processor = built(Recipe(name="tiny", about="", model=plan))
    chosen = [*made[:2], next(i for i in made if len(i.pictures) == 2)]
    data = SupervisedData(read(write((i.record() for i in chosen), tmp_path / "data")), processor, 3)
    batch = {k: v for k, v in data.batch(0).items() if isinstance(v, torch.Tensor)}
    model(**batch).loss.backward()
    assert not data.skipped.count and len(batch["pixel_values"]) == 4
    assert all(p.grad is not None for p in model.model.language_model.parameters())


def test_instructions_become_items_with_all_their_pictures(made: list[Instruction]) -> None:
    several = [i for i in made if len(i.pictures) == 2][:3]
    for item, instruction in zip(to_items(several), several, strict=True):
        images = item.sample.images()
        assert [np.array_equal(a, p.picture()) for a, p in zip(images, instruction.pictures, strict=True)] == [True, True]


def test_bad_options_are_refused() -> None:
    with pytest.raises(UserError, match=r"'relations'.*relation"):
        ProVision(ProVision.Config(single=("relations",)))
    for bad in ({"choices": 2.0}, {"options": 1}, {"pictures": 1}, {"phrasing": "new"}, {"pages": 1}):
        with pytest.raises(UserError):
            build(ProVision.Config, bad)
