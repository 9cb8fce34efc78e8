"""Claims of contrastive parts and locality alignment: exact ones hold, costs are counted, every arm is measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tessera.errors import TesseraError
from tessera.lab.captioned import caption, different, scenes
from tessera.lab.claims import claims_of
from tessera.lab.experiment import Cost, Exact, Experiment, Use, Vary
from tessera.lab.local_lab import LocalLab
from tessera.lab.protocols import contrastive
from tessera.lab.protocols.contrastive import READS, Contrastive
from tessera.lab.protocols.frozen_features import tiny_tower
from tessera.lab.protocols.post_training import PostTraining

PARTS = (("contrastive", "clip"), ("contrastive", "filip"), ("objectives", "locality_alignment"))
ALL = [(name, claim) for socket, name in PARTS for claim in claims_of(socket, name)]
MICRO = Contrastive(classes=3, images=12, steps=3, batch=6, named=6, found=4, shots=1, width=16)
SMALL = {"patch": 16, "width": 16, "depth": 2, "heads": 2, "images": 8, "steps": 2, "batch": 4, "further": 2, "lot": 2}


def of(kind):
    return [pytest.param(claim, id=f"{name}-{claim.id}") for name, claim in ALL if isinstance(claim, kind)]


def metrics(claim: Experiment) -> set[str]:
    effects = (claim.primary, *claim.valid_if, *claim.secondary)
    return {claim.metric, *(metric for effect in effects for _, metric, _ in effect.terms if metric)}


@pytest.fixture(scope="module")
def made():
    return MICRO.scenes(tiny_tower(0), 0)


@pytest.mark.parametrize("claim", of(Exact))
def test_exact_claims_hold(claim, tmp_path: Path) -> None:
    found = claim.run(LocalLab(cache=tmp_path, threads=0))
    assert found.checks
    assert all(found.checks.values()), found


@pytest.mark.parametrize("claim", of(Cost))
def test_costs_are_counted(claim, tmp_path: Path) -> None:
    protocol = replace(claim.protocol, rounds=0)
    counted = protocol.measure(LocalLab(cache=tmp_path, threads=0), claim.treatment, claim.baseline).counted
    assert all(counted[name] >= paper.value for name, paper in claim.at_least.items()), counted
    assert all(counted[name] <= paper.value for name, paper in claim.at_most.items()), counted


@pytest.mark.parametrize("kind", ["clip", "filip"])
@pytest.mark.parametrize("shuffled", [False, True])
def test_every_read_of_a_dual_encoder_has_every_metric(kind: str, shuffled: bool, made) -> None:
    row = MICRO.row(made, {"kind": kind}, shuffled, 0)
    assert row.keys() == set(READS)
    wanted = set().union(*(metrics(c) for _, c in ALL if isinstance(c, Experiment) and isinstance(c.protocol, Contrastive)))
    for found in row.values():
        assert wanted <= found.keys()
        assert all(0 <= value <= 1 for value in found.values())


@pytest.mark.parametrize("claim", of(Experiment))
def test_every_arm_is_measured(claim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made) -> None:
    lab = LocalLab(cache=tmp_path, threads=0)
    # Nothing of this test is about freshness: fingerprints and the tower are left out.
    monkeypatch.setattr("tessera.lab.fingerprints.named.of", lambda name, lab, shelf: {})
    monkeypatch.setattr(Contrastive, "_kept", lambda self, lab, part, shuffled, seed: MICRO.row(made, part, shuffled, seed))
    protocol = MICRO if isinstance(claim.protocol, Contrastive) else replace(claim.protocol, **SMALL, seen=12, tested=12)
    for arm in claim.arms().values():
        outcomes = protocol.measure(lab, arm, 0, 0, 1)
        assert metrics(claim) <= outcomes.metrics.keys()


def test_settings_that_a_protocol_does_not_know_are_refused(tmp_path: Path) -> None:
    lab = LocalLab(cache=tmp_path, threads=0)
    for arm in (Use("clip", read="palms"), Use("clip", captions="none")):
        with pytest.raises(TesseraError, match="captions own or shuffled and read"):
            MICRO.measure(lab, arm, 0, 0, 1)
    for other in (Vary("after"), Vary("before", steps=3)):
        with pytest.raises(TesseraError, match="Vary\\('before'\\)"):
            PostTraining().measure(lab, other, 0, 0, 1)


def test_kept_features_are_those_that_were_made(tmp_path: Path, made, monkeypatch: pytest.MonkeyPatch) -> None:
    first = MICRO.scenes(tiny_tower(0), 0, tmp_path)
    monkeypatch.setattr(contrastive, "seen", lambda *_: pytest.fail("embedded again"))
    again = MICRO.scenes(tiny_tower(0), 0, tmp_path)
    for name, features in made.features.items():
        assert features.equal(first.features[name])
        assert features.equal(again.features[name])


def test_scenes_show_chosen_concepts_alone_and_differ_between_seeds_and_captions() -> None:
    from itertools import islice

    chosen = [5, 40, 90]
    pairs = different(scenes("test", (2, 3), chosen, 64, 0), 8)
    assert len({caption(s) for s in pairs}) == 8
    assert all(2 <= len(s.frames[0].things) <= 3 for s in pairs)
    assert {t.concept for s in pairs for t in s.frames[0].things} <= set(chosen)
    turn = list(islice(scenes("val", (1, 1), chosen, 64, 0, turn=True), 6))
    assert [s.frames[0].things[0].concept for s in turn] == [*chosen, *chosen]
    other = list(islice(scenes("val", (1, 1), chosen, 64, 1, turn=True), 6))
    assert [s.index for s in turn] != [s.index for s in other]


def test_an_objective_moves_the_tower_and_a_first_training_is_kept(tmp_path: Path) -> None:
    import torch

    protocol = PostTraining(**SMALL)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tower = protocol.trained(0, tmp_path)
        again = protocol.trained(0, tmp_path)
        before = {name: value.clone() for name, value in tower.state_dict().items()}
        assert all(torch.equal(value, before[name]) for name, value in again.state_dict().items())
        protocol.go_on(tower, "locality_alignment", {"scale": 0.5}, 0)
    moved = [name for name, value in tower.state_dict().items() if not torch.equal(value, before[name])]
    assert any("layers.0" in name for name in moved)
    assert not any(name.startswith("head") for name in moved)
