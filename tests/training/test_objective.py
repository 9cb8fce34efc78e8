"""The seam between the trainer and objectives or tunings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.small import PLAN, made, small
from tests.training.toy import Killed, ToyVLM, data, kill_after, losses, records, settings
from torch import Tensor, nn

from tessera.config import config, set_path
from tessera.errors import TesseraError, UserError
from tessera.models import reference
from tessera.training.objective import Frozen, Loss, Objective, Subject, encoded, objective_named, tuning_named, unwrapped
from tessera.training.plan import Stage, TrainConfig
from tessera.training.run import run
from tessera.training.trainer import Trainer
from tessera.training.tuning import FOLDER, Tuning


class Pull(Objective):
    """The toy's own loss, and a head that learns to follow its reference's embedding."""

    wants_reference = True

    @config
    class Config:
        strength: float = 1.0

    def prepare(self, model: nn.Module, processor: Any) -> None:
        torch.manual_seed(1)
        self.head = nn.Linear(16, 16)

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor], reference: nn.Module | None) -> Loss:
        assert reference is not None and not reference.training
        output = model(**batch)
        ids = batch["input_ids"]
        far = self.head(model.embedding(ids)) - reference.embedding(ids)  # type: ignore[operator]
        pull = self.config.strength * far.square().sum()
        return Loss(output.loss_sum + pull, output.loss_weight, {"pull": pull.detach(), "words": output.loss_weight * 2})


def subject(dropout: float = 0.0) -> Subject:
    model = ToyVLM(dropout=dropout)
    objective = Pull(Pull.Config())
    objective.prepare(model, None)
    return Subject(model, objective, reference=model)


def trained(out: Path, config: TrainConfig, made: Subject | None = None, **how: Any) -> Subject:
    made = made or subject()
    Trainer(made, data(config), config, out, **how).run()
    return made


def test_an_objective_trains_with_its_head_and_logs_its_numbers(tmp_path: Path) -> None:
    begin = subject()
    made = trained(tmp_path, settings(4))
    assert made.objective is not None
    for name, before, after in zip(*_compared(begin, made), strict=True):
        assert not torch.equal(before, after), name
    found = records(tmp_path)
    assert [r["words"] for r in found] == pytest.approx([2.0] * 4)
    assert all(0 < r["pull"] < r["loss"] for r in found)
    assert set(made.sockets()) == {"encoders.0", "connector", "language_model", "objective"}
    assert unwrapped(made) is made.model and unwrapped(made.model) is made.model


def _compared(first: nn.Module, second: nn.Module) -> tuple[list[str], list[Tensor], list[Tensor]]:
    names = [name for name, _ in first.named_parameters()]
    return names, list(first.parameters()), list(second.parameters())


def test_the_reference_stays_as_it_was_and_is_not_saved(tmp_path: Path) -> None:
    made = trained(tmp_path, settings(3))
    assert made.reference is not None
    start = ToyVLM()
    for before, after in zip(start.parameters(), made.reference.held.parameters(), strict=True):
        assert torch.equal(before, after) and not after.requires_grad
    assert not any("reference" in name for name, _ in made.named_parameters())
    assert not any("reference" in name for name in made.state_dict())
    assert made.to(torch.float64).reference.held.embedding.weight.dtype == torch.float64  # type: ignore[union-attr]


def test_micro_batches_of_an_objective_add_up_to_the_whole_batch(tmp_path: Path) -> None:
    for accumulation in (1, 2):
        trained(tmp_path / str(accumulation), settings(accumulation=accumulation))
    first, second = (records(tmp_path / name) for name in ("1", "2"))
    for key in ("loss", "pull", "words"):
        assert [r[key] for r in first] == pytest.approx([r[key] for r in second], rel=1e-5)


def test_a_run_with_an_objective_resumes_exactly(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", settings(6, save_every=2), subject(0.1))
    config = settings(6, save_every=2)
    with pytest.raises(Killed):
        trained(tmp_path / "broken", config, subject(0.1), on_event=kill_after(3))
    again = trained(tmp_path / "broken", config, subject(0.1))
    assert losses(tmp_path / "broken")[-2:] == losses(tmp_path / "whole")[-2:]
    for before, after in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(before, after)


def test_a_run_with_another_objective_or_reference_does_not_resume(tmp_path: Path) -> None:
    trained(tmp_path, settings(4, save_every=2, stages=[Stage(steps=4)]))
    other = subject()
    other.objective.config.strength = 2.0  # type: ignore[union-attr]
    with pytest.raises(UserError, match="strength"):
        trained(tmp_path, settings(4, save_every=2), other)
    moved = ToyVLM(dropout=0.0)
    with torch.no_grad():
        moved.connector.weight.add_(1.0)
    objective = Pull(Pull.Config())
    objective.prepare(moved, None)
    with pytest.raises(UserError, match="frozen"):
        trained(tmp_path, settings(4, save_every=2), Subject(ToyVLM(dropout=0.0), objective, reference=moved))


def test_evaluations_see_the_bare_model(tmp_path: Path) -> None:
    seen: list[nn.Module] = []
    config = settings(2)
    made = subject()
    trainer = Trainer(made, data(config), config, tmp_path)
    trainer.every(1, lambda model: seen.append(model))  # type: ignore[func-returns-value]
    trainer.run()
    assert seen == [made.model, made.model]


def test_an_objective_that_wants_a_reference_gets_one() -> None:
    with pytest.raises(TesseraError, match="wants a reference"):
        Subject(ToyVLM(), Pull(Pull.Config()))


def test_a_frozen_module_has_no_gradients_and_no_parameters() -> None:
    linear = nn.Linear(2, 2)
    held = Frozen(linear)
    assert not list(held.parameters()) and not held.state_dict()
    assert not held(torch.ones(1, 2, requires_grad=True)).requires_grad
    held.train()
    assert not held.held.training
    linear.weight.data.zero_()
    assert held.held.weight.any()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"kind": "povit"}, "povid"),
        ({"kind": "arcana"}, "arcana"),
        ({}, "kind"),
        ({"kind": "povid", "betta": 1.0}, "beta"),
        ({"kind": "povid", "beta": "much"}, "beta"),
        ({"kind": "povid", "beta": 0.0}, "positive"),
    ],
)
def test_unknown_objectives_are_refused_with_a_sentence(spec: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        objective_named(spec)


def test_unknown_tunings_are_refused_with_a_sentence() -> None:
    with pytest.raises(UserError, match="arcana"):
        tuning_named({"kind": "arcane"})
    with pytest.raises(UserError, match="rank"):
        tuning_named({"kind": "arcana", "rank_text": -1})


def test_a_tuning_that_cannot_be_merged_says_so() -> None:
    class Fixed(Tuning):
        put_in = take_out = off = save = None  # type: ignore[assignment]

    with pytest.raises(UserError, match="cannot be merged"):
        Fixed().merge()


@pytest.mark.parametrize("kind", ["povid", "s_vco", "vpd", "locality_alignment"])
def test_recipes_train_by_objectives(kind: str, tmp_path: Path) -> None:
    found = small("nano_clip" if kind == "locality_alignment" else "nano", steps=2, train={"*": 1.0}, objective={"kind": kind})
    if kind != "locality_alignment":
        found.training.stages[0].train = dict(PLAN)
    result, model, _ = run(found, tmp_path)
    assert result.step == 2 and not result.skipped
    loaded, _ = reference.load(tmp_path / "model")
    weights = dict(model.state_dict())
    assert all(torch.equal(value, weights[name]) for name, value in loaded.state_dict().items())


def test_a_recipe_with_a_tuning_leaves_the_model_and_saves_the_tuning(tmp_path: Path) -> None:
    found = small(train={"tuning": 1.0}, tuning={"kind": "arcana", "rank_visual": 2, "rank_text": 2})
    before, _ = made(found)
    torch.manual_seed(found.training.seed)
    _, model, _ = run(found, tmp_path)
    assert (tmp_path / "model" / FOLDER / "adapters.safetensors").is_file()
    loaded, _ = reference.load(tmp_path / "model")
    assert loaded.state_dict().keys() == before.state_dict().keys()
    assert "_tessera_plugged" not in model.__dict__


def test_features_are_shared_only_where_the_front_is_frozen_and_equal() -> None:
    found = small()
    model, _ = made(found)
    batch = {"pixel_values": torch.rand(1, 3, 64, 64)}
    assert "pixel_values" in encoded(model, batch)
    for encoder in model.model.encoders:
        encoder.requires_grad_(False)
    held = Frozen(model).held
    assert encoded(model, batch, held).keys() == {"visual_features"}
    with torch.no_grad():
        model.model.encoders[0].position.add_(1.0)
    assert "pixel_values" in encoded(model, batch, held)


def test_set_reaches_the_options_of_an_objective() -> None:
    found = small(objective={"kind": "povid", "beta": 0.1})
    set_path(found, "objective.beta=0.5")
    assert found.objective == {"kind": "povid", "beta": 0.5}
