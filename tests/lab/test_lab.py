"""What a lab gives to protocols and claims: reference models, kept results, one engine, costs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tessera.errors import UserError
from tessera.lab.experiment import Plug, Vary
from tessera.lab.local_lab import LocalLab
from tessera.lab.outcomes import Outcomes
from tessera.lab.protocols import answering
from tessera.lab.protocols.base import parts_named
from tessera.lab.protocols.tiny import tiny_model
from tessera.lab.storage import cache_folder


@pytest.fixture
def lab(tmp_path: Path) -> LocalLab:
    return LocalLab(cache=tmp_path, threads=0)


def counting(value: Any) -> tuple[Callable[[], Any], list[int]]:
    """Something to keep, and how often it was made."""
    made: list[int] = []

    def make() -> Any:
        made.append(1)
        return value

    return make, made


def test_the_same_is_made_once_and_its_seconds_count_again(lab: LocalLab) -> None:
    make, made = counting({"a": [1.0, 2.0]})
    lab.behaviours["core toy"] = {"x": [1.0]}
    assert lab.kept(["key"], ["core toy"], make) == lab.kept(["key"], ["core toy"], make) == {"a": [1.0, 2.0]}
    assert len(made) == 1
    lab.kept(["other key"], ["core toy"], make)
    assert len(made) == 2
    (path, _) = sorted(lab.cache.glob("*.json"))
    path.write_text(path.read_text().replace('"seconds": 0.0', '"seconds": 60.0'))
    again = LocalLab(cache=lab.cache, threads=0)
    again.behaviours["core toy"] = {"x": [1.0]}
    for key in ("key", "other key"):
        again.kept([key], ["core toy"], make)
    assert again.saved == 60.0 and len(made) == 2


@pytest.mark.parametrize(("value", "times"), [(1.0 + 1e-6, 1), (1.1, 2), (-1.0, 2), (float("nan"), 2)])
def test_it_is_made_again_only_where_something_behaves_otherwise(lab: LocalLab, value: float, times: int) -> None:
    make, made = counting(3)
    for x in (1.0, value):
        lab.behaviours["core toy"] = {"x": [x]}
        lab.kept("key", ["core toy"], make)
    assert len(made) == times


def test_something_more_to_depend_on_is_made_again(lab: LocalLab) -> None:
    make, made = counting(3)
    lab.behaviours |= {"core toy": {"x": [1.0]}, "core more": {"x": [1.0]}}
    lab.kept("key", ["core toy"], make)
    lab.kept("key", ["core toy", "core more"], make)
    assert len(made) == 2


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert LocalLab(threads=0).cache == cache_folder() == tmp_path / "tessera" / "lab"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "tessera" / "lab"


def test_a_folder_belongs_to_its_key(lab: LocalLab) -> None:
    folders = {lab.folder(*key) for key in (("a", 1), ("a", 2), ("b", 1))}
    assert len(folders) == 3 and lab.folder("a", 1) in folders and {f.parent for f in folders} == {lab.cache}


def test_a_reference_is_loaded_once_and_copied_on_demand(lab: LocalLab) -> None:
    first, _ = lab.reference("object-expert")
    assert lab.reference("object-expert")[0] is first and not first.training
    assert {p.dtype for p in first.parameters()} == {torch.float32}
    own, _ = lab.reference("object-expert", copy=True)
    before = lab.weights("object-expert")
    with torch.no_grad():
        next(own.parameters()).zero_()
    assert bool(next(lab.reference("object-expert")[0].parameters()).any())
    assert LocalLab(cache=lab.cache, threads=0).weights("object-expert") == before
    with pytest.raises(UserError, match="Did you mean 'object-expert'"):
        lab.reference("object-experts")


def test_threads_are_set_unless_they_are_none(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        LocalLab(cache=tmp_path, threads=2)
        LocalLab(cache=tmp_path, threads=0)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_parts_are_named_with_their_sockets() -> None:
    assert parts_named(["fopru", "random", "fopru", "nothing"]) == ["tokens/fopru", "tokens/random"]


def test_every_arm_is_answered_by_one_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treatment, baseline, control and the model without the image: none has a generator of its own."""
    from tessera.evaluation import harness
    from tessera.evaluation.items import EvaluationConfig, draw
    from tessera.world import WorldConfig

    engines: list[str] = []
    real = harness.ask

    def ask(*args: Any, answers: Any, **options: Any) -> Any:
        engines.append(type(getattr(answers, "answers", answers)).__name__)
        return real(*args, answers=answers, **options)

    monkeypatch.setattr(harness, "ask", ask)
    world = WorldConfig(split="test", width=64, height=64)
    items = draw(EvaluationConfig(world=world, types=("existence",), n=2))
    arms = (Plug("random", keep=(0.5,)), Plug("random", keep=(1.0,)), Vary("blind", image="none"), Vary("x", image="mismatched"))
    found = [answering.answered(*tiny_model(), items, arm, max_new_tokens=1) for arm in arms]
    assert engines == ["HostGenerator"] * 4
    assert all(isinstance(outcomes, Outcomes) and len(outcomes.of("accuracy")[0]) == len(items) for outcomes in found)


def test_costs(lab: LocalLab) -> None:
    square = torch.randn(8, 8)
    assert lab.flops(lambda: square @ square) == 2 * 8**3
    taken = lab.timing(lambda: [square @ square for _ in range(400)], lambda: None, rounds=3)
    assert taken.low <= taken.median <= taken.high
    assert "float32" in lab.shape() and "threads" in lab.shape()
