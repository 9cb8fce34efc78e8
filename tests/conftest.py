"""Every test runs offline, on one thread, and with its own files only."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# Before any test module imports torch or a Hugging Face library: they read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Nothing is timed in a test, and hypothesis fails a test whose examples take long to draw or to run.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")

ROOT = Path(__file__).resolve().parent.parent
LOCAL = ("127.0.0.1", "::1", "localhost", "0.0.0.0", "")


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root folder."""
    return ROOT


@pytest.fixture
def subprocess_env() -> dict[str, str]:
    """An environment for subprocesses that finds this source tree, installed or not."""
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(p for p in paths if p)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny composed model."""
    import torch
    from tests.hosts.tiny import build

    from tessera.models import reference

    model, processor = build()
    return str(reference.save(model, processor, tmp_path_factory.mktemp("models") / "tiny", dtype=torch.float32))


@pytest.fixture
def picture(tmp_path: Path) -> str:
    """A PNG file with a scene."""
    from tessera.world import World

    path = tmp_path / "scene.png"
    World(split="test")[3].images()[0].save(path)
    return str(path)


@pytest.fixture(autouse=True)
def _own_consoles() -> None:
    """A console asks once how wide it is: not a test's business what an earlier one had set."""
    from tessera import console

    console.out.cache_clear()
    console.err.cache_clear()


def _local_only(connect: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(self: socket.socket, address: Any) -> Any:
        if self.family != socket.AF_UNIX and address[0] not in LOCAL:
            raise OSError(f"a test tried to reach {address[0]}; only tests marked `net` may")
        return connect(self, address)

    return guarded


@pytest.fixture(autouse=True)
def _no_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "net" not in request.keywords:
        monkeypatch.setattr(socket.socket, "connect", _local_only(socket.socket.connect))
        monkeypatch.setattr(socket.socket, "connect_ex", _local_only(socket.socket.connect_ex))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked `net` or `mutants` run only with `-m net`, `-m mutants`, tests marked `gpu` only where there is an
    accelerator."""
    asked_for_net, asked_for_mutants = ("net" in config.getoption("-m"), "mutants" in config.getoption("-m"))
    for item in items:
        if "net" in item.keywords and not asked_for_net:
            item.add_marker(pytest.mark.skip(reason="needs the network: pytest -m net"))
        if item.get_closest_marker("mutants") and not asked_for_mutants:
            item.add_marker(pytest.mark.skip(reason="takes ten minutes: pytest -m mutants"))
        if "gpu" in item.keywords and not _has_accelerator():
            item.add_marker(pytest.mark.skip(reason="needs an accelerator"))


def _has_accelerator() -> bool:
    import torch

    return torch.cuda.is_available() or torch.backends.mps.is_available()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What tests have to tell besides whether they pass: their properties, under a heading each."""
    told: dict[str, list[str]] = {}
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        for name, value in getattr(report, "user_properties", ()) if getattr(report, "when", "") == "call" else ():
            told.setdefault(name, []).append(str(value))
    for name, lines in told.items():
        terminalreporter.section(name)
        for line in lines:
            terminalreporter.write_line(line)


def pytest_report_header() -> str:
    return f"tessera: offline, {os.environ['OMP_NUM_THREADS']} thread(s), python {sys.version.split()[0]}"
