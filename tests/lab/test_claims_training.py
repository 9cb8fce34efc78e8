"""Short trainings: the loop, what arms share, how they are tested; the exact claims of connectors and couplings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tessera.errors import TesseraError
from tessera.lab.claims import claims_of
from tessera.lab.experiment import Build, Exact, Experiment, Vary
from tessera.lab.fit import fit
from tessera.lab.local_lab import LocalLab
from tessera.lab.outcomes import per_seed
from tessera.lab.protocols.long_inputs import LongInputs
from tessera.lab.protocols.short_training import ShortTraining, built, train_and_test_data, trained
from tessera.training.plan import OptimConfig

CONNECTORS, COUPLINGS = ("qformer", "tokenpacker", "limber"), ("flamingo", "ep_alm", "eve", "moe_llava", "v2pe")
PARTS = [*(("connectors", name) for name in CONNECTORS), *(("couplings", name) for name in COUPLINGS)]
EXACT = [(*part, claim) for part in PARTS for claim in claims_of(*part) if isinstance(claim, Exact)]
TOWER = {"kind": "conv_vit", "image_size": 32, "patch_size": 8, "width": 24, "depth": 1, "heads": 2}
TINY = ShortTraining(
    parts={"encoders": [TOWER], "connector": {"kind": "linear"}},
    start={},
    language={"layers": 2, "width": 32, "hidden": 48},
    steps=3,
    images=2,
    scenes=4,
    test_scenes=3,
    most=2,
    tests=("own", "mismatched image", "no image"),
)


@pytest.mark.parametrize(("socket", "part", "claim"), EXACT, ids=[f"{s}/{p}: {c.id}" for s, p, c in EXACT])
def test_exact_claims_hold(socket, part, claim, tmp_path: Path) -> None:
    checked = claim.run(LocalLab(cache=tmp_path, threads=0))
    assert all(checked.checks.values()), checked


def test_the_loop_trains_what_it_is_told_and_the_same_again(tmp_path: Path) -> None:
    lab, losses, ends = LocalLab(cache=tmp_path, threads=0), [], []
    inputs = {"input_ids": torch.arange(6, 14)[None], "labels": torch.arange(6, 14)[None]}
    for seed in (0, 0):
        model, _ = built(lab, TINY, Build("own"), seed)
        before = {name: p.clone() for name, p in model.named_parameters()}
        losses.append(fit(model, lambda step, order: inputs, 8, seed=seed, optim=OptimConfig(), train=[{"language_model": 1.0}]))
        ends.append(model.state_dict())
        moved = {name.split(".")[1] for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        assert moved == {"language_model"}
    assert losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0]
    assert all(torch.equal(ends[1][name], value) for name, value in ends[0].items())


def test_arms_of_a_seed_share_their_start(tmp_path: Path) -> None:
    lab = LocalLab(cache=tmp_path, threads=0)
    own = dict(built(lab, TINY, Build("own"), 3)[0].named_parameters())
    other = dict(built(lab, TINY, Build("mlp", connector={"kind": "mlp"}), 3)[0].named_parameters())
    another = dict(built(lab, TINY, Build("own"), 4)[0].named_parameters())
    shared = [name for name in own if not name.startswith("model.connector.")]
    assert all(torch.equal(own[name], other[name]) for name in shared)
    assert not all(torch.equal(own[name], another[name]) for name in shared)


def test_arms_that_differ_in_their_test_share_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tessera.lab.protocols import short_training

    lab, runs, whole = LocalLab(cache=tmp_path, threads=0), [], short_training.trained
    monkeypatch.setattr(short_training, "trained", lambda *arguments: runs.append(1) or whole(*arguments))
    monkeypatch.setattr(lab, "kept", _keeper())
    for test in TINY.tests:
        outcomes = TINY.measure(lab, Build(test, {"test": test}), 0, 0, 2)
        assert len(outcomes.of("accuracy")[0]) == 2
    assert len(runs) == 2


@pytest.mark.parametrize(("socket", "part"), PARTS, ids=[f"{s}/{p}" for s, p in PARTS])
def test_every_arm_of_an_experiment_is_measured(socket, part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With random weights and few steps: that arms, settings and parts fit one another."""
    lab = LocalLab(cache=tmp_path, threads=0)
    monkeypatch.setattr(lab, "kept", _keeper())
    experiments = [claim for claim in claims_of(socket, part) if isinstance(claim, Experiment)]
    assert experiments
    for experiment in experiments:
        protocol = experiment.protocol
        few = (
            {"start": {}, "scenes": 4, "test_scenes": 2, "images": 2, "most": 2, "steps": 2, "before": min(protocol.before, 2)}
            if (isinstance(protocol, ShortTraining))
            else {"start": "", "pictures": 24, "test_pictures": 24, "rows": 2, "steps": 2, "tested": 2, "many": 6}
        )
        if isinstance(protocol, ShortTraining) and "language_model" in protocol.start:
            few["language"] = {"layers": 8, "width": 32, "hidden": 48}
        micro = replace(protocol, **few)
        for name, arm in experiment.arms().items():
            if isinstance(arm, Build):
                arm = Build(arm.name, {k: v for k, v in arm.settings.items() if k != "fresh"}, **arm.sockets)
            [value] = micro.measure(lab, arm, 0, 0, 1).of("accuracy")[0]
            assert 0 <= value <= 1, name


