"""Fingerprints: what a part, a protocol, the trainer or the world does, as a few dozen numbers on fixed small inputs.

Evidence is fresh as long as what it was measured with still behaves the same. Numbers are compared with a tolerance, never
hashed: a rename, a comment or a faster loop changes nothing; a changed sign or an inverted selection does.

Names: `part tokens/fopru`, `protocol token_reduction`, `core world`, `model nano`. What they stand for computes
`tessera.lab.fingerprints`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

Numbers: TypeAlias = Mapping[str, "list[float] | str"]
"""What was looked at -> numbers (compared with a tolerance), or a text (compared exactly)."""

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


def digest(texts: Sequence[str]) -> str:
    """Sixteen hexadecimal digits of texts in their order."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
