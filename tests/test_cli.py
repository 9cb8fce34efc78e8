"""The command line: lazy commands, errors as sentences, exit codes, JSON, the report of the environment."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import platform
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from rich.table import Table
from tests.patience import SECONDS

from tessera import console
from tessera.cli import main
from tessera.cli.env import environment
from tessera.errors import TesseraError, UserError

Command = Callable[[Callable[..., Any]], None]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    """Makes a function the only command, `tessera try`."""

    def register(function: Callable[..., Any] | typer.Typer) -> None:
        module = types.ModuleType("tessera_test_command")
        module.target = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(main, "COMMANDS", {"try": main.CommandEntry(module.__name__, "target", "Try it.")})

    return register


def raising(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


# Errors


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (UserError("the image is empty. Give another."), 2, "tessera: the image is empty. Give another.\n"),
        (TesseraError("the disk is full."), 1, "tessera: the disk is full.\n"),
        (
            ZeroDivisionError("division by zero"),
            1,
            "a fault of Tessera, not yours (ZeroDivisionError: division",
        ),
        (ValueError("two\n  lines"), 1, "(ValueError: two lines). Run again with --debug"),
        (EOFError("data ended"), 1, "(EOFError: data ended)"),
        (BrokenPipeError("a worker died"), 1, "(BrokenPipeError: a worker died)"),
        (
            PermissionError(13, "Permission denied", "runs/x"),
            1,
            "tessera: Permission denied: runs/x. Run again",
        ),
        (MemoryError(), 1, "not enough memory"),
        (KeyboardInterrupt(), 130, "tessera: interrupted.\n"),
        (typer.Exit(7), 7, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_an_error_is_a_sentence_and_a_code(
    command: Command, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, says: str
) -> None:
    command(raising(error))
    assert main.run(["try"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err
    assert "Traceback" not in captured.err
    assert captured.err.count("\n") <= 1


def test_debug_shows_the_traceback_wherever_it_stands(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    command(raising(UserError("no.")))
    for args in (["--debug", "try"], ["try", "--debug"]):
        assert main.run(args) == 2
        shown = capsys.readouterr().err
        assert "Traceback" in shown
        assert "in fail" in shown


def test_debug_after_a_double_dash_is_an_argument(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    def echo(words: list[str]) -> None:
        print(words)

    command(echo)
    assert main.run(["try", "--", "--debug"]) == 0
    assert capsys.readouterr().out == "['--debug']\n"


def test_with_json_an_error_is_an_object_on_stderr(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(as_json: console.JsonOption = False) -> None:
        raise UserError("größer als erlaubt.")

    command(fail)
    assert main.run(["try", "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    expected = {"kind": "UserError", "message": "größer als erlaubt.", "exit_code": 2}
    assert json.loads(captured.err) == {"error": expected}


def test_markup_in_a_message_is_text(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    command(raising(UserError("unknown field [/red] 'encoders[0]'")))
    main.run(["try"])
    assert capsys.readouterr().err == "tessera: unknown field [/red] 'encoders[0]'\n"


def test_a_package_of_an_extra_is_named_with_its_extra(
    command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    declared = ["torch>=2.6", "open_clip_torch>=2 ; extra == 'encoders'", 'lmms-eval>=0.4; extra == "eval"']
    declared.append('tessera-vlm[eval]; extra == "all"')
    monkeypatch.setattr("importlib.metadata.requires", lambda _: declared)
    for module, package, extra in (
        ("open_clip.model", "open_clip_torch", "encoders"),
        ("lmms_eval", "lmms-eval", "eval"),
    ):
        command(raising(ModuleNotFoundError("none", name=module)))
        assert main.run(["try"]) == 2
        said = capsys.readouterr().err
        assert package in said
        assert f"tessera-vlm[{extra}]" in said
    command(raising(ModuleNotFoundError("No module named 'tessera.gone'", name="tessera.gone")))
    assert main.run(["try"]) == 1


# Finding commands and options


def test_every_command_of_the_table_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([]) == 0
    alone = capsys.readouterr().out
    assert main.run(["--help"]) == 0
    assert capsys.readouterr().out.strip() == alone.strip()
    for name, entry in main.COMMANDS.items():
        assert f" {name} " in alone
        assert entry.help.split(",")[0][:30] in alone


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_command_loads_and_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([name, "--help"]) == 0
    assert f"tessera {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["evn"], "No such command 'evn'. Did you mean 'env'? See: tessera --help"),
        (["env", "--jsno"], "No such option: --jsno. Did you mean --json? See: tessera env --help"),
        (["env", "surplus"], "surplus"),
        (["--versoin"], "Did you mean --version?"),
    ],
)
def test_a_slip_of_the_hand_gets_a_suggestion(args: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(args) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.out == ""


def test_a_missing_argument_is_named(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    def ask(question: Annotated[str, typer.Argument()], steps: int = 1) -> None:
        print(question, steps)

    command(ask)
    assert main.run(["try"]) == 2
    assert "question" in capsys.readouterr().err.lower()
    assert main.run(["try", "why?", "--steps", "many"]) == 2
    assert "--steps" in capsys.readouterr().err
    assert main.run(["try", "why?", "--steps", "3"]) == 0
    assert capsys.readouterr().out == "why? 3\n"


def test_a_group_with_one_command_stays_a_group(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    group = typer.Typer()

    @group.command()
    def look() -> None:
        print("seen")

    command(group)
    assert main.run(["try", "look"]) == 0
    assert capsys.readouterr().out == "seen\n"
    assert main.run(["try", "loko"]) == 2
    assert "Did you mean 'look'? See: tessera try --help" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    import tessera

    assert main.run(["--version"]) == 0
    assert capsys.readouterr().out == f"tessera {tessera.__version__}\n"


# As a process


@contextlib.contextmanager
def tessera(code: str, env: dict[str, str], starter: Sequence[str] = (), **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process whose `env` command is replaced by a function `env()` with the body `code`; it ends with the block.

    starter: the command that becomes this process, none by default.
    """
    program = (
        "import signal, sys, types, warnings; from tessera.cli import main\n"
        # A job that a shell started in the background ignores Ctrl-C, and so does every process below it: pytest, and this one.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"def env():\n    {code}\n"
        "module = types.ModuleType('m'); module.env = env; sys.modules['m'] = module\n"
        "main.COMMANDS['env'] = main.CommandEntry('m', 'env', 'x'); sys.argv = ['tessera', 'env']; main.main()"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    with subprocess.Popen([*starter, sys.executable, "-c", program], env=env, text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_reader_that_goes_away_is_no_error(subprocess_env: dict[str, str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with tessera("print('x' * 100_000)", subprocess_env, stdout=writing) as process:
        os.close(writing)
        assert process.communicate(timeout=SECONDS)[1] == ""
    assert process.returncode == 1


@pytest.mark.parametrize(
    "starter", [(), ("sh", "-c", 'trap "" INT; exec "$@"', "sh")], ids=["at a terminal", "in the background"]
)
def test_ctrl_c_ends_with_a_sentence(subprocess_env: dict[str, str], starter: tuple[str, ...]) -> None:
    code = "print('ready', flush=True); import time; time.sleep(100_000)"
    with tessera(code, subprocess_env, starter) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=SECONDS)[1] == "tessera: interrupted.\n"
    assert process.returncode == 130


def test_warnings_of_libraries_stay_silent(subprocess_env: dict[str, str]) -> None:
    warn = "warnings.warn_explicit('{0}', UserWarning, 'f.py', 1, module='{0}')"
    code = f"{warn.format('elsewhere')}; {warn.format('tessera.data')}"
    with tessera(code, subprocess_env | {"PYTHONWARNINGS": ""}) as process:
        said = process.communicate(timeout=SECONDS)[1]
    assert "tessera.data" in said
    assert "elsewhere" not in said


# What commands share


def test_emit_writes_one_strict_json_value(capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np

    value = {
        "accuracy": np.float32(0.5),
        "missing": float("nan"),
        "where": Path("runs") / "a",
        "box": (1, 2),
        "rows": np.arange(2),
        "text": "größer",
        "yes": np.bool_(True),
    }
    console.emit(value, True, lambda _: "unused")
    written = capsys.readouterr().out
    assert json.loads(written) == {
        "accuracy": 0.5,
        "missing": None,
        "where": "runs/a",
        "box": [1, 2],
        "rows": [0, 1],
        "text": "größer",
        "yes": True,
    }
    assert "größer" in written


def test_emit_refuses_what_json_cannot_say() -> None:
    with pytest.raises(TypeError, match="object cannot be written as JSON"):
        console.to_json({"x": object()})


def test_emit_renders_text_as_it_is_and_never_wraps_it_when_piped(capsys: pytest.CaptureFixture[str]) -> None:
    text = "[bold]a[/bold] " + "long " * 60
    console.emit(text, False, lambda value: value)
    assert capsys.readouterr().out == text + "\n"


def test_emit_renders_tables(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("type", "accuracy")
    table.add_row("count", "0.9")
    console.emit(0, False, lambda _: table)
    assert "count" in capsys.readouterr().out


def test_progress_is_silent_when_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress() as bars:
        task = bars.add_task("work", total=3)
        bars.advance(task, 3)
        assert bars.tasks[0].finished
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out == ""


# tessera env


def test_env_as_json_and_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["python"].startswith(platform.python_version())
    assert found["packages"]["torch"]
    assert found["cpu"]["logical_cores"] >= found["cpu"]["usable_cores"] >= 1
    assert found["memory_bytes"] > 2**28
    assert main.run(["env"]) == 0
    table = capsys.readouterr().out
    assert found["packages"]["transformers"] in table
    assert found["cpu"]["model"][:20] in table


def test_env_tells_nothing_personal() -> None:
    written = json.dumps(environment())
    assert "/" not in written.replace("/Linux", "")
    for secret in (platform.node(), getpass.getuser(), os.getcwd()):
        assert len(secret) < 5 or secret not in written
