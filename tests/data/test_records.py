"""Rows to records, LLaVA and back without loss, and what `validate` finds."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tessera.data.records import Record, from_llava, normalise, parse, placeholders, to_llava, validate
from tessera.errors import UserError

USER = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}
ASSISTANT = {"role": "assistant", "content": "a dog"}


def kinds(record: Record) -> list[str]:
    return [problem.kind for problem in validate(record)]


# ---- parse


def test_messages_with_images() -> None:
    record = parse({"messages": [USER, ASSISTANT], "images": ["a.png"], "id": 7})
    assert record.images == ["a.png"]
    assert record.extra == {"id": 7}
    assert placeholders(record) == 1
    assert validate(record) == []


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("a.png", ["a.png"]),
        (["a.png", b"x"], ["a.png", b"x"]),
        (Path("a.png"), ["a.png"]),
        ({"bytes": b"x", "path": "a.png"}, [b"x"]),
        ([{"bytes": None, "path": "a.png"}], ["a.png"]),
        (bytearray(b"x"), [b"x"]),
        (None, []),
        ([], []),
    ],
)
def test_every_form_of_the_image_column(column: Any, expected: list[Any]) -> None:
    assert parse({"messages": [ASSISTANT], "images": column}).images == expected
    assert parse({"messages": [ASSISTANT], "image": column}).images == expected


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (3, "must be an object"),
        (None, "must be an object"),
        ({"text": "x"}, "its keys are 'text'"),
        ({"messages": "hello"}, "must be a list of messages"),
        ({"messages": [3]}, "message 0 must be an object"),
        ({"messages": [{"content": "x"}]}, "'role' must be text"),
        ({"messages": [{"role": "user"}]}, "'content' must be text or a list"),
        ({"messages": [{"role": "user", "content": b"x"}]}, "'content' must be text or a list"),
        ({"messages": [USER], "images": [3]}, "an image must be"),
        ({"messages": [USER], "images": {"bytes": None, "path": None}}, "an image must be"),
        ({"conversations": "hello"}, "'conversations' must be a list"),
        ({"conversations": [{"value": "x"}]}, "'from' and 'value'"),
        ({"conversations": [{"from": "human", "value": 3}]}, "'value' must be text"),
    ],
)
def test_other_shapes_are_named(row: Any, words: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(row)
    assert words in str(caught.value)


def test_parquet_rows_have_empty_columns() -> None:
    content = [{"type": "image", "text": None, "image": None}, {"type": "text", "text": "q", "image": None}]
    row = {
        "messages": [{"role": "user", "content": content}, ASSISTANT],
        "images": [b"x"],
        "conversations": None,
    }
    record = normalise(parse(row))
    assert record.messages[0]["content"] == [{"type": "image"}, {"type": "text", "text": "q"}]
    assert validate(parse(row)) == []


# ---- normalise


def test_markers_in_plain_strings_are_placeholders() -> None:
    record = Record([{"role": "user", "content": "<image>Left or <image>?"}, ASSISTANT], ["a", "b"])
    assert validate(record) == []
    assert normalise(record).messages[0]["content"] == [
        {"type": "image"},
        {"type": "text", "text": "Left or "},
        {"type": "image"},
        {"type": "text", "text": "?"},
    ]


def test_images_that_nothing_shows_go_to_the_front() -> None:
    record = Record([{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, ASSISTANT], ["a", "b"])
    assert validate(record) == []
    content = normalise(record).messages[1]["content"]
    assert content == [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "q"}]


def test_images_that_parts_bring_along_keep_their_place() -> None:
    picture = Image.new("RGB", (2, 2))
    content = [
        {"type": "image", "image": picture},
        {"type": "image"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
        {"type": "image", "base64": "AA=="},
        {"type": "text", "text": "q"},
    ]
    record = Record([{"role": "user", "content": content}, ASSISTANT], ["a.png"])
    assert validate(record) == []
    assert normalise(record).images == [picture, "a.png", "data:image/png;base64,AA==", "data:;base64,AA=="]


def test_normalising_twice_changes_nothing_and_the_record_stays() -> None:
    record = Record([{"role": "user", "content": "q"}, ASSISTANT], ["a"])
    before = copy.deepcopy(record)
    once = normalise(record)
    assert record == before
    assert normalise(once) == once


# ---- LLaVA

ROW = {
    "id": "000",
    "image": "coco/1.jpg",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat is this?"},
        {"from": "gpt", "value": "A dog."},
        {"from": "human", "value": "Sure?", "weight": 0},
        {"from": "gpt", "value": "Yes."},
    ],
}


def test_llava_row() -> None:
    record = parse(ROW)
    assert record.images == ["coco/1.jpg"]
    assert [m["role"] for m in record.messages] == ["user", "assistant", "user", "assistant"]
    assert record.messages[0]["content"] == [{"type": "image"}, {"type": "text", "text": "\nWhat is this?"}]
    assert validate(record) == []
    assert to_llava(record) == ROW


texts = st.text(st.characters(codec="utf-8"), max_size=12).filter(lambda text: "<image>" not in text)
marked = st.lists(st.one_of(texts, st.just("<image>")), max_size=5).map("".join)
turns = st.fixed_dictionaries(
    {"from": st.sampled_from(["human", "gpt", "system", "tool"]), "value": marked},
    optional={"weight": st.integers(0, 1)},
)
rows = st.fixed_dictionaries(
    {"conversations": st.lists(turns, max_size=5)},
    optional={
        "image": st.one_of(texts, st.lists(texts, min_size=2, max_size=3)),
        "id": st.one_of(texts, st.integers()),
    },
)


@given(rows)
def test_llava_to_record_and_back_loses_nothing(row: dict[str, Any]) -> None:
    assert to_llava(from_llava(row)) == row


# Neighbouring texts of one message have no border in LLaVA's format.
contents = st.lists(
    st.one_of(st.just({"type": "image"}), texts.filter(bool).map(lambda t: {"type": "text", "text": t})),
    max_size=5,
).filter(lambda parts: not any(a["type"] == b["type"] == "text" for a, b in itertools.pairwise(parts)))


@given(
    st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), st.one_of(texts, contents)), max_size=4),
    st.lists(texts, max_size=3),
)
def test_record_to_llava_and_back_loses_nothing(messages: list[Any], images: list[str]) -> None:
    record = Record([{"role": role, "content": content} for role, content in messages], images)
    assert normalise(from_llava(to_llava(record))) == normalise(record)


def test_what_llava_cannot_hold() -> None:
    with pytest.raises(UserError, match="paths"):
        to_llava(Record([USER, ASSISTANT], [b"x"]))
    literal = {"role": "user", "content": [{"type": "text", "text": "what does <image> mean?"}]}
    with pytest.raises(UserError, match="keeps for images"):
        to_llava(Record([literal, ASSISTANT]))


# ---- validate


@pytest.mark.parametrize(
    ("messages", "images", "expected"),
    [
        ([USER, ASSISTANT], [], ["placeholders"]),
        ([USER, ASSISTANT], ["a", "b"], ["placeholders"]),
        ([{"role": "user", "content": "<image><image>?"}, ASSISTANT], ["a"], ["placeholders"]),
        ([ASSISTANT], ["a"], ["placeholders"]),
        ([USER], ["a"], ["no answer"]),
        ([], [], ["no answer"]),
        ([USER, {"role": "assistant", "content": " \n"}], ["a"], ["empty answer"]),
        ([USER, {"role": "assistant", "content": []}], ["a"], ["empty answer"]),
        ([{"role": "user", "content": ""}, ASSISTANT], [], ["empty question"]),
        ([{"role": "user", "content": [{"type": "image"}]}, ASSISTANT], ["a"], ["empty question"]),
        ([{"role": "asistant", "content": "x"}, ASSISTANT], [], ["unknown role"]),
        ([{"role": "user", "content": [{"type": "video"}]}, ASSISTANT], [], ["malformed row"]),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}, ASSISTANT], [], ["malformed row"]),
        (
            [{"role": "user", "content": [{"type": "text", "text": "<image>"}]}, ASSISTANT],
            [],
            ["placeholders"],
        ),
        ([{"role": "user", "content": ["plain", 3]}, ASSISTANT], [], ["malformed row"]),
    ],
)
def test_problems(messages: list[Any], images: list[Any], expected: list[str]) -> None:
    assert kinds(Record(messages, images)) == expected


def test_problems_say_where_and_what_would_be_right() -> None:
    record = Record([USER, {"role": "asistant", "content": "x"}], ["a", "b"])
    texts = [problem.message for problem in validate(record)]
    assert "1 placeholder, but 2 images" in texts
    assert any("message 1" in text and "assistant" in text for text in texts)