def test_a_mixture_begins_as_the_model_before_it(tmp_path: Path) -> None:
    lab = LocalLab(cache=tmp_path, threads=0)
    parts = {**TINY.parts, "coupling": {"kind": "prefix"}}
    dense = replace(TINY, parts=parts, steps=1, before=6, lr=1e-12, muon_lr=1e-12, tests=("own",))
    still = {"train": ({"coupling": 1.0},)}
    two = Build("two", still, coupling={"kind": "moe_llava", "experts": 2, "balance": 0.0, "capacity": None})
    seen = train_and_test_data(lab, dense, two, 0)
    same, mixed = (trained(lab, dense, arm, 0, *seen) for arm in (Build("dense", {"train": ({"language_model": 1.0},)}), two))
    assert mixed["loss"] == pytest.approx(same["loss"], abs=1e-5)


def test_shuffled_routers_are_put_back(tmp_path: Path) -> None:
    from tessera.lab.scenes import accuracy

    lab = LocalLab(cache=tmp_path, threads=0)
    parts = {**TINY.parts, "coupling": {"kind": "moe_llava", "experts": 3}}
    protocol = replace(TINY, parts=parts, tests=("own", "shuffled routers"))
    model, processor = built(lab, protocol, Build("own"), 0)
    [router] = [layer.router.weight for layer in model.model.coupling.layers]
    before, during = router.clone(), list[torch.Tensor]()
    handle = model.register_forward_pre_hook(lambda *_: during.append(router.clone()))
    accuracy(model, processor, train_and_test_data(lab, protocol, Build("own"), 0)[1], "shuffled routers", False)
    handle.remove()
    assert torch.equal(during[0], before[[2, 0, 1]])
    assert torch.equal(router, before)


def test_a_remembered_teacher_teaches_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import nullcontext

    from tessera.lab import scenes

    lab = LocalLab(cache=tmp_path, threads=0)
    eve = {"kind": "eve", "image_size": 32, "patch_size": 4, "width": 16, "heads": 2, "every": 1, "teacher": TOWER}
    protocol = replace(TINY, parts={"coupling": eve}, steps=6, train=({"*": 1.0},), tests=("own",))
    train_data, asked = train_and_test_data(lab, protocol, Build("own"), 0)
    first = trained(lab, protocol, Build("own"), 0, train_data, asked)
    assert train_data.memory
    again = trained(lab, protocol, Build("own"), 0, train_data, asked)
    monkeypatch.setattr(scenes, "remembered", lambda *_: nullcontext())
    without = trained(lab, protocol, Build("own"), 0, train_data, asked)
    assert first["loss"] == pytest.approx(without["loss"], abs=1e-5)
    assert again == first


def test_rows_of_long_inputs_show_one_kind_and_not_the_other(tmp_path: Path) -> None:
    from tessera.lab.protocols.long_inputs import Pictures, batch
    from tessera.lab.protocols.long_inputs import built as built_long

    kinds = ["animal", "food", "vehicle"] * 4
    pool = Pictures(torch.arange(12.0)[:, None, None], kinds)
    protocol = LongInputs(asked={"few": {}}, tower=TOWER, start="", square=2, language={"layers": 1, "width": 32, "hidden": 48})
    _, processor = built_long(LocalLab(cache=tmp_path, threads=0), protocol, 0)
    inputs = batch(pool, processor, 8, 5, torch.Generator().manual_seed(0))
    shown = inputs["visual_features"].flatten().long().view(8, 5)
    for row, ids, segments in zip(shown.tolist(), inputs["input_ids"], inputs["segment_ids"], strict=True):
        texts = [processor.tokenizer.decode(ids[segments == number]) for number in (1, 2)]
        there, absent = ([kind for kind in sorted(set(kinds)) if kind in text] for text in texts)
        assert [kinds[i] for i in row].count(there[0]) == 1
        assert absent[0] not in [kinds[i] for i in row]
        assert "yes" in texts[0]
        assert "no" in texts[1]
    moved = batch(pool, processor, 8, 5, torch.Generator().manual_seed(0), mismatched=True)
    assert torch.equal(moved["visual_features"].flatten().long().view(8, 5), shown.roll(-1, 0))


def test_unknown_ways_are_refused(tmp_path: Path) -> None:
    protocol = LongInputs(asked={"few": {}}, start="")
    with pytest.raises(TesseraError, match="asked=one of few"):
        protocol.measure(LocalLab(cache=tmp_path, threads=0), Vary("wrong", asked="many"), 0, 0, 1)
    with pytest.raises(TesseraError, match="knows plug, long and mismatched"):
        replace(protocol, asked={"few": {"lang": 1}}).measure(
            LocalLab(cache=tmp_path, threads=0), Vary("x", asked="few"), 0, 0, 1
        )


