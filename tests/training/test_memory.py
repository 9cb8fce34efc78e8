"""Free memory goes back to the system."""

from __future__ import annotations

import platform

import pytest

from tessera.training import memory


def test_memory_is_returned_where_the_library_can() -> None:
    assert memory.return_memory() is (platform.libc_ver()[0] == "glibc")


def test_other_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_trim", lambda: None)
    assert memory.return_memory() is False
