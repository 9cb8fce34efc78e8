"""The registry: one registration, exact names, nearest names, nothing imported before it is asked for."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripts import write_sockets

from tessera import registry
from tessera.errors import TesseraError, UserError


@pytest.fixture(autouse=True)
def _own_registrations() -> Iterator[None]:
    """What a test registers is forgotten after it; built-in parts that it was the first to import stay, as their modules do."""
    before = set(registry._registered)
    yield
    registry._scanned.cache_clear()
    for key, part in list(registry._registered.items()):
        module = part.target.__module__
        built_in = module.startswith("tessera.parts.") and not module.startswith("tessera.parts.time_series")
        if key not in before and not built_in:
            del registry._registered[key]


@pytest.fixture
def wing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A `tessera.parts.time_series` package in a temporary folder; other sockets are as they are."""
    import tessera.parts

    folder = tmp_path / "time_series"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    monkeypatch.setattr(tessera.parts, "__path__", [*tessera.parts.__path__, str(tmp_path)])
    for name in [n for n in sys.modules if n.startswith("tessera.parts.time_series")]:
        monkeypatch.delitem(sys.modules, name)
    yield folder
    for name in [n for n in sys.modules if n.startswith("tessera.parts.time_series")]:
        del sys.modules[name]


def write_part(folder: Path, name: str, registered: str | None = None) -> None:
    (folder / f"{name}.py").write_text(
        "from tessera.registry import part\n"
        f"@part({registered or name!r}, socket='time_series', catalog=7)\n"
        "def probe():\n    return 'probed'\n"
    )


def test_a_registered_part_is_found_by_its_exact_name() -> None:
    @registry.part("mine", socket="other", catalog=3)
    class Mine:
        pass

    found = registry.get("other", "mine")
    assert (found.name, found.socket, found.target, found.catalog) == ("mine", "other", Mine, 3)
    assert "mine" in registry.names("other")
    for near in ("min", "Mine", "mine2"):
        with pytest.raises(UserError, match=f"'{near}'. Did you mean 'mine'"):
            registry.get("other", near)


def test_a_name_is_given_once() -> None:
    @registry.part("mine", socket="other")
    class Mine:
        pass

    with pytest.raises(TesseraError, match="'mine' of socket 'other' is registered twice") as raised:

        @registry.part("mine", socket="other")
        class Other:
            pass

    assert raised.value.exit_code == 1
    registry.part("mine", socket="other")(Mine)  # a reloaded module registers the same thing again
    registry.part("mine", socket="time_series")(Mine)  # another socket is another namespace


def test_a_wrong_socket_is_refused() -> None:
    for use in (
        lambda: registry.part("x", socket="tokenz"),
        lambda: registry.names("tokenz"),
        lambda: registry.get("tokenz", "x"),
    ):
        with pytest.raises(UserError, match="unknown socket 'tokenz'. Did you mean 'tokens'"):
            use()


def test_built_in_parts_are_listed_without_being_imported(wing: Path) -> None:
    write_part(wing, "heads")
    (wing / "broken.py").write_text("raise RuntimeError('imported')")
    (wing / "_private.py").write_text("raise RuntimeError('imported')")
    assert registry.names("time_series") == ["broken", "heads"]
    assert "tessera.parts.time_series.heads" not in sys.modules


def test_a_built_in_part_is_imported_when_it_is_asked_for(wing: Path) -> None:
    write_part(wing, "heads")
    write_part(wing, "neurons")
    found = registry.get("time_series", "heads")
    assert found.target() == "probed"
    assert found.catalog == 7
    assert "tessera.parts.time_series.neurons" not in sys.modules
    with pytest.raises(UserError, match="unknown part of socket 'time_series': 'head'. Did you mean 'heads'"):
        registry.get("time_series", "head")


def test_a_part_of_another_socket_says_where_it_belongs(wing: Path) -> None:
    write_part(wing, "heads")
    with pytest.raises(UserError, match="part 'heads' belongs to socket 'time_series', not to 'tokens'"):
        registry.get("tokens", "heads")