def test_unknown_settings_are_refused(tmp_path: Path) -> None:
    lab = LocalLab(cache=tmp_path, threads=0)
    for settings, word in (({"test": "shuffled question"}, "tested by"), ({"step": 3}, "knows test, train, fresh and coarse")):
        with pytest.raises(TesseraError, match=word):
            TINY.measure(lab, Build("wrong", settings), 0, 0, 1)
    with pytest.raises(TesseraError, match="knows the tests"):
        replace(TINY, tests=("own", "blind")).measure(lab, Build("own"), 0, 0, 1)


def _keeper():
    found = {}

    def kept(key, depends, make):
        name = repr(key)
        if name not in found:
            found[name] = make()
        return found[name]

    return kept


def test_outcomes_depend_on_the_parts_that_the_protocol_builds_with(tmp_path: Path, monkeypatch) -> None:
    """A mended connector is measured again, although every arm takes it from the protocol's settings."""
    from tessera.lab import freshness
    from tessera.lab.fingerprints import named

    (claim,) = [c for c in claims_of("connectors", "limber") if isinstance(c, Experiment)]
    assert {"part connectors/limber", "part encoders/conv_vit"} <= set(freshness.depends("connectors", "limber", claim))
    protocol = replace(claim.protocol, start={}, scenes=3, test_scenes=2, steps=1, images=1)
    seen = []
    monkeypatch.setattr(
        ShortTraining, "measure", lambda self, *args: seen.append(1) or per_seed({"accuracy": [float(len(seen))]})
    )
    for value in (1.0, 1.0, 2.0):
        monkeypatch.setattr(named, "of", lambda name, lab, shelf, value=value: {"x": [value if "limber" in name else 0.0]})
        found = protocol.outcomes(LocalLab(cache=tmp_path, threads=0), claim.treatment, 0, 0, 1)
    assert len(seen) == 2 and found.mean("accuracy") == 2.0


def test_scenes_are_a_seeds_own(tmp_path: Path) -> None:
    """What is learned and what is asked differ from seed to seed, or an interval over seeds says nothing of other scenes."""
    lab = LocalLab(cache=tmp_path, threads=0)
    for first, second in zip(
        train_and_test_data(lab, TINY, Build("own"), 0), train_and_test_data(lab, TINY, Build("own"), 1), strict=True
    ):
        assert not torch.equal(first.seen[0], second.seen[0])
        assert first.questions != second.questions


def test_coarse_regions_say_what_their_middle_says() -> None:
    from tessera.lab.scenes import coarse

    seen = torch.arange(2 * 36 * 2.0).reshape(2, 36, 2)
    board = coarse(seen, 3).unflatten(1, (6, 6))
    for row in range(6):
        for column in range(6):
            middle = (row // 3 * 3 + 1) * 6 + column // 3 * 3 + 1
            assert torch.equal(board[:, row, column], seen[:, middle])
    assert torch.equal(coarse(seen, 1), seen)
    for wrong in (seen[:, :35], seen[0]):
        with pytest.raises(TesseraError, match="square raster"):
            coarse(wrong, 3)
    for side in (0, 2, 5):
        with pytest.raises(TesseraError, match=f"squares of {side}"):
            coarse(seen, side)


def test_coarse_regions_take_from_packing_what_pooling_never_had(tmp_path: Path) -> None:
    """The control of TokenPacker: its point queries are the same, and a connector that reads nothing else learns the same."""
    lab = LocalLab(cache=tmp_path, threads=0)
    tower = {**TOWER, "image_size": 48}  # 6 x 6
    few = {"kind": "tokenpacker", "factor": 3}
    protocol = replace(TINY, parts={"encoders": [tower], "connector": few}, tests=("own",))

    def outcome(inject: bool, **settings: int) -> dict[str, float]:
        arm = Build("x", settings, connector={**few, "inject": inject})
        return trained(lab, protocol, arm, 0, *train_and_test_data(lab, protocol, arm, 0))

    assert outcome(False, coarse=3) == outcome(False)
    assert outcome(True, coarse=3)["loss"] != outcome(True)["loss"]


def test_the_last_level_is_inserted_where_the_claim_says(tmp_path: Path) -> None:
    """Six times in the baseline, and in the control only where the six levels have it; all three learn as many parameters."""
    [claim] = [c for c in claims_of("couplings", "ep_alm") if isinstance(c, Experiment)]
    protocol = replace(claim.protocol, start={}, language={"layers": 8, "width": 32, "hidden": 48})
    found, sizes = dict[str, list[int | None]](), set[int]()
    for name in ("treatment", "baseline", "control"):
        coupling = built(LocalLab(cache=tmp_path, threads=0), protocol, claim.arms()[name], 0)[0].model.coupling
        found[name] = [None if (at := coupling.level_at(i)) is None else coupling.count - 1 - at for i in range(8)]
        sizes.add(sum(p.numel() for p in coupling.parameters()))
    assert found == {
        "treatment": [None, None, 5, 4, 3, 2, 1, 0],
        "baseline": [None, None, 0, 0, 0, 0, 0, 0],
        "control": [None] * 7 + [0],
    }
    assert len(sizes) == 1
