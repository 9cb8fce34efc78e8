"""Which fixture a part is tried on: by its socket and how it is used there. What has no row has the plain checks."""

from __future__ import annotations

from tessera import registry
from tessera.lab.contract.dual import DualFixture
from tessera.lab.contract.fixture import Fixture
from tessera.lab.contract.hosted import HostFixture
from tessera.lab.contract.models import ComposedFixture
from tessera.lab.contract.others import CompressionFixture, FewShotFixture, PixelsFixture
from tessera.lab.contract.rules import CHECKS
from tessera.lab.contract.training import ObjectiveFixture, TuningFixture

BY_USE: dict[registry.Use, type[Fixture]] = {"plugged": HostFixture, "built": ComposedFixture}
BY_SOCKET: dict[tuple[str, registry.Use], type[Fixture]] = {
    ("pixels", "around"): PixelsFixture,
    ("contrastive", "built"): DualFixture,
    ("few_shot", "called"): FewShotFixture,
    ("compression", "called"): CompressionFixture,
    ("objectives", "called"): ObjectiveFixture,
    ("distillation", "called"): ObjectiveFixture,
    ("preference", "called"): ObjectiveFixture,
    ("tuning", "called"): TuningFixture,
}


def fixtures(part: registry.Part) -> list[type[Fixture]]:
    """The fixtures of a part: one for every contract that it keeps."""
    found = [BY_SOCKET.get((part.socket, kept.use)) or BY_USE.get(kept.use, Fixture) for kept in part.contracts]
    return list(dict.fromkeys(found)) or [Fixture]


def fixture(part: registry.Part) -> Fixture:
    """The part on its fixture, or on all of them together."""
    made = [cls(part) for cls in fixtures(part)]
    return made[0] if len(made) == 1 else Several(part, made)


class Several(Fixture):
    """A part of several kinds, such as a tuning that plugs into hosts: every check of every kind."""

    def __init__(self, part: registry.Part, fixtures: list[Fixture]) -> None:
        super().__init__(part)
        self.fixtures = fixtures

    def checks(self) -> tuple[str, ...]:
        """Those of all fixtures."""
        found = {name for one in self.fixtures for name in one.checks()}
        return tuple(name for name in CHECKS if name in found)

    def run(self, check: str) -> None:
        """On every fixture that has it."""
        for one in self.fixtures:
            if check in one.checks():
                one.run(check)
