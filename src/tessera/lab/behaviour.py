"""Fingerprints: what a part, a protocol, the trainer or the world does, as a few dozen numbers on fixed small inputs.

Evidence is fresh as long as what it was measured with still behaves the same. Numbers are compared with a tolerance, never
hashed: a rename, a comment or a faster loop changes nothing; a changed sign or an inverted selection does.

Names: `part tokens/fopru`, `protocol token_reduction`, `core world`, `model nano`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from tessera.io import write_json

if TYPE_CHECKING:
    from torch import Tensor

    from tessera.lab.experiment import Claim
    from tessera.lab.lab import Lab

Numbers: TypeAlias = Mapping[str, "list[float] | str"]
"""What was looked at -> numbers (compared with a tolerance), or a text (compared exactly)."""

PACKAGE = Path(__file__).resolve().parents[1]
RELATIVE = 2e-3
ABSOLUTE = 2e-5
"""Two numbers are the same within ABSOLUTE + RELATIVE x the largest magnitude beside them: kernels of other processors round
otherwise, in float32, over a few layers or steps."""


def differences(before: Numbers, now: Numbers) -> list[str]:
    """What differs, in words; empty if both are the same behaviour."""
    found = [f"{name} is {'missing' if name in before else 'new'}" for name in sorted(before.keys() ^ now.keys())]
    for name in before.keys() & now.keys():
        a, b = before[name], now[name]
        if isinstance(a, str) or isinstance(b, str):
            if a != b:
                found.append(f"{name} is {b!r}, it was {a!r}")
        elif len(a) != len(b):
            found.append(f"{name} has {len(b)} numbers, it had {len(a)}")
        elif (gap := _gap(a, b)) > 1:
            found.append(f"{name} differs by {gap:.3g} times the tolerance")
    return sorted(found)


def _gap(a: Sequence[float], b: Sequence[float]) -> float:
    if any(math.isfinite(x) != math.isfinite(y) for x, y in zip(a, b, strict=True)):
        return math.inf
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if math.isfinite(x)]
    scale = max((abs(x) for x, _ in pairs), default=0.0)
    return max((abs(x - y) for x, y in pairs), default=0.0) / (ABSOLUTE + RELATIVE * scale)


def summary(tensor: Tensor, count: int = 12) -> list[float]:
    """A tensor of any shape as `count` + 2 numbers that move with every element and every order of elements: fixed random
    projections, the mean and the root mean square."""
    import torch

    flat = tensor.detach().to(torch.float64).flatten().cpu()
    if flat.numel() == 0:
        return [0.0] * (count + 2)
    directions = torch.randn(count, flat.numel(), generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    seen = directions @ flat / math.sqrt(flat.numel())
    return [float(f"{x:.7g}") for x in [*seen.tolist(), float(flat.mean()), float(flat.square().mean().sqrt())]]


def of(name: str, lab: Lab) -> Numbers:
    """The present behaviour of what a name stands for; {"error": ...} where it fails.

    Computed once per `lab`; kept on disk under the hash of all files of this package, for what stands in this package.
    """
    if name not in lab.behaviours:
        kept = _kept(name, lab)
        found = None if kept is None or not kept.is_file() else _read(kept)
        if found is None:
            found = _safe(name, lab)
            if kept is not None and "error" not in found:
                write_json(kept, found)
        lab.behaviours[name] = found
    return lab.behaviours[name]


def _kept(name: str, lab: Lab) -> Path | None:
    """Where a behaviour is kept; None for third parties' parts and protocols, whose files nobody has
    hashed."""
    from tessera import registry
    from tessera.lab.claims import part_module

    kind, _, rest = name.partition(" ")
    if kind == "part":
        module = part_module(registry.get(*rest.split("/")))
        if not module.__name__.startswith("tessera.parts."):
            return None
    if kind == "protocol":
        from tessera.lab.protocols.table import protocols

        if not protocols()[rest].__module__.startswith("tessera.lab."):
            return None
    return lab.cache / "behaviours" / source_hash() / f"{name.replace(' ', '.').replace('/', '.')}.json"


@cache
def source_hash() -> str:
    """Of all files of this package but the evidence, and of torch's and transformers' versions."""
    versions = [importlib.metadata.version(name) for name in ("torch", "transformers")]
    digest = hashlib.sha256(repr(versions).encode())
    for path in sorted(PACKAGE.rglob("*")):
        inside = path.relative_to(PACKAGE).parts
        if inside[0] != "evidence" and "__pycache__" not in inside and path.is_file():
            digest.update(repr(inside).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _read(path: Path) -> Numbers | None:
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found else None


def _safe(name: str, lab: Lab) -> Numbers:
    try:
        return _of(name, lab)
    except Exception as error:  # what cannot run behaves otherwise than what could
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}


def _of(name: str, lab: Lab) -> Numbers:
    kind, _, rest = name.partition(" ")
    if kind == "part":
        from tessera import registry
        from tessera.lab.part_behaviour import of_part

        socket, _, part = rest.partition("/")
        return of_part(registry.get(socket, part))
    if kind == "protocol":
        from tessera.lab.protocols.table import protocols

        return protocols()[rest].golden(lab)
    if kind == "model":
        return {"weights": lab.weights(rest)}
    if kind == "core":
        return _core(rest)
    raise KeyError(name)


@cache
def _core(name: str) -> Numbers:
    """It depends on no lab: once in a process."""
    from tessera.lab.core_behaviour import CORE

    return CORE[name]()


def depends(socket: str, part: str, claim: Claim) -> list[str]:
    """Names of all that a claim's result depends on."""
    from tessera.lab.experiment import Exact, Experiment

    found = [f"part {socket}/{part}"]
    if isinstance(claim, Exact):
        return found
    arms = list(claim.arms().values()) if isinstance(claim, Experiment) else [claim.treatment, claim.baseline]
    found += claim.protocol.depends(*(arm for arm in arms if arm is not None))
    if isinstance(claim, Experiment):
        found += ["core judge"]
        found += [name for given in claim.given for name in given.depends()]
    return list(dict.fromkeys(found))
