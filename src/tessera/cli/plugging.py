"""The option `--plug` of commands that ask a model; `tessera.plugging` reads its values."""

from __future__ import annotations

from typing import Annotated

import typer

PlugOption = Annotated[
    list[str] | None,
    typer.Option("--plug", metavar="NAME:OPTION=VALUE,...", help="Plug a part into the model; may be given several times."),
]
