"""An extension of griffe, which reads the source for mkdocstrings: docstrings become Markdown, configurations get a signature."""

from __future__ import annotations

from typing import Any

import api_reference  # in memory since mkdocs has loaded its hooks
import griffe

CONFIG = "tessera.config.config"
"""The decorator that makes a class a keyword-only dataclass."""


class Docstrings(griffe.Extension):
    """Turns the docstring of every object into Markdown as soon as it is read."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = api_reference.markdown(obj.docstring.value)

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        """Called for every class. griffe knows the constructors of plain dataclasses only."""
        if "__init__" in cls.members or CONFIG not in {decorator.callable_path for decorator in cls.decorators}:
            return
        fields = [member for member in cls.members.values() if member.is_attribute and not member.name.startswith("_")]
        keywords = [
            griffe.Parameter(field.name, annotation=field.annotation, kind=griffe.ParameterKind.keyword_only, default=field.value)
            for field in fields
            if field.annotation is not None and "ClassVar" not in str(field.annotation)
        ]
        itself = griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)
        cls.set_member("__init__", griffe.Function("__init__", parameters=griffe.Parameters(itself, *keywords)))
