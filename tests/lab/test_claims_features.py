"""Claims about features, towers and compression: the exact ones hold, costs are counted, every arm is measured."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from tessera.errors import TesseraError
from tessera.lab.claims import claims_of
from tessera.lab.experiment import Build, Cost, Exact, Experiment, Use, Vary
from tessera.lab.local_lab import LocalLab
from tessera.lab.protocols.backbone import Backbone, TowerDropping
from tessera.lab.protocols.compression import Quantising, Souping
from tessera.lab.protocols.frozen_features import FrozenFeatures
from tessera.lab.protocols.operations import Operations

PARTS = (
    ("connectors", "limber"),
    ("experts", "comm"),
    ("experts", "mova"),
    ("pixels", "s2"),
    ("encoders", "hilo"),
    ("tokens", "evit"),
    ("compression", "repq_vit"),
    ("compression", "model_soups"),
)
ALL = [(name, claim) for socket, name in PARTS for claim in claims_of(socket, name)]


def of(kind):
    return [pytest.param(claim, id=f"{name}-{claim.id}") for name, claim in ALL if isinstance(claim, kind)]


MICRO = {
    "expert_routing": {"images": 8, "tested": 8, "steps": 2, "router_steps": 2},
    "frozen_features": {"images": 4, "tested": 6, "steps": 2, "places": 16},
    "small_things": {"images": 3, "tested": 3},
    "backbone": {"images": 8, "tested": 8, "steps": 2, "batch": 4},
    "tower_dropping": {"images": 8, "tested": 8, "steps": 2, "batch": 4},
    "quantising": {"calibrated": 2, "tested": 3},
    "souping": {"started": 8, "tuned": 8, "held": 8, "tested": 8, "steps": 2},
}


@pytest.mark.parametrize("claim", of(Exact))
def test_exact_claims_hold(claim, tmp_path: Path) -> None:
    found = claim.run(LocalLab(cache=tmp_path, threads=0))
    assert found.checks
    assert all(found.checks.values()), found


@pytest.mark.parametrize("claim", of(Cost))
def test_costs_are_counted(claim, tmp_path: Path) -> None:
    protocol = replace(claim.protocol, rounds=0)
    counted = protocol.measure(LocalLab(cache=tmp_path, threads=0), claim.treatment, claim.baseline).counted
    assert (claim.at_least.keys() | claim.at_most.keys()) <= counted.keys()


@pytest.mark.parametrize("claim", [claim for claim in of(Experiment) if claim.values[0].protocol.name in MICRO])
def test_every_arm_is_measured_by_every_metric(claim, tmp_path: Path) -> None:
    protocol = replace(claim.protocol, **MICRO[claim.protocol.name])
    lab = LocalLab(cache=tmp_path, threads=0)
    effects = (claim.primary, *claim.valid_if, *claim.secondary)
    wanted = {claim.metric, *(metric for effect in effects for _, metric, _ in effect.terms if metric)}
    for arm in claim.arms().values():
        outcomes = protocol.measure(lab, arm, 0, 0, 1)
        assert wanted <= outcomes.metrics.keys()
        for metric in wanted:
            totals, counts = outcomes.of(metric)
            assert len(totals) == len(counts) == 1
            assert math.isnan(totals[0]) or 0 <= totals[0] <= 1


def test_arms_that_a_protocol_does_not_know_are_refused(tmp_path: Path) -> None:
    lab = LocalLab(cache=tmp_path, threads=0)
    wrong = (
        (FrozenFeatures(**MICRO["frozen_features"]), Build("x", {"layers": "other"}, experts={"kind": "comm"})),
        (Quantising(**MICRO["quantising"]), Vary("double")),
        (Souping(**MICRO["souping"]), Use("model_soups", starts="none")),
        (Souping(**MICRO["souping"]), Vary("worst run")),
        (TowerDropping(**MICRO["tower_dropping"]), Use("evit", keep=0.5, choice="best")),
    )
    for protocol, arm in wrong:
        with pytest.raises(TesseraError, match="knows"):
            protocol.measure(lab, arm, 0, 0, 1)
    with pytest.raises(TesseraError, match="knows"):
        Operations(rounds=0).measure(lab, Vary("flying"), Vary("flying"))


def test_planted_channels_change_nothing_but_the_norms() -> None:
    import torch

    from tessera.lab.protocols.compression import planted
    from tessera.models.parts import create

    torch.manual_seed(0)
    options = {"kind": "conv_vit", "image_size": 32, "patch_size": 8, "width": 24, "depth": 2, "heads": 2}
    tower, pixels = create("encoders", options, "encoder").eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = tower(pixels)
        largest = max(float(m.weight.max()) for m in tower.modules() if isinstance(m, torch.nn.LayerNorm))
        planted(tower, {"pixel_values": pixels}, 3, 30.0, 0)
        assert torch.allclose(tower(pixels), before, atol=1e-4)
        assert max(float(m.weight.max()) for m in tower.modules() if isinstance(m, torch.nn.LayerNorm)) == 30 * largest


def test_the_same_seed_trains_the_same_and_another_does_not(tmp_path: Path) -> None:
    protocol = Backbone(images=16, tested=64, steps=6, batch=8)
    arm = Build("x", encoder={"kind": "conv_vit", "patch_size": 16, "width": 24, "depth": 1, "heads": 2})
    lab = LocalLab(cache=tmp_path, threads=0)
    both = protocol.measure(lab, arm, 0, 0, 2).of("accuracy")[0]
    assert protocol.measure(lab, arm, 1, 1, 1).of("accuracy")[0].tolist() == both[1:].tolist()
    assert both[0] != both[1]


def test_a_probe_learns_what_a_line_parts_and_nothing_from_noise() -> None:
    import torch

    from tessera.lab.probe import probe_accuracy

    torch.manual_seed(0)
    rows = torch.randn(400, 8)
    labels = (rows[:, 0] + rows[:, 1] > 0).long()
    assert probe_accuracy(rows[:200], labels[:200], rows[200:], labels[200:]) > 0.9
    assert probe_accuracy(torch.randn(200, 8), labels[:200], rows[200:], labels[200:]) < 0.7


def test_a_tower_is_measured_with_the_part_plugged_in() -> None:
    """Both choices let as many patches on; only the random one depends on its seed."""
    import torch

    protocol = TowerDropping(patch=16, width=16, depth=2, heads=2, blocks=(0,), images=8, tested=8, steps=3, batch=4)
    tower, _ = protocol.trained(0)
    pixels, _ = protocol.data("test", 8, 0)

    def of(keep: float, seed: int | None, fuse: bool = True) -> tuple[torch.Tensor, int]:
        counts: list[int] = []
        with torch.no_grad(), protocol._dropping(tower, keep, fuse, seed) as plugged:
            last = getattr(plugged, "vision_model", plugged).encoder.layers[1].mlp
            last.register_forward_pre_hook(lambda _, args: counts.append(args[0].shape[1]))
            return plugged(pixel_values=pixels).pooler_output, counts[0]

    with torch.no_grad():
        whole = tower(pixel_values=pixels).pooler_output
    assert torch.equal(of(1.0, None)[0], whole) and torch.equal(of(1.0, 3)[0], whole)
    (chosen, left), (random, as_many), (other, _) = of(0.5, None), of(0.5, 0), of(0.5, 1)
    assert left == as_many == 1 + 8 + 1 and of(0.5, 0, fuse=False)[1] == 1 + 8
    assert torch.equal(random, of(0.5, 0)[0])
    assert len({float(found.sum()) for found in (whole, chosen, random, other)}) == 4


def test_golden_runs_read_nothing_from_the_cache(tmp_path: Path) -> None:
    """What was trained once would hide a change from every later golden run."""
    from tessera.lab.protocols.backbone import TowerDropping

    TowerDropping.golden(LocalLab(cache=tmp_path, threads=0))
    assert not list(tmp_path.iterdir())
