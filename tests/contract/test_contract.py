"""The contract can be broken: parts that do not keep it are found out, by the check that is meant to."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest

from tessera import registry
from tessera.errors import UserError
from tessera.lab import contract
from tessera.lab.contract import CHECKS, Unsupported
from tessera.lab.contract.__main__ import main
from tessera.lab.contract.fixture import Broken

GOOD = '''
"""A toy after Doe, "Toys", 2020, arXiv:2001.00001, that maps visual tokens by one linear layer, which is all there is to it:
nothing more happens, and nothing less, whatever the tokens are.

Deviations: none. Shapes: [B, N, D] -> [B, N, E].
"""
import torch
from torch import nn
from tessera.config import config
from tessera.lab.experiment import Checked, Exact
from tessera.models.contracts import Connector
from tessera.registry import part


@part("toy", socket="connectors", catalog=1)
class Toy(Connector):
    """One linear layer."""

    @config
    class Config:
        """gain: what the result is multiplied with."""

        gain: float = 1.0

    def __init__(self, config, width, out_width):
        super().__init__(config, width, out_width)
        self.gain = config.gain
        self.linear = nn.Linear(width, out_width)

    def forward(self, tokens):
        """[B, N, D] -> [B, N, E]."""
        x = self.linear(tokens.features)
        return tokens.with_features(x * self.gain)


CLAIMS = [Exact(id="linear", promise="It is linear.", run=lambda lab: Checked(checks={}))]
'''


@pytest.fixture
def toy() -> Iterator[Callable[..., None]]:
    """Registers the toy with lines replaced; forgotten afterwards."""

    def make(*changes: tuple[str, str]) -> None:
        source = GOOD
        for old, new in changes:
            assert old in source
            source = source.replace(old, new)
        module = ModuleType("toy_under_contract")
        sys.modules["toy_under_contract"] = module
        exec(compile(source.strip(), "toy_under_contract", "exec"), module.__dict__)

    yield make
    registry._registered.pop(("connectors", "toy"), None)
    sys.modules.pop("toy_under_contract", None)
    contract.fixture_of.cache_clear()


def broken() -> dict[str, str]:
    """Check -> reason, of the checks that the toy does not pass."""
    contract.fixture_of.cache_clear()
    return {row["check"]: row["reason"] for row in contract.outcomes("connectors/toy") if row["state"] == "broken"}


def test_the_good_toy_keeps_it(toy: Callable[..., None]) -> None:
    toy()
    assert broken() == {}
    assert main(["connectors/toy"]) == 0


@pytest.mark.parametrize(
    ("old", "new", "check", "reason"),
    [
        ("Toy(Connector)", "Toy(nn.Module)", "contract", "'connectors' derives from tessera.models.contracts.Connector."),
        ("def forward", "def forwards", "contract", "does not define forward"),
        ("tokens):", "tokens, question):", "contract", "forward(self, tokens: 'VisualTokens') -> 'VisualTokens': missing a req"),
        ("config, width, out", "config, inner, out", "contract", "__init__ cannot be called as"),
        ("Shapes:", "Sizes:", "page", "no paragraph `Shapes:`"),
        ("Deviations: none.", "", "page", "how it deviates"),
        ("arXiv:2001.00001", "unpublished", "page", "no arXiv number"),
        ('"""gain: what the result is multiplied with."""', "", "page", "Config has no docstring"),
        ("gain: float = 1.0", "gain: object = 1.0", "options", "takes an object as 'gain'"),
        ("CLAIMS = [", "CLAIMS = 0 * [", "claims", "has no exact claim"),
        ("x * self.gain", "x * self.gain / 0", "builds", "not finite"),
        ("x * self.gain", "x * self.gain - x.mean(0)", "batch", "differs by"),
        ("x * self.gain", "x.detach() * self.gain", "gradients", "no gradient reaches 0.linear.weight"),
        ("self.gain = config.gain", "self.gain, self.idle = config.gain, nn.Linear(2, 2)", "gradients", "0.idle.weight"),
        ("self.gain = config.gain", "self.gain = torch.rand(())", "saving", ""),
        ("self.gain = config.gain", "self.gain = 1.0 + float(torch.ones(()) * 2)", "meta", ""),
        ("return tokens", "assert x.dtype == torch.float32; return tokens", "bf16", ""),
        (
            "tokens.with_features(x * self.gain)",
            "tokens.with_features((x * self.gain)[:, 1:])",
            "builds",
            "token-count rule is wrong",
        ),
    ],
)
def test_what_breaks_it_is_found(toy: Callable[..., None], old: str, new: str, check: str, reason: str) -> None:
    toy((old, new))
    found = broken()
    assert check in found and re.search(re.escape(reason), found[check]), found


def test_rows_that_know_of_their_padding_are_found() -> None:
    import torch

    from tessera.lab.contract.models import ComposedFixture

    fixture = ComposedFixture(registry.get("couplings", "prefix"))
    for check in ("batch", "padding"):
        fixture.run(check)
    table = fixture.exact.get_input_embeddings()
    places = table.register_forward_hook(lambda module, args, out: out + 0.1 * torch.arange(out.shape[1])[None, :, None])
    with pytest.raises(Broken, match="differs by .* with the side of the padding"):
        fixture.run("padding")
    places.remove()
    table.register_forward_hook(lambda module, args, out: out + out.mean(1, keepdim=True))
    with pytest.raises(Broken, match="row 0 of a batch of two differs by"):  # both sides have as much padding
        fixture.run("batch")


def test_rounding_stays_far_below_the_tolerance() -> None:
    from tessera.lab.contract.fixture import TOLERANCE, difference
    from tessera.lab.contract.models import ComposedFixture

    fixture = ComposedFixture(registry.get("tokens", "identity"))
    together = fixture.seen(fixture.exact, [0, 1])
    assert max(difference(out, fixture.seen(fixture.exact, [row])[0]) for row, out in enumerate(together)) < TOLERANCE / 1000


def test_a_part_says_what_it_does_not_do(toy: Callable[..., None]) -> None:
    toy(("@part(", 'UNSUPPORTED = {"meta": "it counts"}\n\n\n@part('))
    with pytest.raises(Unsupported, match="it counts"):
        contract.run("connectors", "toy", "meta")
    toy(("@part(", 'UNSUPPORTED = {"page": "no time"}\n\n\n@part('))
    contract.fixture_of.cache_clear()
    with pytest.raises(Broken, match="page cannot be left out"):
        contract.run("connectors", "toy", "builds")


def test_tiny_options_are_used(toy: Callable[..., None]) -> None:
    toy(("gain: float = 1.0", "gain: float"), ("@part(", 'TINY = {"gain": 2.0}\n\n\n@part('))
    assert broken() == {}


def test_a_part_that_cannot_be_imported_is_one_broken_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_builtin", lambda socket: ["gone"] if socket == "connectors" else [])
    contract.fixture_of.cache_clear()
    rows = list(contract.outcomes("connectors/gone"))
    assert [(row["check"], row["state"]) for row in rows] == [("imports", "broken")]
    assert "gone" in rows[0]["reason"]


def test_parts_come_from_the_registry() -> None:
    everything = contract.chosen()
    assert everything == [(socket, name) for socket in registry.SOCKETS for name in registry.names(socket)]
    with pytest.raises(UserError, match="'mlpp'. Did you mean 'mlp'"):
        contract.chosen(("mlpp",))
    assert main(["mlpp"]) == 2


def test_every_check_has_a_meaning() -> None:
    for socket, name in contract.chosen(("mlp", "fopru", "repq_vit", "clip", "mini_monkey")):
        found = contract.checks(socket, name)
        assert len(set(found)) == len(found) and set(found) <= CHECKS.keys()
