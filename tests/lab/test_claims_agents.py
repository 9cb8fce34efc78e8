"""Claims of griffon, zoomeye, provision and of what leaks from a benchmark: exact ones hold, all arms are measured and judged."""

from __future__ import annotations

import importlib
from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tessera.data.dense import object_labels
from tessera.data.scene_graph import of_samples
from tessera.errors import TesseraError
from tessera.evaluation.grounding import Located
from tessera.lab import glimpses
from tessera.lab.conversations import conversations, trained_on
from tessera.lab.experiment import Exact, Experiment, Vary
from tessera.lab.judge import judge
from tessera.lab.local_lab import LocalLab
from tessera.lab.protocols import generated, leakage, locating, zooming
from tessera.lab.protocols.tiny import tiny_model
from tessera.world import World

PARTS = ("grounding.griffon", "agents.zoomeye", "engines.provision", "benchmarks.mmstar")
CLAIMS = {f"{part}:{c.id}": c for part in PARTS for c in importlib.import_module(f"tessera.claims.{part}").CLAIMS}
OURS = ("locating", "referents", "zooming", "generated questions", "engine data", "leaked questions")
SMALL = {"width": 64, "height": 64}
FEWER = {"pictures": 4, "steps": 2, "images": 2, "asked": 3, "rounds": 1, "per_axis": 1, "times": 4}


class Expert(torch.nn.Module):
    """Names patches by their colour, as no model would."""

    def __init__(self) -> None:
        super().__init__()
        labels = object_labels()
        self.head = torch.nn.Linear(3, len(labels))
        self.grid, self.encoder = (14, 14), SimpleNamespace(image_size=112)
        self.config = SimpleNamespace(id2label=dict(enumerate(labels)))
        torch.nn.init.zeros_(self.head.bias)
        self.head.weight.data = torch.linspace(-4, 4, 3 * len(labels)).view(-1, 3).cos() * 8

    def forward(self, pixel_values):
        patches = pixel_values.unflatten(3, (14, -1)).unflatten(2, (14, -1)).mean((3, 5)).flatten(2).mT
        return SimpleNamespace(logits=self.head(patches))


@pytest.fixture
def lab(tmp_path: Path) -> LocalLab:
    """A lab whose reference models are tiny, with random weights."""
    made = LocalLab(cache=tmp_path, threads=0)
    made._loaded |= {"object-expert": (Expert(), None)} | dict.fromkeys(("nano", "nano-glimpses"), tiny_model())
    return made


def small(protocol):
    changes = {name: value for name, value in FEWER.items() if hasattr(protocol, name)}
    if hasattr(protocol, "world"):
        changes["world"] = {**protocol.world, **SMALL}
    return replace(protocol, **changes)


@pytest.mark.parametrize("name", [name for name, claim in CLAIMS.items() if isinstance(claim, Exact)])
def test_exact_claims_hold(name: str, lab: LocalLab) -> None:
    checks = CLAIMS[name].run(lab).checks
    assert checks and all(checks.values()), checks


@pytest.mark.parametrize("name", [n for n, c in CLAIMS.items() if isinstance(c, Experiment) and c.protocol.name in OURS])
def test_every_arm_is_measured_on_the_same_units_and_judged(name: str, lab: LocalLab) -> None:
    experiment = replace(CLAIMS[name], protocol=small(CLAIMS[name].protocol))
    count = 2 if experiment.protocol.unit == "seed" else 3
    found = {arm: experiment.protocol.measure(lab, value, 0, 0, count) for arm, value in experiment.arms().items()}
    for outcomes in found.values():
        assert {len(totals) for totals, _ in outcomes.metrics.values()} == {count}
    effects = (experiment.primary, *experiment.valid_if, *experiment.secondary)
    sides = [found[arm].of(metric or experiment.metric) for effect in effects for arm, metric, _ in effect.terms]
    if not all(counts.sum() for _, counts in sides):  # random weights may say nothing that counts: then there is no effect
        with pytest.raises(TesseraError, match="nothing was counted"):
            judge(experiment, found, looks=1)
        return
    judged = judge(experiment, found, looks=1)
    assert judged.primary is not None and np.isfinite(judged.primary.value)


def test_ranks_are_the_area_under_the_curve() -> None:
    world = World(split="test", kinds={"scene": 1.0}, things=(2, 4), **SMALL)
    samples, rng = [world[i] for i in range(12)], np.random.default_rng(0)
    finds = []
    for sample in samples:
        right = [Located(t.name, t.box, float(rng.uniform(0.3, 1))) for t in sample.truth()]
        finds.append([*right, Located("no such thing", (0.0, 0.0, 1.0, 1.0), float(rng.uniform(0, 0.7)))])
    outcomes = locating.ranked(finds, samples, 0.5)
    scores = [(f.score, f.label != "no such thing") for each in finds for f in each]
    pairs = [(a > b) + (a == b) / 2 for a, hit in scores for b, other in scores if hit and not other]
    precision = outcomes.mean("precision")
    gain = outcomes.mean("precision by rank") - precision
    assert gain == pytest.approx(2 * precision * (1 - precision) * (np.mean(pairs) - 0.5)) != 0
    assert outcomes.mean("recall") == 1
    same = locating.ranked([[replace(f, score=1.0) for f in each] for each in finds], samples, 0.5)
    assert same.mean("precision by rank") == pytest.approx(precision)


