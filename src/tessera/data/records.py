"""The canonical record: `messages` and `images`, as in the Hugging Face hub's data sets and in TRL.

{"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]},
{"role": "assistant", "content": "a dog"}], "images": ["dog.png"]}

Images are paths, bytes (or {"bytes", "path"}, as Parquet files hold them), `data:` URLs or PIL images; the
n-th placeholder shows the n-th image. Content that is one string may hold `<image>` markers instead of parts;
a part may bring its image along ({"type": "image", "image": ...}). LLaVA's `conversations` convert there and
back without loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from PIL import Image

from tessera.errors import UserError, nearest

MARKER = "<image>"
ROLES = ("system", "user", "assistant")

Message: TypeAlias = dict[str, Any]
"""{"role": str, "content": str or a list of parts}; what else a message holds is kept and ignored."""
Level: TypeAlias = Literal["error", "warning"]

_TO_ROLE = {"human": "user", "gpt": "assistant", "system": "system", "user": "user", "assistant": "assistant"}
_TO_SPEAKER = {"user": "human", "assistant": "gpt", "system": "system"}
_INLINE = ("image", "path", "url", "image_url", "base64")


@dataclass(slots=True)
class Record:
    """One conversation about any number of images."""

    messages: list[Message]
    images: list[Any] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    """The row's other columns (an id, a source), kept for the way back."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with a record: `kind` is a key of `tessera.data.check.KINDS`."""

    kind: str
    message: str


def parse(row: Any) -> Record:
    """The record of a row with `messages` (and `images` or `image`) or with LLaVA's `conversations`.

    Raises `UserError` saying what the row lacks. Whether roles, placeholders and answers are right is
    `validate`'s affair.
    """
    if not isinstance(row, Mapping):
        raise UserError(f"a row must be an object with messages, not {_kind(row)}.")
    if row.get("messages") is None and row.get("conversations") is not None:
        return from_llava(row)
    if row.get("messages") is None:
        keys = ", ".join(map(repr, list(row)[:8])) or "none"
        raise UserError(f"a row needs 'messages' (and 'images') or 'conversations' (and 'image'); its keys are {keys}.")
    messages = row["messages"]
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise UserError(f"'messages' must be a list of messages, not {_kind(messages)}.")
    extra = {key: value for key, value in row.items() if key not in ("messages", "images", "image")}
    return Record([_message(m, i) for i, m in enumerate(messages)], _images(row), extra)


def from_llava(row: Mapping[str, Any]) -> Record:
    """The record of a LLaVA row: `conversations` of {"from": "human" | "gpt", "value"}, `image` a path or a
    list of paths.

    `<image>` markers become image parts; every other character stays as it is. Raises `UserError` for another
    shape.
    """
    turns = row.get("conversations")
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        raise UserError(f"'conversations' must be a list of turns, not {_kind(turns)}.")
    messages: list[Message] = []
    for index, turn in enumerate(turns):
        if not isinstance(turn, Mapping) or not isinstance(turn.get("from"), str):
            raise UserError(f"turn {index} must be an object with 'from' and 'value', not {_kind(turn)}.")
        value = turn.get("value")
        if not isinstance(value, str):
            raise UserError(f"turn {index}: 'value' must be text, not {_kind(value)}.")
        rest = {key: item for key, item in turn.items() if key not in ("from", "value")}
        content: Any = split_markers(value) if MARKER in value else value
        messages.append({"role": _TO_ROLE.get(turn["from"], turn["from"]), "content": content, **rest})
    extra = {key: value for key, value in row.items() if key not in ("conversations", "image", "images")}
    return Record(messages, _images(row), extra)


def to_llava(record: Record) -> dict[str, Any]:
    """The LLaVA row of a record: one image as `image: path`, several as a list. Inverse of `from_llava`.

    Raises `UserError` for what LLaVA's format cannot hold: images that are not paths, text with a literal
    marker.
    """
    record = _expand(record)
    if not all(isinstance(image, str) for image in record.images):
        raise UserError("LLaVA's format holds paths of images only; write the images to files first.")
    turns = []
    for index, message in enumerate(record.messages):
        parts = message["content"]
        if any(part["type"] == "text" and MARKER in part["text"] for part in parts):
            raise UserError(f"message {index} holds the text {MARKER!r}, which LLaVA's format keeps for images.")
        value = "".join(MARKER if part["type"] == "image" else part["text"] for part in parts)
        rest = {key: item for key, item in message.items() if key not in ("role", "content")}
        turns.append({"from": _TO_SPEAKER.get(message["role"], message["role"]), "value": value, **rest})
    image: Any = record.images[0] if len(record.images) == 1 else list(record.images)
    return {**record.extra, **({"image": image} if record.images else {}), "conversations": turns}


def split_markers(text: str) -> list[dict[str, str]]:
    """Text with `<image>` markers as parts; nothing is stripped, empty texts are left out."""
    parts: list[dict[str, str]] = []
    for index, piece in enumerate(text.split(MARKER)):
        parts += [{"type": "image"}] if index else []
        parts += [{"type": "text", "text": piece}] if piece else []
    return parts


