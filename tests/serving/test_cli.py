"""`tessera serve` as a command: its options, its start line, its end; and the load on it."""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.patience import SECONDS
from tests.serving.running import Scripted, call, client, running

from tessera.bench import serve as bench
from tessera.cli import main
from tessera.cli.serve import read_token, size
from tessera.errors import UserError
from tessera.generation.session import Said
from tessera.serving.app import Settings
from tessera.serving.limits import Limits

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def process(folder: str, subprocess_env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A server in a process of its own, which wants a token."""
    env = subprocess_env | {"THE_TOKEN": "a-long-secret"}
    command = [sys.executable, "-m", "tessera.cli.main", "serve", folder, "--port", "0", "--token-env", "THE_TOKEN"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*command, "--name", "small", "--max-tokens", "5"], env=env, text=True, **pipes) as started:  # type: ignore[call-overload]
        yield started
        started.kill()


def test_a_server_starts_answers_and_ends_in_order(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("Tessera serves small at http://127.0.0.1:")
    assert line.endswith("/v1 (Ctrl-C ends it)\n")
    port = int(line.partition("127.0.0.1:")[2].partition("/")[0])
    assert call(port, "GET", "/v1/models")[0] == 401
    answer = client(port, "a-long-secret").chat.completions.create(model="small", messages=[{"role": "user", "content": "dog"}])
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 5
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=SECONDS)
    assert (process.returncode, out) == (0, "")
    assert "/v1/chat/completions 200" in said
    assert "the server has ended." in said
    assert "Traceback" not in said
    assert "a-long-secret" not in said


def test_help_and_imports_load_no_server(subprocess_env: dict[str, str]) -> None:
    code = (
        "import sys, tessera, tessera.cli.serve\nfrom tessera.cli.main import run\nassert run(['serve', '--help']) == 0\n"
        "assert not {'fastapi', 'uvicorn', 'starlette', 'torch'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=subprocess_env, check=False)
    assert done.returncode == 0, done.stderr
    assert "--allow-url" in done.stdout


def test_what_cannot_be_served(folder: str, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main.run(["serve", folder, "--port", port]) == 2
        assert f"port {port} of 127.0.0.1 is in use" in capsys.readouterr().err
    monkeypatch.setenv("SHORT", "abc")
    (tmp_path / "token").write_text("with space inside\n")
    for options, says in (
        (["--allow-url", "http://x/y"], "--allow-url wants a host"),
        (["--max-body", "lots"], "--max-body wants a number above 0"),
        (["--token-env", "NOT_THERE"], "NOT_THERE holds no token"),
        (["--token-env", "SHORT"], "SHORT holds no token: 8 or more"),
        (["--token-file", str(tmp_path / "token")], "holds no token"),
        (["--token-file", str(tmp_path / "none")], "cannot be read"),
        (["--token-env", "SHORT", "--token-file", "x"], "give one of them"),
        (["--host", "no.such.host.invalid"], "cannot listen on port"),
        (["--plug", "nothing"], "nothing"),
    ):
        assert main.run(["serve", folder, "--port", "0", *options]) == 2
        captured = capsys.readouterr()
        assert says in captured.err
        assert captured.out == ""
    assert main.run(["serve", str(tmp_path / "none"), "--port", "0"]) == 2
    assert "there is no model folder" in capsys.readouterr().err


def test_sizes_and_tokens(tmp_path: Path) -> None:
    assert (size("32M", "x"), size("500k", "x"), size(" 7 ", "x"), size("2g", "x")) == (32_000_000, 500_000, 7, 2_000_000_000)
    for text in ("", "0", "-1", "1.5M", "MM", "1kk"):
        with pytest.raises(UserError, match="x wants a number above 0"):
            size(text, "x")
    (tmp_path / "token").write_text("a-long-secret\n")
    assert read_token("", tmp_path / "token") == "a-long-secret"
    assert read_token("", None) is None


def test_the_load_finds_a_good_server_good(folder: str, capsys: Captured) -> None:
    command = ["bench", "serve", "--model", folder, "--requests", "30", "--at-once", "4", "--new-tokens", "4", "--json"]
    assert main.run(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["reached"]
    assert found["wrong"] == []
    assert found["bad"] == {"malformed": 2, "oversized": 1, "image": 1, "left": 1, "model": 1}
    assert (found["right"], found["refused"], found["cancelled"]) == (24, 5, 1) == (sum(found["good"].values()), 5, 1)


class Parrot:
    """A session of another model."""

    def show(self, images: Any) -> None:
        pass

    def ask(self, question: str, *_: Any) -> Said:
        return Said(question, 1, None, True, 0.0)


def test_the_load_finds_a_bad_server_bad() -> None:
    limits = Limits(body=100_000)
    with running(Scripted(), Settings(model="m", limits=limits)) as port:
        load = bench._Load(port, Parrot(), limits, 20, 4, random.Random(0), 4)
        memory = iter([100.0, 100.0 + bench.GROWTH + 1])
        found = load.run("m", lambda: next(memory))
    assert not found.reached
    assert (found.right, found.refused) == (0, 2)  # this one has no images that could be broken
    assert len([wrong for wrong in found.wrong if "tessera ask says" in wrong]) == 16
    assert any("status 200 instead of 400" in wrong for wrong in found.wrong)
    assert "0/16" in table_text(bench._table(found))


def table_text(table: Any) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(table)
    return captured.get()
