"""Strict configuration: what is refused, what it says, what a path reaches."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.config import build, config, set_path, to_dict
from tessera.errors import UserError


@config
class Inner:
    depth: int = 2
    rate: float = 0.1


@config
class Outer:
    steps: int = 10
    limit: float | None = None
    name: str = "x"
    flag: bool = False
    size: tuple[int, int] = (64, 64)
    scales: tuple[float, ...] = (1.0,)
    tags: list[str] = dataclasses.field(default_factory=list)
    mode: Literal["fast", "exact"] = "fast"
    inner: Inner = dataclasses.field(default_factory=Inner)
    maybe: Inner | None = None
    many: list[Inner] = dataclasses.field(default_factory=list)
    maybe_many: list[Inner] | None = None
    table: dict[str, Inner] = dataclasses.field(default_factory=dict)
    free: dict[str, Any] = dataclasses.field(default_factory=lambda: {"kind": "mlp", "depth": 2, "on": [{"a": 1}]})


def test_a_config_is_keyword_only_and_has_no_other_attributes() -> None:
    with pytest.raises(TypeError):
        Outer(3)  # type: ignore[misc]
    with pytest.raises(AttributeError):
        Outer().stepz = 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"steps": "3"}, "'steps' expected int, got str (value: '3')"),
        ({"steps": 2.0}, "'steps' expected int, got float"),
        ({"steps": True}, "'steps' expected int, got bool"),
        ({"flag": 1}, "'flag' expected bool, got int"),
        ({"name": None}, "'name' expected str"),
        ({"limit": "1"}, "'limit'"),
        ({"mode": "slow"}, "'mode' expected one of ('fast', 'exact'), got slow"),
        ({"size": [1, 2, 3]}, "'size' expected a tuple of length 2, got 3"),
        ({"scales": ["a"]}, "'scales'"),
        ({"tags": [1]}, "'tags'"),
        ({"inner": [1]}, "'inner' expected Inner, got list"),
        ({"inner": {"depth": "x"}}, "inner: Field 'depth' expected int, got str"),
        ({"many": [{"depth": "x"}]}, "many.0: Field 'depth' expected int"),
        ({"free": 3}, "'free' expected a dict"),
    ],
)
def test_a_wrong_type_is_refused_and_named(values: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as raised:
        build(Outer, values)
    assert says in str(raised.value)


def test_a_wrong_type_is_refused_at_construction_and_at_assignment() -> None:
    with pytest.raises(Exception, match="expected int, got str"):
        Outer(steps="3")  # type: ignore[arg-type]
    outer = Outer()
    with pytest.raises(Exception, match="expected int, got str"):
        outer.steps = "3"  # type: ignore[assignment]
    assert outer.steps == 10


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"stesp": 1}, "unknown field 'stesp' of Outer: there is no 'stesp'. Did you mean 'steps'"),
        (
            {"inner": {"dpeth": 1}},
            "unknown field 'inner.dpeth' of Inner: there is no 'dpeth'. Did you mean 'depth'?",
        ),
        (
            {"maybe_many": [{"x": 1}]},
            "unknown field 'maybe_many.0.x' of Inner: there is no 'x'. Valid: depth, rate.",
        ),
        ({"table": {"a": {"x": 1}}}, "unknown field 'table.a.x' of Inner"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(values: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as raised:
        build(Outer, values)
    assert says in str(raised.value)


def test_plain_data_becomes_the_fields_types() -> None:
    values = {
        "limit": 1,
        "size": [1, 2],
        "scales": [1, 2.5],
        "inner": {"depth": 3, "rate": 1},
        "maybe": {"depth": 4},
        "many": [{"depth": 5}],
        "maybe_many": [{"depth": 6}],
        "table": {"a": {"depth": 7}},
    }
    built = build(Outer, values)
    assert (built.limit, built.size, built.scales) == (1.0, (1, 2), (1.0, 2.5))
    assert isinstance(built.limit, float)
    assert isinstance(built.inner.rate, float)
    assert built.maybe is not None
    assert built.maybe_many is not None
    found = [built.inner, built.maybe, built.many[0], built.maybe_many[0], built.table["a"]]
    assert [i.depth for i in found] == [3, 4, 5, 6, 7]
    assert build(Outer, {"maybe": None}).maybe is None


inners = st.builds(Inner, depth=st.integers(), rate=st.floats(allow_nan=False, allow_infinity=False))


@given(
    st.builds(
        Outer,
        steps=st.integers(),
        limit=st.none() | st.floats(allow_nan=False, allow_infinity=False),
        name=st.text(),
        flag=st.booleans(),
        size=st.tuples(st.integers(), st.integers()),
        scales=st.lists(st.floats(allow_nan=False, allow_infinity=False)).map(tuple),
        mode=st.sampled_from(["fast", "exact"]),
        inner=inners,
        maybe=st.none() | inners,
        many=st.lists(inners, max_size=3),
        maybe_many=st.none() | st.lists(inners, max_size=3),
        table=st.dictionaries(st.text(), inners, max_size=3),
    )
)
def test_every_config_survives_json(value: Outer) -> None:
    assert build(Outer, json.loads(json.dumps(to_dict(value)))) == value


@pytest.mark.parametrize(
    ("assignment", "path", "expected"),
    [
        ("steps=3", "steps", 3),
        ("steps= 1_000", "steps", 1000),
        ("limit=1e-4", "limit", 1e-4),
        ("limit=none", "limit", None),
        ("name=a=b", "name", "a=b"),
        ("name=", "name", ""),
        ("flag=yes", "flag", True),
        ("flag=0", "flag", False),
        ("size=3,4", "size", (3, 4)),
        ("size=(3, 4)", "size", (3, 4)),
        ("scales=1,2", "scales", (1.0, 2.0)),
        ("scales=", "scales", ()),
        ("tags=a,b", "tags", ["a", "b"]),
        ("mode=exact", "mode", "exact"),
        ("inner.depth=4", "inner.depth", 4),
        ("many.0.depth=4", "many.0.depth", 4),
        ("table.a.rate=2", "table.a.rate", 2.0),
        ("free.kind=linear", "free.kind", "linear"),
        ("free.depth=5", "free.depth", 5),
        ("free.on.0.a=7", "free.on.0.a", 7),
        ('maybe={"depth": 1}', "maybe", Inner(depth=1)),
    ],
)
def test_set_path_reaches_and_types_a_field(assignment: str, path: str, expected: Any) -> None:
    outer = Outer(many=[Inner()], table={"a": Inner()})
    set_path(outer, assignment)
    node: Any = outer
    for key in path.split("."):
        node = node[int(key)] if isinstance(node, list) else node[key] if isinstance(node, dict) else getattr(node, key)
    assert node == expected
    assert type(node) is type(expected)


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("steps", "--set wants path=value, for example"),
        ("=3", "--set wants path=value"),
        ("stesp=3", "there is no 'stesp'. Did you mean 'steps'"),
        ("inner.dept=3", "unknown field 'inner.dept': there is no 'dept'. Did you mean 'depth'?"),
        ("iner.depth=3", "unknown field 'iner': there is no 'iner'. Did you mean 'inner'"),
        ("free.new=1", "there is no 'new'"),
        ("many.3.depth=1", "'3' is not an index of a list of 1"),
        ("steps.x=1", "'steps' has no fields"),
        ("maybe.depth=1", "'maybe' has no fields"),
        ("steps=x", "--set steps: 'x' is not a whole number."),
        ("steps=1.5", "is not a whole number"),
        ("limit=x", "--set limit: 'x' is not a number."),
        ("inner.rate=x", "--set inner.rate: 'x' is not a number."),
        ("flag=2", "'2' is not true or false"),
        ("size=3", "has 1 values, 2 are wanted"),
        ("mode=slow", "'slow' is not one of fast, exact"),
        ("maybe={", "is not JSON"),
        ('maybe={"dept": 1}', "there is no 'dept'"),
        ("inner=1", "'inner' expected Inner, got int"),
        ("free.depth=x", "is not a whole number"),
    ],
)
def test_set_path_says_what_is_wrong_and_changes_nothing(assignment: str, says: str) -> None:
    outer = Outer(many=[Inner()])
    before = to_dict(outer)
    with pytest.raises(UserError) as raised:
        set_path(outer, assignment)
    assert says in str(raised.value)
    assert to_dict(outer) == before


def test_an_annotation_that_cannot_be_resolved_is_refused_at_definition() -> None:
    with pytest.raises(NameError, match="Nowhere"):

        @config
        class Broken:
            there: Nowhere = None  # type: ignore[name-defined]  # noqa: F821
