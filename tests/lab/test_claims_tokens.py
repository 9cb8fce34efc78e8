"""Claims about parts that drop, pool or show visual tokens: the exact ones hold, and experiments measure all arms."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tessera.data.dense import object_labels
from tessera.errors import TesseraError
from tessera.lab.experiment import Cost, Exact, Experiment, Vary
from tessera.lab.givens.pictures import CutThingsAreMissed, StillBackground
from tessera.lab.local_lab import LocalLab
from tessera.lab.protocols.answering import Answering
from tessera.lab.protocols.canvas import Canvas
from tessera.lab.protocols.prefill import Prefill
from tessera.lab.protocols.tiny import tiny_model
from tessera.lab.protocols.views import Views, is_cut

PARTS = ("tokens.uniform", "tokens.pyramiddrop", "tokens.aim", "tokens.globalcom2", "tokens.scm", "tokens.m3")
PARTS += ("video.videollama3", "pixels.mini_monkey")
CLAIMS = [
    pytest.param(claim, id=f"{name}.{claim.id}")
    for name in PARTS
    for claim in importlib.import_module(f"tessera.claims.{name}").CLAIMS
]


def of(kind):
    return [param for param in CLAIMS if isinstance(param.values[0], kind)]


class Expert(torch.nn.Module):
    """Names patches by their colour, as no model would."""

    def forward(self, pixel_values):
        patches = pixel_values.unflatten(3, (14, -1)).unflatten(2, (14, -1)).mean((3, 5)).flatten(2).mT
        return SimpleNamespace(logits=patches @ torch.linspace(-4, 4, 3 * len(object_labels())).view(3, -1).cos())


@pytest.fixture
def lab(tmp_path: Path) -> LocalLab:
    """A lab whose reference models are tiny, with random weights."""
    lab = LocalLab(cache=tmp_path, threads=0)
    lab._loaded["object-expert"] = (Expert(), None)
    lab._loaded["nano"] = tiny_model()
    return lab


@pytest.mark.parametrize("claim", of(Exact))
def test_exact_claims_hold(claim: Exact, lab: LocalLab) -> None:
    found = claim.run(lab)
    assert found.checks
    assert all(found.checks.values()), found


@pytest.mark.parametrize("claim", [claim for claim in of(Experiment) if claim.values[0].protocol.unit == "image"])
def test_every_arm_is_measured_on_the_same_units(claim: Experiment, lab: LocalLab) -> None:
    protocol = claim.protocol
    count = 4
    if isinstance(protocol, Answering):
        protocol, arms = replace(protocol, world={**protocol.world, "width": 64, "height": 64}), claim.arms()
        arms = {name: shallow(arm) for name, arm in arms.items()}
    else:
        arms = claim.arms()
    outcomes = {name: protocol.measure(lab, arm, 0, 0, count) for name, arm in arms.items()}
    wanted = {metric for effect in (claim.primary, *claim.valid_if, *claim.secondary) for _, metric, _ in effect.terms}
    for metric in {metric or claim.metric for metric in wanted}:
        [units] = {tuple(found.of(metric)[1].tolist()) for found in outcomes.values()}
        assert sum(units) > 0


def shallow(arm):
    """The arm for a language model of two layers: what it drops inside, it drops in front of the second."""
    options = dict(arm.options)
    if arm.part == "random":
        options |= {"keep": options["keep"][:1], "layers": (min(1, options.get("layers", (0,))[0]),)}
    elif "layers" in options:
        options |= {"keep": options["keep"][:1], "layers": (1,)}
    if "layer" in options:
        options["layer"] = 1
    if "start" in options:
        options |= {"start": 0, "stop": 1}
    return type(arm)(arm.part, **options)


@pytest.mark.parametrize("claim", of(Cost))
def test_costs_are_counted(claim: Cost, lab: LocalLab) -> None:
    protocol = Prefill(layers=8, width=64, patches=8, text=8, rounds=0)
    found = protocol.measure(lab, claim.treatment, claim.baseline)
    assert claim.at_least.keys() <= found.counted.keys()
    assert found.counted["language flop ratio"] > found.counted["flop ratio"] > 1


def test_layers_of_drops_are_those_of_the_reference_model() -> None:
    from tessera.claims.tokens.pyramiddrop import LAYERS
    from tessera.models import reference
    from tessera.parts.tokens import aim, pyramiddrop

    layers = reference.load("nano")[0].config.text_config.num_hidden_layers
    assert pyramiddrop.evenly(layers, 3) == LAYERS
    assert aim.falling(layers) == aim.falling(layers, 4, 6) == {5: 0.5, 6: 0.0}


def test_still_clips_and_moving_ones(lab: LocalLab) -> None:
    lab._loaded["nano"] = (SimpleNamespace(image_size=64, tokens_per_image=16), None)
    asked = StillBackground(model="nano", frames=4, most=0.37, clips=5)
    still = asked.measure(lab)
    assert 0.25 <= still.low <= still.value <= still.high <= 1
    assert still.holds == (still.high < 0.37)
    assert replace(asked, most=1.01).measure(lab).holds
    assert not replace(asked, most=0.25).measure(lab).holds
    assert replace(asked, threshold=1e6).measure(lab).value == 0.25


def test_things_that_are_cut() -> None:
    assert is_cut((0.4, 0.1, 0.6, 0.2), 2, 1)
    assert not is_cut((0.4, 0.1, 0.6, 0.2), 1, 2)
    assert not is_cut((0.49, 0.1, 0.6, 0.2), 2, 1)
    assert is_cut((0.1, 0.3, 0.2, 0.4), 1, 3)


def test_the_precondition_asks_for_a_difference(lab: LocalLab) -> None:
    found = CutThingsAreMissed(layers=("detail",), scenes=6).measure(lab)
    assert found.low <= found.value <= found.high
    assert found.holds == (found.low > 0)


@pytest.mark.parametrize(("protocol", "arm"), [(Canvas(), Vary("x", choice="best")), (Views(), Vary("x", layers=("top",)))])
def test_unknown_ways_are_refused(protocol, arm: Vary, lab: LocalLab) -> None:
    with pytest.raises(TesseraError, match="knows"):
        protocol.measure(lab, arm, 0, 0, 1)


def test_arms_of_the_canvas_choose_otherwise(lab: LocalLab) -> None:
    found = {choice: Canvas().measure(lab, Vary(choice, choice=choice), 0, 0, 3) for choice in ("guided", "local", "random")}
    guided, local, random = (outcomes.of("canvas tokens")[0].tolist() for outcomes in found.values())
    assert guided == local == random  # scene by scene, so that no arm is better for keeping more
    assert all(0.9 * 78.4 <= kept <= 78.4 for kept in guided)
    assert len({tuple(outcomes.of("things' tokens")[0]) for outcomes in found.values()}) == 3
