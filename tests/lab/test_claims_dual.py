"""Exact claims of parts over dual encoders and of searches; the few-shot protocol at a tiny size."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from tessera.errors import TesseraError
from tessera.lab.experiment import Exact, Experiment, Use, Vary
from tessera.lab.local_lab import LocalLab
from tessera.lab.protocols.few_shot import FewShots, tiny_dual

FILES = ("few_shot.coop", "few_shot.gda_clip", "agents.zoomeye")
ALL = [(name, claim) for name in FILES for claim in importlib.import_module(f"tessera.claims.{name}").CLAIMS]


@pytest.mark.parametrize("claim", [pytest.param(c, id=f"{name} {c.id}") for name, c in ALL if isinstance(c, Exact)])
def test_exact_claims_hold(claim: Exact, tmp_path: Path) -> None:
    found = claim.run(LocalLab(cache=tmp_path, threads=0))
    assert all(found.checks.values()), found


@pytest.mark.parametrize(
    "experiment",
    [pytest.param(c, id=f"{name} {c.id}") for name, c in ALL if isinstance(c, Experiment) and isinstance(c.protocol, FewShots)],
)
def test_every_arm_is_measured(experiment: Experiment) -> None:
    dual = tiny_dual()
    micro = FewShots(of=experiment.protocol.of, view=experiment.protocol.view, classes=16, shots=1, known=1, tested=1)
    task = micro.task(dual, dual.processor, 0, 64)
    for arm in experiment.arms().values():
        small = arm
        if isinstance(arm, Use):
            epochs = {"epochs": 1} if arm.part == "coop" else {"near": 4}
            context = {"context": 2} if arm.part == "coop" else {}
            small = Use(arm.part, **{**arm.options, "shots": 1, **epochs, **context})
        assert 0 <= micro.accuracy(dual, task, small, 0) <= 1


def test_an_unknown_setting_is_refused() -> None:
    dual = tiny_dual()
    micro = FewShots(classes=2, shots=1, known=1, tested=1)
    task = micro.task(dual, dual.processor, 0, 64)
    with pytest.raises(TesseraError, match="labels own or shuffled"):
        micro.accuracy(dual, task, Use("gda_clip", labels="none"), 0)
    with pytest.raises(TesseraError, match="takes tested"):
        micro.accuracy(dual, task, Vary("written prompt", epochs=1), 0)
