"""What a probe is: a look into a model that gives numbers, where a benchmark only looks at its answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tessera.evaluation.intervals import Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """What a probe found.

    numbers      name -> value with its 95 % interval
    profile      name -> one value per layer, block, ratio or what the name says, in its order
    n            questions or samples that were looked at
    """

    numbers: Mapping[str, Interval] = field(default_factory=dict)
    profile: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    n: int = 0


class Probe(ABC):
    """A model -> numbers about its inside, with intervals. It leaves the model as it was."""

    @abstractmethod
    def run(self, model: Any, processor: Any) -> ProbeResult:
        """Probes `model`. Raises `UserError`, saying what is missing, for a model that cannot be probed."""
