from __future__ import annotations

from typing import Any

import pytest

from tessera.config import build, to_dict
from tessera.errors import UserError
from tessera.training.plan import (
    OptimConfig,
    Schedule,
    Stage,
    TrainConfig,
    differences,
    multipliers,
    stage_of,
)

SOCKETS = ["encoders.0", "encoders.1", "connector", "language_model"]


def test_the_last_pattern_that_matches_counts_and_the_rest_is_frozen() -> None:
    stage = Stage(train={"*": 1.0, "encoders.*": 0.3, "encoders.1": 0.0})
    assert multipliers(stage, SOCKETS) == {
        "encoders.0": 0.3,
        "encoders.1": 0.0,
        "connector": 1.0,
        "language_model": 1.0,
    }
    assert multipliers(Stage(train={"connector": 2.0}), SOCKETS)["language_model"] == 0.0


def test_an_unknown_socket_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="conector.*connector"):
        multipliers(Stage(train={"conector": 1.0}), SOCKETS)
    with pytest.raises(UserError, match="trains nothing"):
        multipliers(Stage(train={"*": 0.0}), SOCKETS)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (dict(stages=[]), "stages is empty"),
        (dict(stages=[Stage(), Stage()]), "two stages"),
        (dict(stages=[Stage(steps=0)]), "0 steps"),
        (dict(stages=[Stage(train={"*": -1.0})]), "multiplier"),
        (dict(batch_size=0), "batch_size"),
        (dict(workers=-1), "workers"),
        (dict(batch_size=4, accumulation=8), "micro-batches"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        TrainConfig(**changes).check()


def test_configuration_survives_json() -> None:
    config = TrainConfig(stages=[Stage(optim=OptimConfig(lr=1.0)), Stage(name="b", schedule=Schedule(kind="wsd"))])
    assert build(TrainConfig, to_dict(config)) == config


@pytest.mark.parametrize("kind", ["cosine", "wsd", "constant"])
def test_schedule_warms_up_and_ends_low(kind: Any) -> None:
    schedule = Schedule(kind=kind, warmup=10, final=0.1, decay=0.2)
    factors = [schedule.factor(step, 200) for step in range(200)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == pytest.approx(1.0) and max(factors) <= 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True)
    if kind == "constant":
        assert factors[-1] == 1.0
    else:
        assert factors[-1] == pytest.approx(0.1, abs=0.03)
    if kind == "wsd":
        assert factors[159] == 1.0 and factors[165] < 1.0


def test_short_stages_do_not_spend_themselves_on_warm_up() -> None:
    assert Schedule(warmup=200).factor(5, 50) > 0.9
    assert Schedule(warmup=0).factor(0, 50) == 1.0
    assert Schedule().factor(0, 1) == 1.0


def test_stage_of_counts_through_the_stages() -> None:
    config = TrainConfig(stages=[Stage(name="a", steps=3), Stage(name="b", steps=2)])
    assert [stage_of(config, step) for step in range(5)] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]


def test_differences_name_the_path() -> None:
    old, new = to_dict(TrainConfig()), to_dict(TrainConfig(seed=3, stages=[Stage(steps=5)]))
    assert differences(old, new) == ["stages.0.steps was 1000, is 5", "seed was 0, is 3"]
