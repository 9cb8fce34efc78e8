"""The `tessera` command: a table of commands, loaded when called, and one place where errors become sentences.

Exit codes: 0 done, 1 a fault of Tessera or the machine, 2 a mistake in the input, 130 interrupted (Ctrl-C).
Errors go to stderr: one sentence, or with `--json` one line `{"error": {"kind", "message", "exit_code"}}`;
stdout stays free for results. `--debug`, anywhere on the line, shows the traceback as well.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from tessera.console import err, missing_package
from tessera.errors import TesseraError


class CommandEntry(NamedTuple):
    """Where a command lives: a function with typer annotations, or a `typer.Typer` with several commands."""

    module: str
    attribute: str
    help: str


DEBUG = "Run again with --debug to see where."

COMMANDS = {
    "run": CommandEntry("tessera.cli.run", "run", "Train, evaluate, report and ask: the main job, in minutes."),
    "ask": CommandEntry("tessera.cli.ask", "ask", "Ask a model about images, or about a scene of the world."),
    "caption": CommandEntry("tessera.cli.ask", "caption", "Describe images."),
    "serve": CommandEntry("tessera.cli.serve", "serve", "Answer over the network, in the protocol of OpenAI's chat completions."),
    "train": CommandEntry("tessera.cli.train", "train", "Train a recipe, or go on with a run."),
    "eval": CommandEntry("tessera.cli.eval", "eval", "Measure a model on the world, per question type."),
    "export": CommandEntry("tessera.cli.export", "export", "Write a model as a stock transformers architecture."),
    "data": CommandEntry("tessera.cli.data", "app", "Check data sets before training on them."),
    "world": CommandEntry("tessera.cli.world", "app", "Look at the built-in world."),
    "hosts": CommandEntry("tessera.cli.hosts", "hosts", "List model families that parts plug into; try parts on them."),
    "verify": CommandEntry("tessera.cli.verify", "verify", "Run the claims of parts and keep what they measured."),
    "compare": CommandEntry("tessera.cli.compare", "compare", "Compare the parts of a socket under one budget."),
    "list": CommandEntry("tessera.cli.catalog", "list_", "List the parts by socket, with how their claims fared."),
    "show": CommandEntry("tessera.cli.catalog", "show", "Show a part or a published system: options, claims, numbers."),
    "catalog": CommandEntry("tessera.cli.catalog", "catalog", "Show all published systems; --html writes pages to browse."),
    "bench": CommandEntry("tessera.cli.bench", "app", "Measure speed and memory against plain transformers code."),
    "env": CommandEntry("tessera.cli.env", "env", "Show what a bug report needs to know about this machine."),
}


class Failure(NamedTuple):
    """An error as the user sees it; an empty message is not shown."""

    kind: str
    message: str
    exit_code: int


class _Carried(Exception):
    """Carries what a command raised (its cause) past the command line library.

    Without it, Ctrl-C, a closed pipe and an EOFError would end in silent exits.
    """


class Commands(TyperGroup):
    """The table as a group: the list shows stand-ins; a command's module is imported when it is called."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, entry in COMMANDS.items():
            self.add_command(TyperCommand(name, callback=None, help=entry.help))

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, _, rest = super().resolve_command(ctx, args)
        return name, None if name is None else load(name), rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, EOFError, OSError) as error:
            raise _Carried from error


def load(name: str) -> Any:
    """Imports the module of command `name` and returns its command object."""
    entry = COMMANDS[name]
    target = getattr(importlib.import_module(entry.module), entry.attribute)
    if isinstance(target, typer.Typer):
        group = typer.main.get_group(target)
        group.name, group.help = name, group.help or entry.help
        return group
    single = typer.Typer(add_completion=False)
    single.command(name)(target)
    return typer.main.get_command(single)


app = typer.Typer(cls=Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.", show_default=False)] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere.")] = False,
) -> None:
    """Vision-language models from interchangeable, verified parts."""
    if version:
        import tessera

        print(f"tessera {tessera.__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


def run(args: Sequence[str]) -> int:
    """Runs one command line (without the program's name) and returns its exit code; never raises."""
    args = list(args)
    options = args[: args.index("--")] if "--" in args else args
    debug, as_json = "--debug" in options, "--json" in options
    args = [a for a in options if a != "--debug"] + args[len(options) :]
    try:
        code = typer.main.get_command(app).main(args, prog_name="tessera", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except _Carried as carried:
        raised = carried.__cause__ or carried
    except (Exception, KeyboardInterrupt) as error:
        raised = error
    if debug:
        traceback.print_exception(raised, file=sys.stderr)
    failure = _explain(raised)
    if failure.message and as_json:
        print(json.dumps({"error": failure._asdict()}, ensure_ascii=False), file=sys.stderr)
    elif failure.message:
        err().print(f"tessera: {failure.message}", style="red", markup=False)
    return failure.exit_code


def main() -> NoReturn:
    """The entry point of the `tessera` script."""
    if not sys.warnoptions:  # warnings of other libraries are for developers; ours are for the user
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", module=r"tessera(\.|$)")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(run(sys.argv[1:]))


def _explain(error: BaseException) -> Failure:
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return Failure("Interrupted", "interrupted.", 130)
    if isinstance(error, ModuleNotFoundError) and (missing := missing_package(error)) is not None:
        error = missing
    if isinstance(error, TesseraError):
        return Failure(type(error).__name__, str(error), error.exit_code)
    if hasattr(error, "format_message"):  # the command line library's own: unknown option, missing argument
        return Failure("UsageError", _usage(error), 2)
    if isinstance(error, BrokenPipeError) and _stdout_closed():
        return Failure("BrokenPipe", "", 1)
    if isinstance(error, OSError) and error.strerror and error.filename:
        return Failure("SystemError", f"{error.strerror}: {error.filename}. {DEBUG}", 1)
    what = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # the latter is torch's
        return Failure("OutOfMemory", f"not enough memory ({what}). A smaller batch or image needs less.", 1)
    return Failure("Fault", f"this is a fault of Tessera, not yours ({what}). {DEBUG}", 1)


def _usage(error: Any) -> str:
    """A usage error as a sentence with the way to the command's help; empty if the help was shown already."""
    message = " ".join(error.format_message().split())
    context = getattr(error, "ctx", None)
    if not message or context is None:
        return message
    possible = getattr(error, "possibilities", None)
    if possible:
        message = f"{error.message}. Did you mean {' or '.join(sorted(possible))}?"
    return f"{message} See: {context.command_path} --help"


def _stdout_closed() -> bool:
    """Whether the reader of stdout went away; if so, the interpreter's last flush goes nowhere."""
    try:
        stdout = sys.stdout.fileno()
    except (OSError, ValueError):  # replaced by something that is no file
        return False
    poll = select.poll()
    poll.register(stdout, 0)
    closed = any(event & select.POLLERR for _, event in poll.poll(0))
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout)
    return closed


if __name__ == "__main__":
    main()
