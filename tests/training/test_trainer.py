from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.training.toy import ToyVLM, collate, data, losses, records, settings, train
from torch import Tensor, nn

from tessera.errors import TesseraError, UserError
from tessera.training.data import Batches, sample_numbers
from tessera.training.log import Event
from tessera.training.plan import OptimConfig, Stage, TrainConfig
from tessera.training.trainer import Trainer


def test_it_learns_and_logs(tmp_path: Path) -> None:
    config = settings(40, optim=OptimConfig(lr=3e-2))
    train(tmp_path, config)
    found = records(tmp_path)
    assert [record["step"] for record in found] == list(range(1, 41))
    curve = losses(tmp_path)
    assert sum(curve[-5:]) < 0.8 * sum(curve[:5])
    assert found[-1]["samples"] == 160 and found[-1]["tokens"] == 160 * 8 and found[-1]["stage"] == "train"
    assert {"lr", "grad_norm", "questions", "seconds", "tokens_per_second"} <= found[0].keys()


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_accumulation_equals_the_big_batch(tmp_path: Path, kind: Any) -> None:
    """The weights of the micro-batches differ, so a mean of means would not do."""
    models = []
    for accumulation in (1, 2, 3):
        config = settings(accumulation=accumulation, optim=OptimConfig(kind=kind, lr=1e-2))
        models.append(train(tmp_path / str(accumulation), config, ToyVLM(dropout=0.0)))
    for accumulation in (2, 3):
        assert losses(tmp_path / str(accumulation)) == pytest.approx(losses(tmp_path / "1"), rel=1e-5)
    for first, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(first, other, atol=2e-4, rtol=1e-3)


def test_a_plan_freezes_bit_for_bit_and_trains_the_rest(tmp_path: Path) -> None:
    modes: set[tuple[bool, bool, bool]] = set()

    class Watched(ToyVLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            modes.add((self.encoder.training, self.connector.training, self.blocks.training))
            return super().forward(*args, **kwargs)

    model = Watched()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    stages = [Stage(name="align", steps=3, train={"connector": 1.0})]
    train(tmp_path / "one", settings(stages=stages), model)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"connector.weight", "connector.bias"}
    assert modes == {(False, True, False)}
    assert all(p.requires_grad and p.grad is None for p in model.parameters())

    stages.append(Stage(name="instruct", steps=3, train={"*": 1.0, "encoders.*": 0.0}))
    events: list[Event] = []
    train(tmp_path / "two", settings(stages=stages), model, on_event=events.append)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if not name.startswith("encoder.")}
    assert [r["stage"] for r in records(tmp_path / "two")] == ["align"] * 3 + ["instruct"] * 3
    assert sum(event.kind == "stage" for event in events) == 2


def test_the_innermost_socket_decides(tmp_path: Path) -> None:
    class Nested(ToyVLM):
        def sockets(self) -> dict[str, nn.Module]:
            return {"coupling": self.blocks, **super().sockets()}

    model = Nested()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(tmp_path, settings(stages=[Stage(steps=2, train={"coupling": 1.0})]), model)
    assert {n for n, p in model.named_parameters() if not torch.equal(p, before[n])} == {
        n for n in before if n.startswith("blocks.")
    }


def test_a_multiplier_scales_the_rate(tmp_path: Path) -> None:
    moved = []
    for rate in (1.0, 0.1):
        model = ToyVLM(dropout=0.0)
        before = model.connector.bias.detach().clone()
        train(tmp_path / str(rate), settings(stages=[Stage(steps=1, train={"connector": rate})]), model)
        moved.append((model.connector.bias - before).abs().max().item())
    assert moved[1] == pytest.approx(0.1 * moved[0], rel=1e-3)


def test_parameters_that_were_frozen_before_stay_frozen(tmp_path: Path) -> None:
    model = ToyVLM()
    model.connector.requires_grad_(False)
    before = model.connector.weight.detach().clone()
    train(tmp_path, settings(2), model)
    assert torch.equal(before, model.connector.weight) and not model.connector.weight.requires_grad


def test_a_module_without_sockets_and_with_a_plain_loss(tmp_path: Path) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 1)

        def forward(self, pixel_values: Tensor) -> Any:
            return SimpleNamespace(loss=self.linear(pixel_values.mean((2, 3))).square().mean() + 1)

    config = settings(3, batch_size=4, accumulation=2)
    source = Batches(lambda indices: {"pixel_values": collate(indices)["pixel_values"]}, config)
    model = Plain()
    Trainer(model, source, config, tmp_path).run()
    assert all(1 <= loss < 3 for loss in losses(tmp_path)) and records(tmp_path)[-1]["samples"] == 12


class Spoiled(Batches):
    """Data whose loss is not finite at some steps."""

    def __init__(self, config: TrainConfig, steps: set[int]) -> None:
        super().__init__(collate, config)
        self.steps = steps

    def batch(self, step: int, rank: int, world_size: int, micro: int) -> dict[str, Any]:
        batch = super().batch(step, rank, world_size, micro)
        if step in self.steps:
            batch["pixel_values"][0, 0, 0, 0] = float("nan")
        return batch


