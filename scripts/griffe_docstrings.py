"""An extension of griffe, which reads the source for mkdocstrings: docstrings become Markdown."""

from __future__ import annotations

from typing import Any

import api_reference  # in memory since mkdocs has loaded its hooks
import griffe


class Docstrings(griffe.Extension):
    """Turns the docstring of every object into Markdown as soon as it is read."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = api_reference.markdown(obj.docstring.value)
