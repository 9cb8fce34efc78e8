"""InstructBLIP: a Q-Former reads image and question; its queries, which have no place in the image, are the visual tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tessera.errors import UserError
from tessera.hosts.architecture import Family, family
from tessera.nn.layout import Layout


@family("instructblip", title="InstructBLIP")
class InstructBlip(Family):
    """See the module."""

    def layouts(self, model: Any, inputs: Mapping[str, Any]) -> list[Layout]:
        return [Layout(int(model.config.num_query_tokens))] * len(inputs["pixel_values"])

    def no_image(self, model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Raises `UserError`: its Q-Former always reads an image."""
        raise UserError("InstructBLIP takes no prompt without an image: its Q-Former always reads one.")
