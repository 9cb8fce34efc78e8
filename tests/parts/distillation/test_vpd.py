from __future__ import annotations

import pytest
import torch
from tests.training.small import made, small

from tessera.config import build
from tessera.errors import UserError
from tessera.evaluation.scoring import normalise
from tessera.parts.distillation.vpd import EXPLAIN, VPD, attempt
from tessera.parts.distillation.vpd.programs import LONGEST, Grammar, parse, run, understood
from tessera.parts.distillation.vpd.rationale import rationale
from tessera.parts.distillation.vpd.tools import TOOLS, Failed, Tools
from tessera.world import World
from tessera.world.rng import Rng

WORLD = World(split="train", width=64, height=64, kinds={"scene": 1.0}, things=(2, 5))


def test_meant_programs_answer_every_question_that_is_understood() -> None:
    asked = 0
    for index in range(30):
        sample = WORLD[index]
        for question in sample.questions():
            program = Grammar().meant(question.text)
            assert (program is None) == (question.asked("op") in ("box", "at_box", "background", "style", "read", "read_colour"))
            if program is not None:
                answer, trace = run(program, Tools(sample, 0.0, Rng("x")))
                assert normalise(answer) == normalise(question.answer), (question.text, program)
                assert rationale(trace).lower().rstrip(".").endswith(answer.lower())
                asked += 1
    assert asked > 150


@pytest.mark.parametrize(
    "text",
    [
        "",
        "import os",
        "answer = count",
        "answer = count(find('dog'))",
        "answer = count(a)",
        "answer = eval('1')",
        "answer = find('dog')",
        "answer = find(1)",
        "a = find('dog'); answer = count(a, a)",
        "answer = [x for x in ()]",
        "a.b = everything()",
        "a = everything()\nanswer = count(things=a)",
        "a = everything()\n" * (LONGEST + 1),
        "answer = in_region(a, 'moon')",
        "(" * 300,
        "a = everything()\nb = in_region(a, 'top moon')\nanswer = count(b)",
    ],
)
def test_what_is_no_program_fails_and_does_nothing(text: str) -> None:
    with pytest.raises(Failed):
        run(text, Tools(WORLD[0], 0.0, Rng("x")))


def test_only_tools_can_be_called() -> None:
    assert {line[1] for line in parse("a = find('x')\nanswer = count(a)")} <= set(TOOLS)
    with pytest.raises(Failed, match="no tool"):
        run("answer = __import__('os')", Tools(WORLD[0], 0.0, Rng("x")))


def test_tools_err_as_often_as_they_are_told() -> None:
    sample = next(WORLD[i] for i in range(50) if len(WORLD[i].truth()) >= 3)
    rng = Rng("noise")
    for noise in (0.0, 0.15, 1.0):
        tools = Tools(sample, noise, rng)
        wrong = sum(tools.call("everything", ()) != tools.things for _ in range(2000)) / 2000
        assert wrong == pytest.approx(noise, abs=0.03)
        name = tools.things[0].name
        truth = tuple(t for t in tools.things if t.name == name)
        assert sum(tools.call("find", (name,)) != truth for _ in range(2000)) / 2000 == pytest.approx(noise, abs=0.03)


def test_temperature_spreads_the_grammars_choices() -> None:
    question = "How many objects are left of the dog?"
    assert set(Grammar().propose(question, 20, 0.0, Rng("x"))) == {Grammar().meant(question)}
    share = sum(p == Grammar().meant(question) for p in Grammar().propose(question, 2000, 0.5, Rng("x"))) / 2000
    e = 2.718281828**2
    assert share == pytest.approx(e / (e + 3) * e / (e + 5), abs=0.04)
    assert Grammar().propose("Who are you?", 5, 0.5, Rng("x")) == [] and understood("Who are you?") is None


def test_kept_programs_are_right_and_unfiltered_ones_are_the_first() -> None:
    for index in range(10):
        sample = WORLD[index]
        for question in sample.questions():
            tried = attempt(sample, question, Rng("t", index, question.text), proposer=Grammar())
            if tried.program is not None:
                assert normalise(str(tried.trace[-1].result)) == normalise(question.answer)
                assert normalise(question.answer) in map(normalise, tried.answers)
            loose = attempt(sample, question, Rng("t", index, question.text), proposer=Grammar(), filtered=False)
            assert (loose.program is not None) == bool(loose.answers)
            assert loose.program is None or loose.trace[-1].result == loose.answers[0]


def test_batches_hold_answers_and_rationales_and_weigh_each_once() -> None:
    model, processor = made(small())
    part = VPD(VPD.Config(questions=3))
    batch = part.collate([WORLD], processor, 3)(range(3))
    text = processor.tokenizer.decode(batch["input_ids"][0])
    explained = batch["explains"]
    assert explained.any() and EXPLAIN.replace(" ", "") in text.replace(" ", "")
    loss = part.loss(model, batch, None)
    assert float(loss.loss_weight) == 9
    assert float(loss.numbers["explained"]) == explained.sum()
    total = loss.numbers["answer"] + loss.numbers["rationale"]
    assert float(total) == pytest.approx(float(loss.loss_sum.detach()), rel=1e-6)
    plain = VPD(VPD.Config(rationales=False)).collate([WORLD], processor, 3)(range(3))
    assert not plain["explains"].any()
    assert torch.isfinite(VPD(VPD.Config()).loss(model, plain, None).loss_sum)


@pytest.mark.parametrize("options", [{"programs": 0}, {"noise": 1.5}, {"temperature": -1.0}, {"questions": 0}])
def test_bad_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UserError):
        build(VPD.Config, options)