def test_a_file_that_registers_another_name_is_our_fault(wing: Path) -> None:
    write_part(wing, "heads", registered="'tails'")
    with pytest.raises(TesseraError, match="registers no part of that name") as raised:
        registry.get("time_series", "heads")
    assert raised.value.exit_code == 1


def test_parts_of_other_packages_come_through_entry_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "foreign_parts.py").write_text(
        "from tessera.registry import part\n@part('theirs', socket='time_series')\ndef theirs(): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "foreign_parts", raising=False)
    points = importlib.metadata.EntryPoints(
        importlib.metadata.EntryPoint(name, "foreign_parts", "tessera.parts")
        for name in ("time_series.theirs", "tokens.unrelated")
    )
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points.select(group=group))
    assert "theirs" in registry.names("time_series")
    assert "unrelated" not in registry.names("time_series")
    assert "foreign_parts" not in sys.modules
    assert registry.get("time_series", "theirs").target.__module__ == "foreign_parts"


def test_entry_points_are_scanned_once_and_again_for_another_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan, scans = importlib.metadata.entry_points, list[str]()

    def counted(group: str) -> importlib.metadata.EntryPoints:
        scans.append(group)
        return scan(group=group)

    def package(folder: str, name: str) -> Path:
        metadata = tmp_path / folder / f"{name}-1.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (metadata / "entry_points.txt").write_text(f"[tessera.parts]\ntime_series.{name} = {name}\n")
        importlib.invalidate_caches()
        return tmp_path / folder

    monkeypatch.setattr(importlib.metadata, "entry_points", counted)
    registry._scanned.cache_clear()
    for _ in range(2):
        for socket in registry.SOCKETS:
            assert not {"first", "second"} & set(registry.names(socket))
    assert scans == ["tessera.parts"]
    monkeypatch.syspath_prepend(package("one", "first"))
    assert "first" in registry.names("time_series") and "first" not in registry.names("tokens")
    assert len(scans) == 2
    package("one", "second")  # into a folder that has been scanned
    registry._scanned.cache_clear()
    assert {"first", "second"} <= set(registry.names("time_series"))


@pytest.mark.contract
def test_every_part_of_the_package_can_be_got() -> None:
    found = [(socket, name) for socket in registry.SOCKETS for name in registry.names(socket)]
    assert found
    for socket, name in found:
        part = registry.get(socket, name)
        assert (part.socket, part.name) == (socket, name)
        assert part.target.__doc__, f"{socket}/{name} has no docstring"


def test_a_part_knows_what_it_is_by_what_it_derives_from() -> None:
    found = {(p.name, *sorted(p.uses)) for p in (registry.get("tokens", n) for n in ("fopru", "pixel_shuffle"))}
    assert found == {("fopru", "plugged"), ("pixel_shuffle", "built")}
    assert registry.get("pixels", "s2").uses == {"built"} and registry.get("pixels", "mini_monkey").uses == {"around"}
    assert registry.get("tuning", "arcana").uses == {"called", "plugged"}
    fopru = registry.get("tokens", "fopru").target
    for socket, target in (("other", fopru), ("connectors", fopru), ("tokens", object), ("tokens", len)):
        assert not registry.Part("x", socket, target).contracts
    assert registry.get("tokens", "fopru").identity() == {"keep": 1.0} and registry.get("connectors", "mlp").identity() is None


@pytest.mark.contract
def test_every_socket_that_holds_a_part_has_a_contract() -> None:
    assert not [socket for socket, found in registry.CONTRACTS.items() if not found and registry.names(socket)]
    assert all(contract.load().__doc__ for found in registry.CONTRACTS.values() for contract in found)


def test_the_table_of_sockets_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    assert write_sockets.written() == write_sockets.PAGE.read_text(encoding="utf-8"), "run scripts/write_sockets.py"
    monkeypatch.setitem(registry.CONTRACTS, "other", registry.CONTRACTS["decoding"])
    assert write_sockets.written() != write_sockets.PAGE.read_text(encoding="utf-8")
