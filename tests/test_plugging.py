"""`--plug name:option=value,...` on the command line."""

from __future__ import annotations

import pytest

from tessera.config import to_dict
from tessera.errors import UserError
from tessera.plugging import parse_plug, parse_plugs


def test_options_are_read_as_their_types() -> None:
    first, second = parse_plugs(["pyramiddrop:keep=0.5, 0.25,positions=reindex", "uniform"])
    assert type(first).__name__ != type(second).__name__
    assert first.config.keep == (0.5, 0.25)
    assert first.config.positions == "reindex"
    assert to_dict(second.config) == to_dict(type(second).Config())
    assert parse_plug("uniform:keep=0.125").config.keep == (0.125,)
    assert parse_plugs(None) == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "wants the name of a part"),
        (":keep=1", "wants the name of a part"),
        ("uniform:", "options behind a colon"),
        ("uniform:keep", "'keep' is no option=value"),
        ("uniform:kep=0.5", "Did you mean 'keep'"),
        ("uniform:keep=half", "--plug uniform: keep: 'half' is not a number"),
        ("uniform:keep=0.5,keep=0.25", "keep is given twice"),
        ("unifrom", "Did you mean 'uniform'"),
        ("mlp", "cannot be plugged into a host"),
        ("mlp:depth=3", "cannot be plugged into a host"),
    ],
)
def test_what_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_plug(text)
    assert sentence in str(refused.value)
