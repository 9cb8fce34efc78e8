"""Which fixture a part is tried on: by what it is, otherwise by its socket. A socket without a row has the plain checks."""

from __future__ import annotations

from tessera import registry
from tessera.hosts.part import HostPart
from tessera.lab.contract.dual import DualFixture
from tessera.lab.contract.fixture import Fixture
from tessera.lab.contract.hosted import HostFixture
from tessera.lab.contract.models import ComposedFixture
from tessera.lab.contract.others import CompressionFixture, FewShotFixture, PixelsFixture
from tessera.lab.contract.rules import CHECKS
from tessera.lab.contract.training import ObjectiveFixture, TuningFixture
from tessera.models.views import EncoderViews
from tessera.training.objective import Objective
from tessera.training.tuning import Tuning

BY_KIND: tuple[tuple[type, type[Fixture]], ...] = (
    (HostPart, HostFixture),
    (EncoderViews, ComposedFixture),
    (Objective, ObjectiveFixture),
    (Tuning, TuningFixture),
)
BY_SOCKET: dict[str, type[Fixture]] = {
    "pixels": PixelsFixture,
    "encoders": ComposedFixture,
    "experts": ComposedFixture,
    "tokens": ComposedFixture,
    "connectors": ComposedFixture,
    "couplings": ComposedFixture,
    "contrastive": DualFixture,
    "few_shot": FewShotFixture,
    "compression": CompressionFixture,
}


def fixtures(part: registry.Part) -> list[type[Fixture]]:
    """The fixtures of a part: one for every kind that it is of, else that of its socket."""
    kinds = [fixture for kind, fixture in BY_KIND if isinstance(part.target, type) and issubclass(part.target, kind)]
    return kinds or [BY_SOCKET.get(part.socket, Fixture)]


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
