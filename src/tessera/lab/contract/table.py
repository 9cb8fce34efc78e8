"""Which bench a part is tried on: by what it is, otherwise by its socket. A socket without a row has the plain checks."""

from __future__ import annotations

from tessera import registry
from tessera.hosts.part import HostPart
from tessera.lab.contract import CHECKS
from tessera.lab.contract.bench import Bench
from tessera.lab.contract.hosted import HostBench
from tessera.lab.contract.models import ComposedBench, DualBench
from tessera.lab.contract.others import CompressionBench, FewShotBench, PixelsBench
from tessera.lab.contract.training import ObjectiveBench, TuningBench
from tessera.models.views import EncoderViews
from tessera.training.objective import Objective
from tessera.training.tuning import Tuning

BY_KIND: tuple[tuple[type, type[Bench]], ...] = (
    (HostPart, HostBench),
    (EncoderViews, ComposedBench),
    (Objective, ObjectiveBench),
    (Tuning, TuningBench),
)
BY_SOCKET: dict[str, type[Bench]] = {
    "pixels": PixelsBench,
    "encoders": ComposedBench,
    "experts": ComposedBench,
    "tokens": ComposedBench,
    "connectors": ComposedBench,
    "couplings": ComposedBench,
    "contrastive": DualBench,
    "few_shot": FewShotBench,
    "compression": CompressionBench,
}


def benches(part: registry.Part) -> list[type[Bench]]:
    """The benches of a part: one for every kind that it is of, else that of its socket."""
    kinds = [bench for kind, bench in BY_KIND if isinstance(part.target, type) and issubclass(part.target, kind)]
    return kinds or [BY_SOCKET.get(part.socket, Bench)]


def bench(part: registry.Part) -> Bench:
    """The part on its bench, or on all of them together."""
    made = [cls(part) for cls in benches(part)]
    return made[0] if len(made) == 1 else Several(part, made)


class Several(Bench):
    """A part of several kinds, such as a tuning that plugs into hosts: every check of every kind."""

    def __init__(self, part: registry.Part, benches: list[Bench]) -> None:
        super().__init__(part)
        self.benches = benches

    def checks(self) -> tuple[str, ...]:
        """Those of all benches."""
        found = {name for one in self.benches for name in one.checks()}
        return tuple(name for name in CHECKS if name in found)

    def run(self, check: str) -> None:
        """On every bench that has it."""
        for one in self.benches:
            if check in one.checks():
                one.run(check)
