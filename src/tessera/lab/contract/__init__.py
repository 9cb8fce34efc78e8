"""The contract of every part, tested over the registry and not over a list: a part is tested as soon as its file exists.

In a test module (Tessera's own is `tests/contract/test_parts.py`, a third party's names its parts):

    from tessera.lab.contract import contract_tests

    test_contract = contract_tests("connectors/normed")         # nothing named: every registered part

or as a command, `python -m tessera.lab.contract connectors/normed`.

A part's file may say, as constants of the module, all of them optional:

TINY         options with which the part is built for the tests, where its defaults are large or something must be given
TINY_MODEL   what the model around it must be made of: entries of `parts` ("encoders": [...]) and of "text" (the language model)
UNSUPPORTED  check -> reason, for what the part does not do; the check is then skipped and the reason shown

`Config` and its defaults are enough for the rest. `table.py` says which checks a socket has, `CHECKS` what they mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

from tessera import registry
from tessera.errors import UserError, unknown

if TYPE_CHECKING:
    from tessera.lab.contract.fixture import Fixture

CHECKS: Mapping[str, str] = {
    "imports": "the part's file can be imported and registers the part",
    "contract": "it derives from a contract of its socket, and can be called as that says",
    "page": "the docstring has shapes and, of a published method, its paper, year, address and deviations",
    "options": "unknown options and wrong types are refused, with the field and the nearest name",
    "claims": "a published method carries an exact claim",
    "builds": "it is built at tiny size and runs",
    "count": "the declared number of tokens is the real one",
    "gradients": "gradients reach every trainable parameter and no frozen one",
    "batch": "a batch of two equals two singles, to 1e-5",
    "padding": "the side on which rows are padded changes nothing, to 1e-5",
    "saving": "what was saved and loaded gives the same bits",
    "identity": "set to do nothing, it changes no bit",
    "undone": "taken out, or done, it has left nothing behind",
    "bf16": "it runs under bfloat16 autocast, and what comes out is finite",
    "meta": "it is built on the meta device, where no number is known",
}


@lru_cache(maxsize=1)
def fixture_of(socket: str, name: str) -> Fixture:
    """The part on its socket's fixture; imports it."""
    from tessera.lab.contract.table import fixture

    return fixture(registry.get(socket, name))


def chosen(names: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    """(socket, name) of the parts that are named `name` or `socket/name`, of all if none is. Raises `UserError` for others."""
    known = [(socket, name) for socket in registry.SOCKETS for name in registry.names(socket)]
    if not names:
        return known
    found = []
    for text in names:
        fitting = [pair for pair in known if text in (pair[1], "/".join(pair))]
        if not fitting:
            raise unknown("part", text, ["/".join(pair) for pair in known] if "/" in text else [n for _, n in known])
        found += fitting
    return found


def checks(socket: str, name: str) -> tuple[str, ...]:
    """Names of the checks that a part is under, in order; only "imports" for one that cannot be imported."""
    try:
        return ("imports", *fixture_of(socket, name).checks())
    except Exception:  # which is what the check will say
        return ("imports",)


def run(socket: str, name: str, check: str) -> None:
    """One check of one part. Raises `AssertionError` with a sentence if it fails, `Unsupported` for what the part does not do."""
    fixture = fixture_of(socket, name)
    if check != "imports":
        fixture.run(check)


class Unsupported(Exception):
    """The part says that it does not do this; the message is its reason."""


def contract_tests(*names: str) -> Callable[..., None]:
    """A test function for pytest over parts and checks: `test_contract = contract_tests()`."""
    import pytest

    cases = [(socket, name, check) for socket, name in chosen(names) for check in checks(socket, name)]

    @pytest.mark.contract
    @pytest.mark.parametrize(("socket", "name", "check"), cases, ids=["-".join(case) for case in cases])
    def test(socket: str, name: str, check: str) -> None:
        try:
            run(socket, name, check)
        except Unsupported as reason:
            pytest.skip(f"{socket}/{name} does not support {check!r}: {reason}")

    test.__test__ = True  # type: ignore[attr-defined]
    return test


def outcomes(*names: str) -> Iterator[dict[str, str]]:
    """The same without pytest, as it comes: part, check, state ("holds", "unsupported", "broken") and reason."""
    for socket, name in chosen(names):
        for check in checks(socket, name):
            state, reason = "holds", ""
            try:
                run(socket, name, check)
            except Unsupported as said:
                state, reason = "unsupported", str(said)
            except (AssertionError, UserError) as error:
                state, reason = "broken", " ".join(str(error).split())
            except Exception as error:  # a crash breaks the contract too
                state, reason = "broken", f"{type(error).__name__}: {' '.join(str(error).split())}"
            yield {"part": f"{socket}/{name}", "check": check, "state": state, "reason": reason}