def test_every_thing_is_hit_once() -> None:
    sample = World(split="test", kinds={"scene": 1.0}, things=(1, 1), **SMALL)[0]
    [thing] = sample.truth()
    outcomes = locating.ranked([[Located(thing.name, thing.box, 0.9)] * 3], [sample], 0.5)
    assert (outcomes.mean("recall"), outcomes.mean("precision")) == (1, pytest.approx(1 / 3))


def test_what_is_written_first_ranks_first_by_order_and_shuffled_scores_are_the_same_scores() -> None:
    finds = [[Located("dog", (0, 0, 1, 1), 0.1 * n + 0.01 * i) for i in range(3)] for n in range(4)]
    ordered = locating.in_order(finds)
    assert all([f.score for f in each] == sorted((f.score for f in each), reverse=True) for each in ordered)
    assert len({tuple(f.score for f in each) for each in ordered}) == 1
    assert [[replace(f, score=1.0) for f in each] for each in ordered] == [[replace(f, score=1.0) for f in e] for e in finds]
    mixed = locating.shuffled(finds, 0)
    scores, before = ([[f.score for f in each] for each in given] for given in (mixed, finds))
    assert scores != before and sorted(chain(*scores)) == sorted(chain(*before))
    assert scores != [[f.score for f in each] for each in locating.shuffled(finds, 1)], "another seed, another order"
    assert [[replace(f, score=1.0) for f in each] for each in mixed] == [[replace(f, score=1.0) for f in e] for e in finds]


def test_arms_of_referents_are_trained_as_much() -> None:
    from tessera.parts.grounding.griffon import Griffon

    protocol, part = small(locating.Referents()), Griffon(Griffon.Config(codec="hundredths"))
    own, none, shuffled = (protocol._train_data(part, how) for how in ("own", "none", "shuffled"))
    for mine, less, mixed in zip(own, none, shuffled, strict=True):
        assert mine[0].tobytes() == less[0].tobytes() == mixed[0].tobytes()
        assert abs(len(mine[1]) - len(less[1])) <= 2
        assert "nothing" in [a for _, a in mine[1]] and "nothing" not in [a for _, a in less[1]]
        assert [q for q, _ in mine[1]] == [q for q, _ in mixed[1]]
        assert Counter(a for _, a in mine[1]) == Counter(a for _, a in mixed[1])
    assert own != shuffled


def test_far_things_fill_a_small_part_of_the_picture_and_are_not_counted_twice() -> None:
    found = zooming.far_away(64, 4, 0, 5)
    assert [(n, q.text) for _, n, q in found[:3]] == [(n, q.text) for _, n, q in zooming.far_away(64, 4, 0, 3)]
    for picture, name, question in found:
        filled = (np.asarray(picture) != np.asarray(glimpses.GROUND)).any(-1)
        assert picture.size == (256, 256) and 0.02 < filled.mean() <= 1 / 16
        assert question.form == "open" and question.answer not in ("yes", "no") and name


def test_far_things_lie_anywhere_and_not_on_the_grid_of_a_search() -> None:
    places = []
    for picture, _, _ in zooming.far_away(64, 4, 0, 12):
        filled = (np.asarray(picture) != np.asarray(glimpses.GROUND)).any(-1)
        places += [int(np.nonzero(filled)[axis].min()) for axis in (0, 1)]
    assert sum(place % 64 > 8 for place in places) > len(places) / 2
    assert len(set(places)) > 18 and min(places) < 64 and max(places) > 128


