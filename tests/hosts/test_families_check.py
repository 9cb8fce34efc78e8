"""`tessera hosts`: the list, the check, and that the check finds what is wrong."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor

from tessera.cli.main import run
from tessera.config import config
from tessera.errors import UserError
from tessera.hosts import check as checks
from tessera.hosts import zoo
from tessera.hosts.check import FamilyFixture, check, host_parts
from tessera.hosts.part import HostPart, LayerView
from tessera.hosts.values import Selection


class Half(HostPart):
    """Drops visual tokens at layer 2: every one that `stride` does not name."""

    needs = ("cache",)

    @config
    class Config:
        stride: int = 2

    @classmethod
    def identity(cls) -> dict[str, Any]:
        return {"stride": 1}

    def select(self, view: LayerView) -> Selection | None:
        if view.layer != 2:
            return None
        return Selection(keep=~view.visual | (view.index % self.config.stride == 0))


class Leaves(Half):
    """Leaves something behind."""

    def install(self, host: Any, undo: ExitStack) -> None:
        host.layers[0].left_behind = 1


class Hooked(Half):
    """Leaves a hook behind that does nothing."""

    def install(self, host: Any, undo: ExitStack) -> None:
        host.layers[0].register_forward_hook(lambda *args: None)


class Inexact(Half):
    """Changes a little what it should leave alone."""

    def transform(self, view: LayerView) -> Tensor | None:
        return view.hidden * (1 + 1e-6)


class Crashes(Half):
    """Fails."""

    def select(self, view: LayerView) -> Selection | None:
        raise IndexError("list index out of range")


class Idle(Half):
    """Does nothing, whatever it is told."""

    def select(self, view: LayerView) -> Selection | None:
        return None


class Refuses(Half):
    """Needs what LLaVA does not have."""

    needs = ("deepstack",)


class Forgets(Half):
    """Works in prefill only: what is said later comes from elsewhere."""

    def transform(self, view: LayerView) -> Tensor | None:
        return None if view.prefill or self.config.stride == 1 else view.hidden * 1.01


def _cell(part: type[HostPart], fixture: FamilyFixture | None = None) -> checks.Cell:
    return (fixture or FamilyFixture("llava")).cell("half", "tokens", part)


def test_a_part_that_keeps_its_word_is_true() -> None:
    fixture = FamilyFixture("llava")
    for _ in range(2):  # and leaves the model as it was
        cell = _cell(Half, fixture)
        assert (cell.state, cell.reason) == ("true", "")
        assert cell.measured["visual tokens left"] == 0.5
        assert cell.measured["cached differs by"] < checks.TOLERANCE
        assert all(value is not False for value in cell.measured.values())


@pytest.mark.parametrize(
    ("part", "state", "reason"),
    [
        (Leaves, "false", "does not hold: undone"),
        (Hooked, "false", "does not hold: undone"),
        (Inexact, "false", "does not hold: identity, forward, identity, cached, identity, uncached"),
        (Crashes, "false", "IndexError: list index out of range"),
        (Idle, "false", "does not hold: has an effect"),
        (Forgets, "false", "does not hold: cached = uncached"),
        (Refuses, "refused", "needs 'deepstack'"),
    ],
)
def test_a_part_that_does_not_is_found_out(part: type[HostPart], state: str, reason: str) -> None:
    cell = _cell(part)
    assert cell.state == state
    assert reason in cell.reason


def test_what_is_false_on_one_cell_does_not_spoil_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "host_parts", lambda: {"bad": ("tokens", Leaves), "good": ("decoding", Half)})
    calls: list[tuple[int, int]] = []
    result = check(["llava"], progress=lambda done, total, what: calls.append((done, total)))
    assert [cell.state for cell in result.cells] == ["false", "true"]
    assert result.counts == {"true": 1, "refused": 0, "false": 1}
    assert result.by_part["good"] == {"true": 1, "refused": 0, "false": 0}
    assert (result.whole, result.sound) == ([], [])
    assert calls == [(0, 2), (1, 2)]


def test_a_family_without_its_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "host_parts", lambda: {"good": ("tokens", Half)})

    def missing(name: str) -> None:
        raise ModuleNotFoundError("No module named 'timm'", name="timm")

    monkeypatch.setattr(zoo, "tiny", missing)
    (cell,) = check(["fast_vlm"]).cells
    assert (cell.state, cell.reason) == ("refused", "fast_vlm needs the package 'timm', which is not installed")
    (row,) = checks.list_families(["fast_vlm"])
    assert (row.capabilities, row.note) == (None, "needs the package 'timm'")


def test_parts_are_found_over_all_sockets() -> None:
    parts = host_parts()
    assert all(issubclass(target, HostPart) and target is not HostPart for _, target in parts.values())
    assert "pixel_shuffle" not in parts  # of Tessera's own models


@pytest.mark.parametrize("name", zoo.names())
def test_every_family_is_a_host(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest part that drops tokens: identity bit-equal, cached = uncached, undone."""
    if zoo.RECIPES[name].package is not None:
        pytest.importorskip(str(zoo.RECIPES[name].package))
    cell = _cell(Half, FamilyFixture(name))
    assert (cell.state, cell.reason) == ("true", "")


def test_unknown_names() -> None:
    with pytest.raises(UserError, match="unknown family 'lava'"):
        check(["lava"])
    with pytest.raises(UserError, match="unknown part"):
        check(["llava"], ["nothing_like_it"])


def test_the_fingerprint_sees_hooks_methods_and_modules() -> None:
    model = zoo.tiny("llava").model
    before = checks.fingerprint(model)
    assert checks.fingerprint(model) == before
    handle = model.lm_head.register_forward_pre_hook(lambda *args: None)
    assert checks.fingerprint(model) != before
    handle.remove()
    assert checks.fingerprint(model) == before
    model.lm_head = torch.nn.Linear(64, 200)
    assert checks.fingerprint(model) != before


def test_command_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["hosts", "--families", "llava,qwen3_vl", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == ["llava", "qwen3_vl"]
    assert "deepstack" in rows[1]["capabilities"] and "deepstack" not in rows[0]["capabilities"]
    assert run(["hosts", "--families", "llava"]) == 0
    shown = capsys.readouterr().out
    assert "llava" in shown and "token map: scores of the tower's patches" in shown


def test_command_check(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "host_parts", lambda: {"half": ("tokens", Half), "picky": ("tokens", Refuses)})
    assert run(["hosts", "--check", "--families", "llava", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [cell["state"] for cell in found["cells"]] == ["true", "refused"]
    assert (found["whole"], found["sound"]) == ([], ["llava"])
    assert run(["hosts", "--check", "--families", "llava"]) == 0
    shown = capsys.readouterr().out
    assert "1 true, 1 refused, 0 false" in shown and "needs 'deepstack'" in shown
    monkeypatch.setattr(checks, "host_parts", lambda: {"half": ("tokens", Leaves)})
    assert run(["hosts", "--check", "--families", "llava"]) == 1
    assert "does not hold: undone" in capsys.readouterr().out


def test_command_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["hosts", "--parts", "uniform"]) == 2
    assert "--parts belongs to --check" in capsys.readouterr().err
    assert run(["hosts", "--families", "lava"]) == 2
    assert "Did you mean" in capsys.readouterr().err
