"""Made-up parts and evidence for the catalogue's tests: a socket of their own, in a temporary folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tessera import registry
from tessera.lab import evidence, source
from tessera.lab.evidence import Entry, Evidence

SOCKET = "brain"

PART = '''"""{name} reads <b>minds</b>: an e.g. toy. It does little.

Source: Doe et al., "Minds & Toys", 2031, arXiv:3101.01234. It looks first.

Deviations: none known; see `keep`.

Shapes: [B, N, D] -> [B, N, D].
"""
from tessera.lab.claim import claim
from tessera.registry import part


@part("{name}", socket="brain"{catalog})
class Toy:
    class Config:
        keep: float = 0.5
        must: int


@claim("half of it <script>alert(1)</script> stays", kind="effect", paper="section 4")
def stays(lab):
    """Against the whole & against chance."""
'''


class Wing:
    """A `tessera.parts.brain` of files written by tests, with evidence beside it."""

    def __init__(self, folder: Path) -> None:
        self.parts, self.evidence = folder / "parts" / SOCKET, folder / "evidence"
        self.parts.mkdir(parents=True)
        (self.parts / "__init__.py").write_text("")

    def part(self, name: str, catalog: int | None = None, text: str = PART) -> Path:
        """Writes a part's file."""
        path = self.parts / f"{name}.py"
        number = "" if catalog is None else f", catalog={catalog}"
        path.write_text(text.replace("{name}", name).replace("{catalog}", number))
        evidence.source_hash.cache_clear()
        return path

    def proof(self, name: str, *entries: Entry, catalog: int | None = None) -> Path:
        """Writes evidence that is about the part as it is now."""
        found = source.read(SOCKET, name)
        hashes = {"part": str(evidence.source_hash(found.path))}
        claims = list(entries) or [entry()]
        made = Evidence(
            part=name,
            socket=SOCKET,
            catalog=catalog,
            claims=claims,
            hashes=hashes,
            versions={"torch": "9.9"},
            machine="a <i>toaster</i>",
        )
        return evidence.write(made, found.path)


def entry(id: str = "stays", verdict: str = "holds", **fields: object) -> Entry:
    """A claim's result with a measured number, a baseline, a control and a spread."""
    known: dict[str, object] = {
        "checks": {"near the whole <script>": True},
        "measured": {"accuracy": 0.91},
        "baseline": {"accuracy": 0.93},
        "control": {"accuracy": 0.4},
        "spread": {"accuracy": 0.01},
        "seeds": [0, 1, 2],
        "seconds": 3.5,
        "note": "because <script>",
    }
    title = "half of it <script>alert(1)</script> stays"
    return Entry(id=id, kind="effect", title=title, verdict=verdict, **{**known, **fields})  # type: ignore[arg-type]


@contextmanager
def wing_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wing]:
    """The wing is the only content of its socket while the context lasts."""
    import tessera.parts

    made = Wing(folder)
    prefix = f"tessera.parts.{SOCKET}"
    kept = {name: module for name, module in sys.modules.items() if name.startswith(prefix)}
    registered = {key: part for key, part in registry._registered.items() if key[0] == SOCKET}
    _forget(prefix)
    monkeypatch.setattr(tessera.parts, "__path__", [str(made.parts.parent), *tessera.parts.__path__])
    monkeypatch.setattr(evidence, "folder", lambda *_: made.evidence)
    monkeypatch.setattr(evidence, "PACKAGE", folder / "nothing-shipped")
    try:
        yield made
    finally:
        _forget(prefix)
        sys.modules.update(kept)
        registry._registered.update(registered)
        evidence.source_hash.cache_clear()


def _forget(prefix: str) -> None:
    for name in [n for n in sys.modules if n.startswith(prefix)]:
        del sys.modules[name]
    for key in [k for k in registry._registered if k[0] == SOCKET]:
        del registry._registered[key]
