"""Measurements that claims share: dropping tokens, prefills, answers, further training, what stands around a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.lab.tiny_lab import SIDE, saved, tiny

from tessera.bench.tokens import Shape
from tessera.lab.instruments.exact import best, places, prefilled, same
from tessera.lab.instruments.trials import Trial, asked, dropping, prefill, yes_rate
from tessera.lab.instruments.tune import batch_of, tuned, world_rows
from tessera.lab.instruments.views import ByAgent, ThroughViews
from tessera.lab.lab import Lab
from tessera.models import reference


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    made = Lab(cache=tmp_path)
    made.seeds = (0, 1)
    return made


def test_a_trial_says_what_is_kept_lost_and_ahead() -> None:
    trial = Trial(seeds=(0, 1), whole=[0.8, 0.6], part=[0.7, 0.56], control=[0.4, 0.3], shape="s")
    assert trial.kept == pytest.approx(0.9) and trial.left == pytest.approx(0.5)
    assert trial.lost == pytest.approx(7) and trial.ahead == pytest.approx(28)
    found = trial.finding({"a": True}, note="n", more={"x": 1.0})
    assert found.baseline == {"accuracy": pytest.approx(0.7)} and found.measured["x"] == 1 and found.seeds == (0, 1)
    assert found.spread["control accuracy"] == pytest.approx(0.0707, abs=1e-4) and found.note == "n"


def test_of_nothing_nothing_is_kept() -> None:
    trial = Trial(seeds=(0,), whole=[0.0], part=[0.0], control=[0.0], shape="")
    assert trial.kept == 0 and trial.finding({}).baseline == {"accuracy": 0}


def test_dropping_asks_every_seed_three_times(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, Any]] = []

    def evaluate(model: Any, processor: Any, **options: Any) -> Any:
        calls.append((options["seed"], options["plug"]))
        return type("Result", (), {"accuracy": 0.5})()

    monkeypatch.setattr(lab, "evaluate", evaluate)
    trial = dropping(lab, "fopru", {"keep": 0.25}, control={"keep": (0.25,)}, model=tiny())
    assert trial.whole == trial.part == trial.control == [0.5, 0.5]
    assert calls[:4] == [(0, None), (1, None), (0, {"fopru": {"keep": 0.25}}), (1, {"fopru": {"keep": 0.25}})]
    assert calls[4:] == [(s, {"random": {"keep": (0.25,), "seed": s}}) for s in (0, 1)], "the control's chance is seeded"


def test_a_prefill_is_counted_and_timed(lab: Lab) -> None:
    shape = Shape(layers=2, width=64, intermediate=128, heads=1, patches=8, tower_layers=2, tower_width=64, text_tokens=16)
    saving = prefill(lab, "uniform", {"keep": (0.25,)}, shape, rounds=1)
    assert saving.before == 80 and saving.tokens == [32, 32] and saving.flops > 1
    found = saving.finding({"x": True})
    assert found.measured["tokens a layer"] == 32 and "2 layers of width 64" in found.shape


def test_every_question_has_its_outcome_and_yes_is_counted(lab: Lab) -> None:
    model, processor = tiny()

    class Says:
        def __init__(self, text: str) -> None:
            self.text = text

        def answer_batch(self, rows: Any, max_new_tokens: int) -> Any:
            return [[type("A", (), {"text": self.text})() for _ in questions] for _, questions in rows]

    for text, rate in (("yes", 1.0), ("no", 0.0)):
        result = lab.evaluate(model, processor, types=("existence",), n=30, answers=Says(text))
        assert all(right == (question.answer == text) for question, right in asked(result))
        assert len(asked(result)) == 30 and yes_rate(result) == rate


def test_best_and_places() -> None:
    assert best([0, 1, 2, 3], torch.tensor([1.0, 3.0, 3.0, 0.0]), 2) == [1, 2]
    with prefilled("llava", "random", {"keep": (0.5,)}, (1,)) as (host, sequence):
        (row,) = places(sequence, 0)
        assert len(row) == 32 and row == sorted(row) and host.parts
    assert same({"a": False}, b_c=1.0).measured == {"b c differs by": 1.0}


# Further training


def test_rows_are_one_question_a_scene_and_the_same_every_time() -> None:
    rows = world_rows(0, 1, 3)
    again = world_rows(0, 1, 3)
    assert len(rows) == 3 and [r[1:] for r in rows] == [r[1:] for r in again]
    assert [r[1:] for r in rows] != [r[1:] for r in world_rows(0, 2, 3)] != [r[1:] for r in world_rows(1, 1, 3)]


def test_only_answers_bear_labels() -> None:
    _, processor = tiny()
    (pictures, question, answer), *_ = world_rows(0, 0, 1)
    batch = batch_of(processor, [(pictures, question, answer), (pictures, question + " now", answer)])
    labelled = batch["input_ids"][0][batch["labels"][0] != -100].tolist()
    assert labelled == processor.answer_ids(answer)
    assert batch["pixel_values"].shape == (2, 3, SIDE, SIDE)
    assert int(batch["attention_mask"].sum()) < batch["attention_mask"].numel(), "the shorter row is padded"


def test_a_model_learns_on_with_a_part_in_it(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path / "nano")
    monkeypatch.setattr(reference, "reference_folder", lambda name: folder)
    plugs: list[Any] = [{}, {"m3": {"factor": 2}}]
    first = tuned(lab, plugs, steps=2, batch=2)
    assert lab.used == {"nano"} and lab.saved == 0
    start = tiny()[0]
    changed = {n for (n, a), b in zip(first.named_parameters(), start.parameters(), strict=True) if not torch.equal(a, b)}
    assert changed and not [n for n in changed if "encoders" in n], "encoders stay as they are"
    again = tuned(lab, plugs, steps=2, batch=2)
    assert lab.saved > 0 and all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    other = tuned(lab, [{}], steps=2, batch=2)
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


# Around a model


def test_a_cutter_shows_all_views_of_all_pictures() -> None:
    shown: list[Any] = []

    class Model:
        def answer_batch(self, rows: Any, max_new_tokens: int) -> Any:
            shown.extend(rows)
            return [["said"] * len(asked) for _, asked in rows]

    class Halves:
        def views(self, image: int) -> Any:
            return [type("View", (), {"image": (image, half)})() for half in (0, 1)]

    found = ThroughViews(Model(), Halves()).answer_batch([([1], ["a", "b"]), ([2, 3], ["c"])], 4)  # type: ignore[list-item]
    assert shown == [([(1, 0), (1, 1)], ["a", "b"]), ([(2, 0), (2, 1), (3, 0), (3, 1)], ["c"])]
    assert found == [["said", "said"], ["said"]]


def test_an_agent_is_asked_every_question() -> None:
    class Agent:
        def answer(self, eye: str, image: str, question: str) -> Any:
            return type("Zoomed", (), {"text": f"{eye} {image} {question}"})()

    found = ByAgent("eye", Agent()).answer_batch([(["dog"], ["q", "r"])], 4)  # type: ignore[arg-type,list-item]
    assert [[a.text for a in row] for row in found] == [["eye dog q", "eye dog r"]]
