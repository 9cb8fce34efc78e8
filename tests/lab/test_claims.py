"""Where claims are found, and what is no claim."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.lab.toys import CRASH, EFFECT, EXACT, PART, SOCKET, Wing, wing_in

from tessera import registry
from tessera.errors import TesseraError
from tessera.lab.claims import about, claims_of
from tessera.lab.experiment import Cost, Paper, Vary

CLAIM = 'Exact(id="{id}", promise="One is one.", run=lambda lab: Checked(checks={"equal": True}))'
THEIRS = f'"""What {{name}} promises."""\nfrom tessera.lab.experiment import Checked, Exact\n\nCLAIMS = [{CLAIM}]\n'


@pytest.fixture
def wing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wing]:
    with wing_in(tmp_path, monkeypatch) as made:
        yield made


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for packages of somebody else's."""
    home = tmp_path / "site-packages"
    home.mkdir()
    monkeypatch.syspath_prepend(str(home))
    yield home
    for name in [n for n, module in sys.modules.items() if str(home) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]
    for key in [k for k in registry._registered if k[0] == SOCKET]:
        del registry._registered[key]


def installed(home: Path, name: str, modules: dict[str, str], points: dict[str, dict[str, str]]) -> None:
    """A package as an installer leaves it: modules, and metadata with entry points."""
    metadata = home / f"{name}-0.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    groups = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in found.items()) for group, found in points.items()]
    (metadata / "entry_points.txt").write_text("\n".join(groups))
    for module, text in modules.items():
        (home / f"{module}.py").write_text(text.replace("{name}", name).replace("{catalog}", ""))
    importlib.invalidate_caches()


def test_claims_stand_in_the_order_of_the_file(wing: Wing) -> None:
    wing.part("toy", EFFECT, EXACT)
    assert [(c.id, c.kind, c.paper) for c in claims_of(SOCKET, "toy")] == [
        ("helps", "effect", "table 2"),
        ("is_one", "exact", "section 4"),
    ]
    assert about(SOCKET, "toy") == "What toy promises."


def test_a_part_without_a_claims_file_promises_nothing(wing: Wing) -> None:
    wing.part("toy", text=PART + "\nCLAIMS = 3\n")  # a part's own file is not asked where there is a tree for it
    assert claims_of(SOCKET, "toy") == [] and about(SOCKET, "toy") == ""


def test_a_package_of_somebody_elses_names_its_claims_by_an_entry_point(theirs: Path) -> None:
    modules = {"theirs": PART, "theirs_claims": THEIRS.replace("{id}", "sure")}
    points = {"tessera.parts": {"brain.theirs": "theirs"}, "tessera.claims": {"brain.theirs": "theirs_claims"}}
    installed(theirs, "theirs", modules, points)
    assert [c.id for c in claims_of(SOCKET, "theirs")] == ["sure"]
    assert about(SOCKET, "theirs") == "What theirs promises."
    assert "theirs" not in sys.modules, "the part itself is not imported for its claims"


def test_or_keeps_them_in_the_parts_own_module(theirs: Path) -> None:
    text = PART + THEIRS.partition("\n")[2].replace("{id}", "own")
    installed(theirs, "own", {"own": text}, {"tessera.parts": {"brain.own": "own"}})
    assert [c.id for c in claims_of(SOCKET, "own")] == ["own"]
    installed(theirs, "silent", {"silent": PART}, {"tessera.parts": {"brain.silent": "silent"}})
    registry._scanned.cache_clear()  # installed into a folder that was there before
    assert claims_of(SOCKET, "silent") == [] and about(SOCKET, "silent") == ""


PROTOCOL = """from dataclasses import dataclass
from tessera.lab.protocols.base import Protocol

@dataclass(frozen=True, slots=True)
class Reading(Protocol):
    name = "mind reading"

    @classmethod
    def golden(cls, lab):
        return {"reads": [1.0, 2.0]}
"""


def test_a_package_of_somebody_elses_brings_protocols(theirs: Path, tmp_path: Path) -> None:
    """They are found by name, and their golden run is not kept under this package's hash."""
    from tessera.lab.local_lab import LocalLab
    from tessera.lab.protocols.table import protocols

    installed(theirs, "reading", {"reading": PROTOCOL}, {"tessera.protocols": {"reading": "reading"}})
    assert protocols()["mind reading"].__module__ == "reading"
    assert "answering" in protocols()
    lab = LocalLab(cache=tmp_path / "cache", threads=0)
    assert lab.behaviour("protocol mind reading") == {"reads": [1.0, 2.0]}
    assert not list((tmp_path / "cache").rglob("*mind*"))


@pytest.mark.parametrize("says", [True, False])
def test_a_part_of_a_socket_without_a_fixture_says_itself_what_it_does(theirs: Path, says: bool) -> None:
    from tessera.lab.fingerprints.parts import of_part

    own = 'def behaviour():\n    return {"acts": [4.0]}\n' if says else ""
    modules = {"alone": PART, "alone_claims": THEIRS.replace("{id}", "sure") + own}
    points = {"tessera.parts": {"brain.alone": "alone"}, "tessera.claims": {"brain.alone": "alone_claims"}}
    installed(theirs, "alone", modules, points)
    if says:
        assert of_part(registry.get(SOCKET, "alone")) == {"own: acts": [4.0]}
    else:
        with pytest.raises(TesseraError, match="socket 'brain' has no fixture.*behaviour"):
            of_part(registry.get(SOCKET, "alone"))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("CLAIMS = 3\n", "CLAIMS must be a list"),
        ("CLAIMS.append(true)\n", "CLAIMS must be a list"),
        (EXACT + EXACT, "two claims are called is_one"),
        ('CLAIMS.append(Paper(0.5, " "))\n', "needs the place in the paper"),
    ],
)
def test_a_wrong_claims_file_is_refused_with_its_name(wing: Wing, line: str, says: str) -> None:
    wing.part("toy", line)
    with pytest.raises(TesseraError, match=says) as refused:
        claims_of(SOCKET, "toy")
    assert "needs the place" in says or "tessera.claims.brain.toy" in str(refused.value)


def test_a_cost_says_what_it_promises(wing: Wing) -> None:
    from tests.lab.toys import ToyCost

    with pytest.raises(TesseraError, match="at_least or at_most"):
        Cost(id="free", promise="It costs nothing.", protocol=ToyCost(), treatment=Vary("toy"))
    several = [
        Cost(id="a", promise="", protocol=ToyCost(), treatment=Vary("toy"), **{side: {"ratio": Paper(value, "table 1")}})
        for side, value in (("at_least", 2.0), ("at_most", 2.0), ("at_least", 3.0))
    ]
    assert len({claim.digest() for claim in several}) == 3


def test_reading_the_claims_of_all_parts_loads_no_torch(subprocess_env: dict[str, str]) -> None:
    code = (
        "import sys; from tessera import registry; from tessera.lab.claims import claims_of\n"
        "n = sum(len(claims_of(s, p)) for s in registry.SOCKETS for p in registry._builtin(s))\n"
        "print(n > 20, sorted({'torch', 'transformers', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=subprocess_env, check=False)
    assert done.stdout.strip() == "True []", done.stdout + done.stderr


def test_a_claim_that_crashes_is_still_found(wing: Wing) -> None:
    wing.part("toy", CRASH, EXACT)
    assert [c.id for c in claims_of(SOCKET, "toy")] == ["falls", "is_one"]
