"""The benchmark of the world counts what it does; how fast it is, is not tested."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from tessera.bench import world as bench
from tessera.errors import UserError


def test_rates_and_ratio_fit_each_other() -> None:
    found = bench.measure(seconds=0.05, size=64, training=10.0)
    assert found.samples >= 1
    assert found.images_alone > found.images > 0
    assert found.questions > 0
    assert found.ratio == pytest.approx(found.images * found.cores / 10, abs=0.01)
    assert found.enough == (found.ratio >= bench.ENOUGH)


def test_without_a_rate_there_is_no_verdict() -> None:
    found = bench.measure(seconds=0.01, size=64)
    assert (found.training, found.ratio, found.enough) == (None, None, None)


@pytest.mark.parametrize(("seconds", "training", "size"), [(0.0, None, 64), (1.0, -1.0, 64), (1.0, None, 32)])
def test_values_out_of_range_are_refused(seconds: float, training: float | None, size: int) -> None:
    with pytest.raises(UserError):
        bench.measure(seconds, size, training)


def test_the_command_prints_json() -> None:
    app = typer.Typer()
    app.command()(bench.world)
    done = CliRunner().invoke(app, ["--seconds", "0.01", "--size", "64", "--training", "1", "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["enough"] is True
    assert "per second and core" in CliRunner().invoke(app, ["--seconds", "0.01", "--size", "64"]).stdout