def test_a_search_that_is_told_the_truth_looks_at_the_thing(lab: LocalLab, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def oracle(agent, interface, picture, name):
        filled = (np.asarray(picture) != np.asarray(glimpses.GROUND)).any(-1)
        rows, columns = np.nonzero(filled)

        def confidence(node, kind, about):
            left, top, wide, high = node.region
            inside = left <= columns.mean() < left + wide and top <= rows.mean() < top + high
            found = 1.0 if inside and (kind != "answering" or wide <= 64) else -1.0
            seen.append((node.depth, kind, found))
            return found

        return confidence

    monkeypatch.setattr(zooming, "asked", oracle)
    outcomes = zooming.Zooming(times=8).measure(lab, Vary("search", look="search"), 0, 0, 3)
    assert outcomes.mean("visits") > 1
    assert any(kind == "answering" and found > 0 and depth > 0 for depth, kind, found in seen)


def test_glimpses_hold_something_where_the_answer_is_yes() -> None:
    rows = glimpses.rows(0, 12, 64)
    views = [(np.asarray(image), answer) for [image], question, answer in rows if question == glimpses.ANYTHING]
    assert len(rows) == 12 and [answer for _, answer in views] == ["no", "yes"] * 3
    assert all((view != glimpses.GROUND).any() == (answer == "yes") for view, answer in views)
    assert rows[0][1] != glimpses.rows(1, 12, 64)[0][1] or rows[0][0][0].tobytes() != glimpses.rows(1, 12, 64)[0][0][0].tobytes()


def test_shuffled_answers_are_those_of_other_questions() -> None:
    from tessera.parts.engines.provision import ProVision

    world = World(split="train", kinds={"scene": 1.0}, things=(3, 5), **SMALL)
    made = list(ProVision(ProVision.Config(several=("none",))).instructions(of_samples(world[i] for i in range(12))))
    changed = generated.reanswered(made)
    assert [i.question.text for i in changed] == [i.question.text for i in made]
    assert all(i.question.answer in i.question.choices for i in changed if i.question.choices)
    assert sum(generated.wrong("provision", i) for i in changed) > len(made) / 4
    assert not any(generated.wrong("provision", i) for i in made)


def test_most_frequent_answers_are_one_for_each_program() -> None:
    from tessera.parts.engines.provision import ProVision

    world = World(split="test", kinds={"scene": 1.0}, things=(3, 5), **SMALL)
    engine = ProVision(ProVision.Config(single=("relation", "leftmost_object"), several=("none",), choices=0.0))
    made = list(engine.instructions(of_samples(world[i] for i in range(12))))
    usual = generated.most_frequent(made)
    assert [i.question.text for i in usual] == [i.question.text for i in made]
    for program in ("relation", "leftmost_object"):
        [said] = {i.question.answer for i in usual if i.question.type == program}
        counts = Counter(i.question.answer for i in made if i.question.type == program)
        assert counts[said] == max(counts.values())


def test_mislabelled_graphs_keep_boxes_and_relations() -> None:
    world = World(split="test", kinds={"scene": 1.0}, things=(3, 5), **SMALL)
    pictures = of_samples(world[i] for i in range(6))
    changed = generated.mislabelled(pictures)
    for before, after in zip(pictures, changed, strict=True):
        assert before.graph.edges == after.graph.edges
        assert [n.box for n in before.graph.nodes] == [n.box for n in after.graph.nodes]
        assert sorted(before.graph.labels()) == sorted(after.graph.labels())
    assert any(b.graph.labels() != a.graph.labels() for b, a in zip(pictures, changed, strict=True))


def test_arms_of_engine_data_share_pictures_and_half_of_the_questions() -> None:
    protocol = small(generated.EngineData(programs=("relation", "count_object")))
    base, engine, shuffled = (protocol._train_data(how) for how in generated.DATA)
    assert base[::2] == engine[::2] == shuffled[::2]
    assert all(b[1] != e[1] for b, e in zip(base[1::2], engine[1::2], strict=True))
    assert [q for _, turns in engine for q, _ in turns] == [q for _, turns in shuffled for q, _ in turns]
    train_phrases = {q for _, turns in engine[1::2] for q, _ in turns}
    asked = {q for _, turns in protocol._tests()["accuracy"] for q, _ in turns}
    assert asked and not asked & train_phrases


def test_leaked_questions_are_those_of_the_benchmark_and_clean_ones_are_not() -> None:
    protocol = small(leakage.Leaked())
    asked = {q.text for item in protocol._benchmark("val").items() for q in item.questions}
    leaked, clean = ({q for _, turns in protocol._train_data(data) for q, _ in turns} for data in ("leaked", "clean"))
    assert leaked == asked and len(clean - asked) > len(clean) * 0.8
    assert len(protocol._train_data("leaked")) == len(protocol._train_data("clean"))


def test_training_changes_the_model_but_not_the_reference_nor_its_encoders(lab: LocalLab) -> None:
    model, processor = lab.reference("nano")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    picture = World(split="train", **SMALL)[0].images()[0]
    pool = conversations(model, processor, [(picture, []), (picture, [("Is there a dog?", "yes"), ("Is there a cat?", "no")])])
    assert len(pool.asked) == 1 and len(pool.questions) == 2 and len(pool.seen) == 1
    first, again = (trained_on(lab, "nano", pool, seed=0, steps=2, images=1)[0] for _ in range(2))
    changed = {name for name, value in first.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and not any("encoder" in name for name in changed)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in first.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in lab.reference("nano")[0].state_dict().items())


@pytest.mark.parametrize(
    ("protocol", "arm"),
    [
        (locating.Locating(), Vary("x", scores="best")),
        (locating.Referents(), Vary("x", scores="tokens")),
        (zooming.Zooming(), Vary("x", look="away")),
        (generated.Generated(programs=("relation",)), Vary("x", graph="drawn")),
        (generated.EngineData(programs=("relation",)), Vary("x", graph="truth")),
        (leakage.Leaked(), Vary("x", data="stolen")),
    ],
)
def test_unknown_settings_are_refused(protocol, arm: Vary, lab: LocalLab) -> None:
    with pytest.raises(TesseraError, match="an arm.s .* is one of"):
        protocol.measure(lab, arm, 0, 0, 1)
