"""Claims in processes of their own: one that dies takes no other with it."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tessera import registry
from tessera.cli.main import run

PART = '''"""A linear map. Shapes: [B, N, D] -> [B, N, E]."""
from torch import nn

from tessera.config import config
from tessera.models.contracts import Connector
from tessera.registry import part


@part("toy", socket="connectors")
class Toy(Connector):
    @config
    class Config:
        """Nothing to choose."""

    def __init__(self, config, width, out_width):
        super().__init__(config, width, out_width)
        self.project = nn.Linear(width, out_width)

    def forward(self, tokens):
        return tokens.with_features(self.project(tokens.features))
'''
CLAIMS = """
import os
from tessera.lab.experiment import Checked, Exact


def dies(lab):
    os._exit(3)


def holds(lab):
    return Checked(checks={"equal": True})


CLAIMS = [Exact(id="dies", promise="", run=dies), Exact(id="holds", promise="", run=holds)]
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of somebody else's, which other processes find too."""
    home = tmp_path / "site-packages"
    metadata = home / "toy-0.1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 0.1\n")
    (metadata / "entry_points.txt").write_text(
        "[tessera.parts]\nconnectors.toy = toy_part\n[tessera.claims]\nconnectors.toy = toy_claims\n"
    )
    (home / "toy_part.py").write_text(PART)
    (home / "toy_claims.py").write_text(CLAIMS)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.syspath_prepend(str(home))
    importlib.invalidate_caches()
    yield tmp_path
    registry._registered.pop(("connectors", "toy"), None)
    for name in ("toy_part", "toy_claims"):
        sys.modules.pop(name, None)


def test_a_process_that_dies_is_a_crash_and_the_others_run(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", "toy", "--jobs", "2", "--json"]) == 1
    captured = capsys.readouterr()
    (part,) = json.loads(captured.out)["parts"]
    told = {claim["id"]: (claim["verdict"], claim.get("note", "")) for claim in part["claims"]}
    assert told == {"dies": ("crashed", "its process ended with code 3"), "holds": ("holds", "")}
    assert all(claim["ran"] for claim in part["claims"]) and "1 left" in captured.err
    assert [path.name for path in (package / "data").rglob("*.json")] == ["toy.json"], "theirs, not in our source"