def test_a_batch_without_finite_loss_is_skipped_and_counted(tmp_path: Path) -> None:
    config, events = settings(6), list[Event]()
    model = ToyVLM()
    result = Trainer(model, Spoiled(config, {1, 2, 4}), config, tmp_path, on_event=events.append).run()
    assert result.skipped == 3
    assert [r["loss"] is None for r in records(tmp_path)] == [False, True, True, False, True, False]
    assert [e.step for e in events if e.kind == "skipped"] == [2, 3, 5]
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_three_in_a_row_stop_with_the_checkpoint_intact(tmp_path: Path) -> None:
    config = settings(9, save_every=2)
    with pytest.raises(TesseraError, match=r"loss of step 6 is not finite.*lower learning rate"):
        Trainer(ToyVLM(), Spoiled(config, {3, 4, 5}), config, tmp_path).run()
    assert json.loads((tmp_path / "checkpoint" / "state.json").read_text())["step"] == 4


def test_a_batch_without_labels_is_said_to_have_nothing_to_learn(tmp_path: Path) -> None:
    config, events = settings(2), list[Event]()

    def blank(indices: Any) -> dict[str, Any]:
        return collate(indices) | {"loss_weights": torch.zeros(len(indices), 8)}

    Trainer(ToyVLM(), Batches(blank, config), config, tmp_path, on_event=events.append).run()
    assert "nothing to learn" in next(e.text for e in events if e.kind == "skipped")


def test_evaluations_see_eval_mode_and_do_not_disturb_training(tmp_path: Path) -> None:
    train(tmp_path / "plain", settings())
    config, seen = settings(), list[int]()
    model = ToyVLM()
    trainer = Trainer(model, data(config), config, tmp_path / "evaluated")

    def evaluate(module: nn.Module) -> dict[str, float]:
        assert module is model and not module.training and not torch.is_grad_enabled()
        torch.rand(7)  # draws from the global generator
        seen.append(trainer.step)
        return {"accuracy": 0.5}

    trainer.every(2, evaluate)
    trainer.run()
    assert seen == [2, 4, 6] and losses(tmp_path / "evaluated") == losses(tmp_path / "plain")
    found = [r for r in records(tmp_path / "evaluated") if "evaluation" in r]
    assert found[0] == {"step": 2, "evaluation": {"accuracy": 0.5}}


def test_compilation_that_fails_falls_back_with_a_notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path / "eager", settings(3))

    def broken(module: nn.Module) -> Any:
        def call(**inputs: Any) -> Any:
            raise RuntimeError("no compiler here\nlong story")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    events: list[Event] = []
    train(tmp_path / "compiled", settings(3, compile="on"), on_event=events.append)
    notices = [e.text for e in events if "torch.compile failed" in e.text]
    assert len(notices) == 1 and "no compiler here" in notices[0] and "long story" not in notices[0]
    assert losses(tmp_path / "compiled") == losses(tmp_path / "eager")


def test_an_error_of_the_model_is_not_blamed_on_compilation(tmp_path: Path) -> None:
    config = settings(3, compile="off")
    source = Batches(lambda indices: collate(indices) | {"labels": torch.zeros(1)}, config)
    with pytest.raises(IndexError):
        Trainer(ToyVLM(), source, config, tmp_path).run()


def test_bf16_autocast_keeps_float32_weights(tmp_path: Path) -> None:
    model = ToyVLM().bfloat16()
    train(tmp_path, settings(3, precision="bf16"), model)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert losses(tmp_path)[-1] > 0


def test_precision_auto_is_measured_and_said(tmp_path: Path) -> None:
    events: list[Event] = []
    train(tmp_path, settings(1, precision="auto"), on_event=events.append)
    assert any("GFLOPS in float32" in e.text for e in events)
    assert json.loads((tmp_path / "checkpoint" / "state.json").read_text())["precision"] in ("bf16", "fp32")


@pytest.mark.parametrize("workers", [0, 2])
def test_the_data_error_reaches_the_user_as_it_was(tmp_path: Path, workers: int) -> None:
    config = settings(3, workers=workers)

    def bad(indices: Any) -> dict[str, Any]:
        raise UserError("row 7: the image is missing.")

    with pytest.raises(UserError, match=r"^row 7: the image is missing.$"):
        Trainer(ToyVLM(), Batches(bad, config), config, tmp_path).run()


def test_worker_processes_give_the_same_run(tmp_path: Path) -> None:
    train(tmp_path / "thread", settings(4))
    train(tmp_path / "processes", settings(4, workers=2, prefetch=2))
    assert losses(tmp_path / "processes") == losses(tmp_path / "thread")


def test_slices_make_up_the_step_however_it_is_divided() -> None:
    for world_size, accumulation in [(1, 1), (2, 1), (1, 3), (3, 2)]:
        config = TrainConfig(batch_size=7, accumulation=accumulation)
        found = [
            number
            for micro in range(accumulation)
            for rank in range(world_size)
            for number in sample_numbers(5, rank, world_size, micro, config)
        ]
        assert found == list(range(35, 42))


def test_finite_data_comes_in_epochs_of_new_order() -> None:
    config = TrainConfig(batch_size=4)
    source = Batches(list, config, length=10)  # type: ignore[arg-type]
    drawn: list[int] = [i for step in range(5) for i in source.indices(step, 0, 1, 0)]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10)) and drawn[:10] != drawn[10:]
    assert source.finite and not Batches(collate, config).finite


def test_plans_that_do_not_fit_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "run"
    for config, sentence in [
        (settings(stages=[Stage(train={"encoder.0": 1.0})]), "encoders.0"),
        (settings(stages=[Stage(steps=0)]), "0 steps"),
        (settings(batch_size=2, accumulation=4), "micro-batches"),
    ]:
        with pytest.raises(UserError, match=sentence):
            train(out, config)
    assert not out.exists()


def test_tensorboard_is_optional(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(tmp_path, settings(4, tensorboard=True, log_every=2))
    assert list((tmp_path / "tensorboard").glob("events*"))
