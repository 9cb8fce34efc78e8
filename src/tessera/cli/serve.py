"""`tessera serve`: a model behind the OpenAI chat completions protocol."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from tessera.cli.plugging import PlugOption
from tessera.console import note
from tessera.errors import UserError
from tessera.plugging import parse_plugs

_LOCAL = ("127.0.0.1", "localhost", "::1")
_SHORTEST_TOKEN = 8
_UNITS = {"": 1, "k": 1_000, "m": 1_000_000, "g": 1_000_000_000}


def serve(
    model: Annotated[str, typer.Argument(help="nano, a model folder, or the name of a model on the Hugging Face hub.")] = "nano",
    plug: PlugOption = None,
    name: Annotated[str, typer.Option(help="The name that requests give; the model's own by default.")] = "",
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 is every one of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8000,
    token_env: Annotated[str, typer.Option(help="The environment variable with the token that requests must bear.")] = "",
    token_file: Annotated[Path | None, typer.Option(help="The file with that token.")] = None,
    allow_url: Annotated[
        list[str] | None, typer.Option(help="A host that images may be fetched from, or a folder: file:///srv/images.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens of an answer at most.", min=1)] = 512,
    max_body: Annotated[str, typer.Option(help="Bytes of a request at most; 500k and 32M are understood.")] = "32M",
    max_pixels: Annotated[str, typer.Option(help="Pixels of an image at most.")] = "40M",
    max_images: Annotated[int, typer.Option(help="Images of a request at most.", min=1)] = 16,
    max_seconds: Annotated[float, typer.Option(help="Seconds of a request at most, its wait included.", min=0.1)] = 120.0,
    max_waiting: Annotated[int, typer.Option(help="Requests in the queue at most; more are told to come again.", min=1)] = 32,
    quiet: Annotated[bool, typer.Option("--quiet", help="Write no line per request.")] = False,
) -> None:
    """Serve a model with the OpenAI chat completions protocol, text and images, until Ctrl-C.

    Images come as data URLs; anything else is refused unless --allow-url names it. Greedy unless a request asks for a
    temperature, so that answers are those of tessera ask.
    """
    from tessera.serving.engine import open_engine
    from tessera.serving.fetch import Allowed
    from tessera.serving.limits import Limits
    from tessera.serving.server import address, bind
    from tessera.serving.server import serve as answer_requests

    limits = Limits(
        body=size(max_body, "--max-body"),
        image_bytes=size(max_body, "--max-body"),
        pixels=size(max_pixels, "--max-pixels"),
        images=max_images,
        tokens=max_tokens,
        seconds=max_seconds,
        waiting=max_waiting,
    )
    token, allowed = read_token(token_env, token_file), Allowed.parse(allow_url or [])
    parts = parse_plugs(plug)
    with bind(host, port) as listening, open_engine(model, parts, name, limits, plug or []) as engine:
        if not quiet:
            _show_requests()
        if host not in _LOCAL and token is None:
            note(f"anyone who reaches {host} may ask: --token-env or --token-file ask for a token.")
        settings = engine.settings(allowed, token)
        told = f"Tessera serves {engine.name} at {address(listening)} (Ctrl-C ends it)"
        answer_requests(engine, settings, listening, lambda: print(told, flush=True))
    note("the server has ended.")


def size(text: str, option: str) -> int:
    """32_000_000 of "32M". Raises `UserError` for what is no whole number above 0."""
    digits = text.strip().lower().rstrip("kmg")
    unit = text.strip().lower()[len(digits) :]
    if not digits.isdecimal() or unit not in _UNITS or int(digits) < 1:
        raise UserError(f"{option} wants a number above 0, such as 500k or 32M; got {text!r}.")
    return int(digits) * _UNITS[unit]


def read_token(variable: str, file: Path | None) -> str | None:
    """The token that requests must bear, or None. Raises `UserError` if it was named but is not there, or is too short."""
    if variable and file is not None:
        raise UserError("--token-env and --token-file are two ways to the same token; give one of them.")
    if not variable and file is None:
        return None
    if file is not None:
        where = f"the file {file}"
        try:
            token = file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise UserError(f"--token-file: {file} cannot be read ({getattr(error, 'strerror', None) or 'not text'}).") from error
    else:
        where = f"the environment variable {variable}"
        token = os.environ.get(variable, "").strip()
    if len(token) < _SHORTEST_TOKEN or not token.isascii() or any(c.isspace() for c in token):
        raise UserError(f"{where} holds no token: {_SHORTEST_TOKEN} or more ASCII characters without spaces are wanted.")
    return token


def _show_requests() -> None:
    """One line per request, to stderr."""
    import logging

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log = logging.getLogger("tessera.serving")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
