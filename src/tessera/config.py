"""Strict configuration: stdlib dataclasses that refuse unknown keys and wrong types, addressable by path.

    @config
    class Config:
        depth: int = 2

`config` is `dataclass(kw_only=True, slots=True)` under `huggingface_hub.dataclasses.strict`, which checks types at
construction and at assignment (not frozen: with `frozen=True` the check is silently skipped).
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar, dataclass_transform

from tessera.errors import UserError, unknown

T = TypeVar("T")


@dataclass_transform(kw_only_default=True)
def config(cls: type[T]) -> type[T]:
    """Makes `cls` a strict, keyword-only dataclass. Its annotations must be resolvable when it is defined."""
    from huggingface_hub.dataclasses import strict

    made = dataclasses.dataclass(kw_only=True, slots=True)(cls)
    hints = field_types(made)
    for field in dataclasses.fields(typing.cast(Any, made)):  # strict skips, silently, a type that is a string
        field.type = hints[field.name]
    return typing.cast("type[T]", strict(made))


def field_types(cls: type) -> dict[str, Any]:
    """Field names of a dataclass with their resolved types."""
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def build(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Builds config class `cls` from plain data (as read from JSON), nested configs included.

    Raises `UserError` for an unknown key (with the nearest valid one) or a wrong type, naming the path.
    """
    known = field_types(cls)
    kwargs: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{where}.{key}" if where else str(key)
        if key not in known:
            raise unknown(f"field {path!r} of {cls.__qualname__}: there is no", str(key), known)
        kwargs[key] = _convert(known[key], value, path)
    try:
        return cls(**kwargs)
    except UserError:
        raise
    except Exception as error:  # strict raises its own validation errors; all mean "wrong value"
        raise UserError(f"{where or cls.__qualname__}: {_reason(error)}") from error


def to_dict(value: Any) -> Any:
    """Plain data (dictionaries, lists, scalars) of a config, ready for JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_dict(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_dict(v) for v in value]
    return value


def set_path(root: Any, assignment: str) -> None:
    """Applies one `path=value` to a config tree in place: existing fields only, value read as the field's type.

    `training.steps=200`, `model.connector.depth=3`, `world.size=128,128`. Raises `UserError` naming the valid fields.
    """
    path, equals, text = assignment.partition("=")
    if not equals or not path.strip():
        raise UserError(f"--set wants path=value, for example training.steps=200; got {assignment!r}.")
    keys = path.strip().split(".")
    node = root
    for depth, key in enumerate(keys[:-1]):
        node = _child(node, key, ".".join(keys[: depth + 1]))
    last = keys[-1]
    if isinstance(node, dict):
        if last not in node:
            raise unknown(f"field {path!r}: there is no", last, map(str, node))
        node[last] = _parse(type(node[last]) if node[last] is not None else str, text, path)
        return
    if not dataclasses.is_dataclass(node):
        raise UserError(f"--set {path}: {'.'.join(keys[:-1])!r} has no fields.")
    known = field_types(type(node))
    if last not in known:
        raise unknown(f"field {path!r}: there is no", last, known)
    try:
        setattr(node, last, _parse(known[last], text, path))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"--set {path}: {_reason(error)}") from error


def _child(node: Any, key: str, path: str) -> Any:
    if isinstance(node, dict):
        if key in node:
            return node[key]
        raise unknown(f"field {path!r}: there is no", key, map(str, node))
    if isinstance(node, list):
        if key.isdigit() and int(key) < len(node):
            return node[int(key)]
        raise UserError(f"--set {path}: {key!r} is not an index of a list of {len(node)}.")
    if dataclasses.is_dataclass(node):
        known = field_types(type(node))
        if key in known:
            return getattr(node, key)
        raise unknown(f"field {path!r}: there is no", key, known)
    raise UserError(f"--set {path}: {type(node).__name__} has no fields.")


def _convert(kind: Any, value: Any, path: str) -> Any:
    """Plain data to the field's type where JSON has no equal (tuples, nested configs, floats written as ints)."""
    if kind is Any:
        return value
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(kind)
        if value is None and type(None) in options:
            return None
        if type(value) in options:
            return value
        converted = (_convert(option, value, path) for option in options)
        return next((c for c in converted if c is not value), value)
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return build(typing.cast(type, kind), value, path)
    if origin is tuple and isinstance(value, (list, tuple)):
        inner = typing.get_args(kind)
        if len(inner) == 2 and inner[1] is Ellipsis:
            return tuple(_convert(inner[0], v, f"{path}.{i}") for i, v in enumerate(value))
        if len(inner) == len(value):
            return tuple(_convert(k, v, f"{path}.{i}") for i, (k, v) in enumerate(zip(inner, value, strict=True)))
        return tuple(value)
    if origin is list and isinstance(value, list):
        return [_convert(typing.get_args(kind)[0], v, f"{path}.{i}") for i, v in enumerate(value)]
    if origin is dict and isinstance(value, Mapping):
        return {k: _convert(typing.get_args(kind)[1], v, f"{path}.{k}") for k, v in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def _parse(kind: Any, text: str, path: str) -> Any:
    """The text of a `--set` value as the field's type."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        options = [o for o in typing.get_args(kind) if o is not type(None)]
        if text.lower() in ("none", "null") and len(options) < len(typing.get_args(kind)):
            return None
        if len(options) == 1:
            return _parse(options[0], text, path)
        for option in options:
            try:
                return _parse(option, text, path)
            except UserError:
                continue
        raise UserError(f"--set {path}: {text!r} is not {_name(kind)}.")
    if origin is typing.Literal:
        for option in typing.get_args(kind):
            if text == str(option):
                return option
        raise UserError(f"--set {path}: {text!r} is not one of {', '.join(map(str, typing.get_args(kind)))}.")
    if kind is bool:
        if text.lower() in ("true", "yes", "1", "on"):
            return True
        if text.lower() in ("false", "no", "0", "off"):
            return False
        raise UserError(f"--set {path}: {text!r} is not true or false.")
    if kind in (int, float):
        try:
            return kind(text.replace("_", ""))
        except ValueError:
            raise UserError(f"--set {path}: {text!r} is not {'a whole number' if kind is int else 'a number'}.") from None
    if kind is str:
        return text
    if origin in (tuple, list) or kind in (tuple, list):
        inner = typing.get_args(kind)
        items = [p.strip() for p in text.strip("()[] ").split(",") if p.strip()]
        if origin is tuple and inner and inner[-1] is not Ellipsis:
            if len(items) != len(inner):
                raise UserError(f"--set {path}: {text!r} has {len(items)} values, {len(inner)} are wanted.")
            return tuple(_parse(k, p, path) for k, p in zip(inner, items, strict=True))
        parsed = [_parse(inner[0] if inner else str, p, path) for p in items]
        return tuple(parsed) if (origin or kind) is tuple else parsed
    if origin is dict or kind is dict or dataclasses.is_dataclass(kind):
        try:
            return _convert(kind, json.loads(text), path)
        except json.JSONDecodeError as error:
            raise UserError(f"--set {path}: {text!r} is not JSON ({error}).") from error
    raise UserError(f"--set {path}: a value of type {_name(kind)} cannot be written on the command line.")


def _name(kind: Any) -> str:
    return getattr(kind, "__name__", None) or str(kind)


def _reason(error: BaseException) -> str:
    return " ".join(str(error.__cause__ or error).split())
