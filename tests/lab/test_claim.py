"""Claims and findings: what the verdict follows from."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.lab.catalog_wing import SOCKET, Wing, wing_in

from tessera import registry
from tessera.errors import TesseraError
from tessera.lab.claim import Claim, Finding, budget_of, claim, claims_of

PART = (
    '''"""{name} is made up."""
from tessera.lab.claim import Finding, budget, claim
from tessera.registry import part


@part("{name}", socket="brain"{catalog})
class Toy:
    pass


@budget
def at(share, layers):
    return {{"keep": share}}


@claim("second in the alphabet, first in the file", kind="exact")
def zebra(lab):
    """About a
    zebra."""
    return Finding(checks={{"is striped": True}})


@claim("the other", kind="cost", paper="table 1")
def ant(lab):
    return Finding(checks={{}})
'''.replace("{{", "<")
    .replace("}}", ">")
    .replace("<", "{")
    .replace(">", "}")
)


@pytest.fixture
def wing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wing:
    with wing_in(tmp_path, monkeypatch) as made:
        yield made


@pytest.mark.parametrize(
    ("checks", "verdict"),
    [
        ({}, "not applicable"),
        ({"a": True}, "holds"),
        ({"a": True, "b": True}, "holds"),
        ({"a": True, "b": False}, "partly"),
        ({"a": False}, "not reproduced"),
        ({"a": False, "b": False}, "not reproduced"),
    ],
)
def test_the_verdict_follows_from_the_checks(checks: dict[str, bool], verdict: str) -> None:
    assert Finding(checks=checks).verdict == verdict


def test_nobody_can_type_a_verdict() -> None:
    with pytest.raises(TypeError):
        Finding(checks={}, verdict="holds")  # type: ignore[call-arg]
    with pytest.raises((AttributeError, TypeError)):  # the second where slots and frozen meet
        Finding(checks={}).verdict = "holds"  # type: ignore[misc]


def test_a_claim_of_another_kind_is_refused() -> None:
    with pytest.raises(TesseraError, match="exact, effect, cost, not 'feeling'"):
        claim("it feels right", kind="feeling")  # type: ignore[arg-type]


def test_claims_stand_in_the_order_of_the_file(wing: Wing) -> None:
    wing.part("toy", text=PART)
    found = claims_of(registry.get(SOCKET, "toy"))
    assert [(c.id, c.kind, c.paper) for c in found] == [("zebra", "exact", ""), ("ant", "cost", "table 1")]
    assert isinstance(found[0], Claim) and found[0].about == "About a\nzebra."


def test_a_part_says_how_it_meets_a_budget(wing: Wing) -> None:
    wing.part("toy", text=PART)
    wing.part("spare")
    told = budget_of(registry.get(SOCKET, "toy"))
    assert told is not None and told(0.25, 8) == {"keep": 0.25}
    assert budget_of(registry.get(SOCKET, "spare")) is None


def test_a_claimed_function_is_still_a_function() -> None:
    @claim("one", kind="exact")
    def one(lab: object) -> Finding:
        return Finding(checks={"ran": True})

    assert one(None).verdict == "holds"  # type: ignore[arg-type]
