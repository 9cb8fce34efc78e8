"""CONTRIBUTING's ten lines: written outside of the package, registered by an entry point, listed, verified, plugged in."""

from __future__ import annotations

import ast
import importlib
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tessera import registry
from tessera.cli.main import run
from tessera.lab import contract, evidence

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SECTION = TEXT.partition("## Add a part in ten lines\n")[2].partition("\n## ")[0]


def blocks(language: str) -> list[str]:
    """The fenced blocks of the section, in order."""
    return re.findall(rf"```{language}\n(.*?)```", SECTION, flags=re.DOTALL)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of somebody else's, as an installer leaves it: one module, and metadata with the entry point."""
    home = tmp_path / "site-packages"
    metadata = home / "normed-0.1.dist-info"
    metadata.mkdir(parents=True)
    part, claims, *_ = blocks("python")
    (home / "normed.py").write_text(part, encoding="utf-8")
    (home / "normed_claims.py").write_text(claims, encoding="utf-8")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: normed\nVersion: 0.1\n", encoding="utf-8")
    points = tomllib.loads(blocks("toml")[0])["project"]["entry-points"]
    lines = [f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in found.items()) for group, found in points.items()]
    (metadata / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.syspath_prepend(str(home))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    importlib.invalidate_caches()
    yield home
    registry._registered.pop(("connectors", "normed"), None)
    for name in ("normed", "normed_claims"):
        sys.modules.pop(name, None)
    contract.fixture_of.cache_clear()


def said(capsys: pytest.CaptureFixture[str], *command: str) -> Any:
    """What a command prints with `--json`."""
    capsys.readouterr()
    assert run([*command, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_it_is_ten_lines() -> None:
    text = blocks("python")[0]
    kept: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            kept.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = [line for number, line in enumerate(text.splitlines(), 1) if line.strip() and number not in kept]
    assert len(lines) == 10


def test_it_is_listed_shown_and_verified(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["part"]: row for row in said(capsys, "list", "connectors")["parts"]}
    assert {"mlp", "normed"} <= rows.keys()
    assert rows["normed"]["title"].startswith("A linear map behind a norm")
    assert rows["normed"]["status"] == "no evidence"
    shown = said(capsys, "show", "normed")["parts"][0]
    assert shown["options"][0]["name"] == "bias"
    assert [(claim["id"], claim["verdict"]) for claim in shown["claims"]] == [("alike", "not run")]
    verified = said(capsys, "verify", "normed")["parts"][0]
    assert [(claim["verdict"], claim["ran"]) for claim in verified["claims"]] == [("holds", True)]
    written = evidence.path_of("connectors", "normed")
    assert written.is_relative_to(package.parent / "data") and written.is_file()
    assert said(capsys, "show", "normed")["parts"][0]["status"] == "fresh"
    assert said(capsys, "verify", "normed", "--check")["parts"][0]["status"] == "fresh"
    again = said(capsys, "verify", "normed")["parts"][0]
    assert [(claim["verdict"], claim["ran"]) for claim in again["claims"]] == [("holds", False)]


def test_the_experiment_is_the_one_that_it_is_said_to_be() -> None:
    from tessera.lab import experiment
    from tessera.lab.claims import claims_of
    from tessera.lab.protocols.answering import Answering

    shown = eval(blocks("python")[2].strip(), {**vars(experiment), "Answering": Answering})
    own = next(claim for claim in claims_of("tokens", "fopru") if claim.id == shown.id)
    assert (own.digest(), own.promise) == (shown.digest(), shown.promise)


def test_it_is_plugged_into_a_model(package: Path) -> None:
    import torch

    from tessera.errors import UserError
    from tessera.lab.contract.models import ENCODER, TEXT
    from tessera.models.configuration import TesseraConfig
    from tessera.models.modeling import TesseraForConditionalGeneration

    parts = {"encoders": [ENCODER], "connector": {"kind": "normed", "bias": False}}
    model = TesseraForConditionalGeneration(TesseraConfig(parts=parts, text_config=TEXT, image_token_id=4))
    assert type(model.model.connector).__name__ == "Normed" and model.model.connector.map[1].bias is None
    assert model.get_image_features(torch.randn(2, 3, 32, 32)).shape == (2, 16, TEXT["hidden_size"])
    with pytest.raises(UserError, match="'biass'. Did you mean 'bias'"):
        TesseraConfig(parts={**parts, "connector": {"kind": "normed", "biass": False}}, text_config=TEXT, image_token_id=4)


def test_it_keeps_the_contract(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert contract.chosen(("connectors/normed",)) == contract.chosen(("normed",)) == [("connectors", "normed")]
    found = {row["check"]: (row["state"], row["reason"]) for row in contract.outcomes("connectors/normed")}
    assert {"contract", "builds", "options", "batch", "padding", "gradients", "saving", "bf16", "meta"} <= found.keys()
    assert set(found.values()) == {("holds", "")}
    scope: dict[str, Any] = {}
    exec(compile(blocks("python")[3], "CONTRIBUTING.md", "exec"), scope)
    assert scope["test_contract"].pytestmark
    module = sys.modules["normed"]
    monkeypatch.setattr(module, "UNSUPPORTED", {"bf16": "it needs all bits"}, raising=False)
    contract.fixture_of.cache_clear()
    found = {row["check"]: (row["state"], row["reason"]) for row in contract.outcomes("normed")}
    assert found["bf16"] == ("unsupported", "it needs all bits")