def normalise(record: Record) -> Record:
    """The record with every content as a list of {"type": "image"} and {"type": "text", "text"} parts.

    Images that parts bring along join `images` at their place. Images that no placeholder shows at all are
    put in front of the first message of the user, as TRL does. Raises `UserError` for a part of another type.
    """
    result = _expand(record)
    first = next((m for m in result.messages if m["role"] == "user"), None)
    if result.images and first is not None and placeholders(record) == 0:
        first["content"] = [{"type": "image"}] * len(result.images) + first["content"]
    return result


def _expand(record: Record) -> Record:
    """Contents as parts, images that parts bring along among `images`; no placeholder is added."""
    given = iter(record.images)
    images: list[Any] = []
    messages: list[Message] = []
    for index, message in enumerate(record.messages):
        parts: list[dict[str, Any]] = []
        for part in _parts(message["content"], index):
            if part["type"] == "text":
                parts.append({"type": "text", "text": part["text"]})
                continue
            parts.append({"type": "image"})
            inline = _inline(part)
            image = next(given, None) if inline is None else inline
            images += [] if image is None else [image]
        messages.append({**message, "content": parts})
    return Record(messages, [*images, *given], record.extra)


def placeholders(record: Record) -> int:
    """How many images the messages show."""
    return sum(part["type"] == "image" for _, part in _all_parts(record))


def validate(record: Record) -> list[Problem]:
    """What is wrong with a record, its images not opened. A record without problems can be trained on."""
    try:
        shown, marked = (
            placeholders(record),
            [i for i, p in _all_parts(record) if MARKER in p.get("text", "")],
        )
    except UserError as error:
        return [Problem("malformed row", str(error))]
    found: list[Problem] = []
    brought = sum(_inline(part) is not None for _, part in _all_parts(record))
    if shown - brought != len(record.images) and (shown or not any(m["role"] == "user" for m in record.messages)):
        found.append(
            Problem(
                "placeholders",
                f"{_count(shown - brought, 'placeholder')}, but {_count(len(record.images), 'image')}",
            )
        )
    if marked:
        found.append(Problem("placeholders", f"message {marked[0]}: the text of a part holds the marker {MARKER!r}"))
    if not any(m["role"] == "assistant" for m in record.messages):
        found.append(Problem("no answer", "no message of the assistant, so there is nothing to learn"))
    for index, message in enumerate(record.messages):
        role = message["role"]
        if role not in ROLES:
            close = nearest(role, ROLES)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(ROLES)}"
            found.append(Problem("unknown role", f"message {index} has the role {role!r}; {hint}"))
        texts = "".join(part.get("text", "") for part in _parts(message["content"], index)).strip()
        if not texts and role == "assistant":
            found.append(Problem("empty answer", f"message {index} of the assistant has no text"))
        if not texts and role == "user":
            found.append(Problem("empty question", f"message {index} of the user has no text"))
    return found


def _message(message: Any, index: int) -> Message:
    if not isinstance(message, Mapping):
        raise UserError(f"message {index} must be an object with 'role' and 'content', not {_kind(message)}.")
    if not isinstance(message.get("role"), str):
        raise UserError(f"message {index}: 'role' must be text, not {_kind(message.get('role'))}.")
    if not isinstance(message.get("content"), (str, Sequence)) or isinstance(message["content"], bytes):
        raise UserError(f"message {index}: 'content' must be text or a list of parts, not {_kind(message.get('content'))}.")
    return dict(message)


def _images(row: Mapping[str, Any]) -> list[Any]:
    """The row's images as a list; {"bytes", "path"} becomes whichever of the two is there, bytes first."""
    value = row.get("images") if row.get("images") is not None else row.get("image")
    if value is None:
        return []
    several = isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview))
    return [_image(item) for item in (value if several else [value])]


def _image(value: Any) -> Any:
    if isinstance(value, Mapping):
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if isinstance(value, (bytearray, memoryview)):
        value = bytes(value)
    if isinstance(value, (str, bytes, Image.Image)):
        return value
    if hasattr(value, "__fspath__"):
        return str(value)
    raise UserError(f"an image must be a path, bytes or {{'bytes', 'path'}}, not {_kind(value)}.")


def _inline(part: Mapping[str, Any]) -> Any:
    """The image that a part brings along, or None. Absent columns of Parquet files are None and count as not
    there.
    """
    for key in _INLINE:
        value = part.get(key)
        if isinstance(value, Mapping) and "url" in value:  # as OpenAI's messages have it
            value = value["url"]
        if value is not None:
            return f"data:;base64,{value}" if key == "base64" else _image(value)
    return None


def _all_parts(record: Record) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(index of the message, part) of all parts; markers of plain strings are parts already."""
    for index, message in enumerate(record.messages):
        for part in _parts(message["content"], index):
            yield index, part


def _parts(content: Any, index: int) -> Iterator[Mapping[str, Any]]:
    if isinstance(content, str):
        yield from split_markers(content)
        return
    for part in content:
        if isinstance(part, str):
            yield {"type": "text", "text": part}
            continue
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in ("image", "image_url"):
            yield {**part, "type": "image", "text": ""}
        elif kind == "text" and isinstance(part.get("text"), str):
            yield part
        elif kind == "text":
            raise UserError(f"message {index}: a part of type 'text' has no text.")
        else:
            what = f"type {kind!r}" if isinstance(part, Mapping) else _kind(part)
            raise UserError(f"message {index}: a part must be of type 'text' or 'image', not {what}.")


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
