"""What the README says is run: its commands, its Python, its generated numbers."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from tessera.cli.main import COMMANDS, run

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("line", [line for block in blocks("bash") for line in block.splitlines() if line.strip()])
def test_commands_of_the_readme_run(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(line, comments=True)
    assert words[0] == "tessera"
    monkeypatch.chdir(tmp_path)
    assert run(words[1:]) == 0


def test_python_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    scope: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), scope)
    assert "->" in capsys.readouterr().out


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_numbers_are_up_to_date() -> None:
    assert script("write_readme").written() == README, "run scripts/write_readme.py"


def test_the_page_of_evidence_is_up_to_date() -> None:
    made = script("write_evidence")
    assert made.page() == made.PAGE.read_text(encoding="utf-8"), "run scripts/write_evidence.py"


def test_every_command_is_in_the_readme() -> None:
    rows = re.findall(r"^\| `tessera (\w+)", README, flags=re.MULTILINE)
    assert set(rows) | {"world"} == set(COMMANDS)


@pytest.mark.parametrize("script", ["quickstart", "test", ".ci/run", "scripts/make-venv"])
def test_scripts_are_whole(script: str) -> None:
    path = ROOT / script
    assert path.stat().st_mode & 0o111 or script == ".ci/run", f"{script} is not executable"
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert script == ".ci/run" or script.startswith("scripts/") or f"./{script}" in README
