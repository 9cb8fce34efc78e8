"""What a part reads at a boundary: captured attention, the layer's own attention, scores of the tower, rasters.

Legend: B rows, S tokens of the prompt, K tokens left at the boundary, E width.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tessera.errors import TesseraError, UserError
from tessera.hosts.architecture import Architecture
from tessera.hosts.forward import ForwardPass, ProbeRequest, ThreadStates
from tessera.hosts.layer_inputs import layer_arguments
from tessera.hosts.sequence import Sequence as HostSequence
from tessera.hosts.sequence import TokenStage, images_of_rows
from tessera.hosts.taps import listen, probabilities
from tessera.hosts.values import Tap
from tessera.nn.layout import Layout
from tessera.nn.raster import for_rows


class _Enough(Exception):
    """The probe has what it wants."""


class Probes:
    """Lets layers attend out of turn. Their listeners are installed on demand and stay as long as the parts are plugged in: other
    threads may be attending."""

    def __init__(self, states: ThreadStates) -> None:
        self._states, self._undo, self._lock = states, ExitStack(), threading.Lock()
        self._installed: set[nn.Module] = set()

    def run(self, attention: nn.Module, query: Tensor, hidden: Tensor, kwargs: Mapping[str, Any]) -> Tensor | None:
        """[B, K] float32: probabilities of the tokens `query` [B] where `attention` is given hidden [B, K, E]; None where it does
        not go through transformers' registry."""
        with self._lock:
            if attention not in self._installed:
                listen(attention, self._caught, self._undo)
                self._installed.add(attention)
        state = self._states.here()
        probe = state.probe = ProbeRequest(query)
        try:
            with suppress(_Enough):
                attention(hidden_states=hidden, **kwargs)
        finally:
            state.probe = None
        return probe.found

    def close(self) -> None:
        """Takes the listeners out."""
        self._undo.close()
        self._installed.clear()

    def _caught(self, module: nn.Module, query: Tensor, key: Tensor, mask: Any, scaling: float | None) -> None:
        probe = self._states.here().probe
        if probe is not None:
            probe.found = probabilities(module, query, key, mask, scaling, "last", probe.query)
            raise _Enough


@dataclass(frozen=True, slots=True)
class PartTaps:
    """What one part has tapped: `name` for messages, decoder layer -> kind, and (tower block, kind)."""

    name: str
    language: Mapping[int, Tap]
    tower: Sequence[tuple[int, Tap]]


@dataclass(frozen=True, slots=True, eq=False)
class AttentionReader:
    """Answers one part about one boundary, also when it is asked later.

    model    the host's
    title    its family, for people
    stage    the tokens of the boundary
    """

    model: Any
    architecture: Architecture
    title: str
    taps: PartTaps
    probes: Probes
    current: ForwardPass
    stage: TokenStage

    def captured(self, layer: int) -> Tensor:
        """What the part's tap at language-model layer `layer` caught in this prefill: [B, K], of "full" [B, K, K]."""
        layer = layer % len(self.architecture.layers)
        tap = self.taps.language.get(layer)
        if tap is None:
            raise TesseraError(f"{self.taps.name} asks for attention of layer {layer}, which it does not tap.")
        if (layer, tap) not in self.current.captured:
            raise UserError(
                f"no attention was captured at layer {layer}: it has not run yet, or the prompt has no images, or "
                f"{self.title}'s attention does not go through transformers' registry."
            )
        stage, (captured, found) = self.stage, self.current.captured[layer, tap]
        if captured is stage:
            return found
        place = torch.full_like(self.current.sequence.visual, 0, dtype=torch.int64)
        numbers = torch.arange(captured.index.shape[1], device=place.device).expand_as(captured.index)
        place = place.scatter(1, captured.index, numbers).gather(1, stage.index)
        if tap == "full":
            found = found.gather(1, place[..., None].expand(*place.shape, found.shape[-1]))
            return found.gather(2, place[:, None].expand(-1, place.shape[1], -1))
        return found.gather(1, place)

    @torch.no_grad()
    def probe(self, number: int, hidden: Tensor, given: Mapping[str, Any]) -> Tensor:
        """[B, K] float32: attention of the last instruction token by the own queries and keys of layer `number` on hidden
        [B, K, E]; `given` is what the model passes to that layer, in full indices."""
        layer, stage = self.architecture.layers[number], self.stage
        attention: Any = self.architecture.attention(layer)
        kwargs = dict(given)
        if not stage.full:
            kwargs = layer_arguments(self.architecture, self.current, number, stage, hidden, kwargs)
        kwargs |= {"past_key_values": None, "use_cache": False}
        mask = kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() == 4:
            kwargs["attention_mask"] = mask[..., : hidden.shape[1]]
        takes = inspect.signature(attention.forward).parameters
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in takes.values()):
            kwargs = {name: value for name, value in kwargs.items() if name in takes}
        found = self.probes.run(attention, stage.query, self.architecture.norm(layer)(hidden), kwargs)
        if found is None:
            raise UserError(f"{self.title}'s attention does not go through transformers' registry: it cannot be probed.")
        return found

    def tower_scores(self) -> Tensor:
        """[B, K] float32: the tower tap's score of each visual token, -inf elsewhere, +inf for tokens that show no place."""
        if len(self.taps.tower) != 1:
            raise TesseraError(f"{self.taps.name} asks for the tower's scores with {len(self.taps.tower)} tower taps, not one.")
        stage, sequence = self.stage, self.current.sequence
        if not sequence.has_visual:
            return torch.full(stage.visual.shape, -torch.inf, device=stage.visual.device)
        images = sequence.images
        raw = None if images is None else images.raw.get(self.taps.tower[0])
        if not raw or images is None:
            raise UserError(
                "the vision tower's attention was not captured for these images: give pixels inside the context, not features "
                "that were computed before."
            )
        scores = self.architecture.family.token_scores(self.model, raw, images.inputs)
        scores = for_rows(scores.float().to(sequence.visual.device), sequence.visual)
        full = torch.full(sequence.visual.shape, -torch.inf, device=scores.device).masked_scatter(sequence.visual, scores)
        return full.gather(1, stage.index).masked_fill(~stage.visual, -torch.inf)

    def layouts(self) -> Sequence[Sequence[Layout]]:
        """See `layouts_of`."""
        return layouts_of(self.model, self.architecture, self.current.sequence)


def layouts_of(model: Any, architecture: Architecture, sequence: HostSequence) -> Sequence[Sequence[Layout]]:
    """Per row, the layouts of its images, in the order of their tokens.

    Raises `UserError` for images that were encoded before the parts were plugged in.
    """
    if not sequence.has_visual:
        return [[] for _ in range(sequence.visual.shape[0])]
    if sequence.images is None:
        raise UserError("the images of this prompt were not encoded inside the context: give pixels, not features.")
    found = architecture.family.layouts(model, sequence.images.inputs)
    rows = images_of_rows(sequence.visual, [layout.tokens for layout in found])
    return [[found[image] for image in row] for row in rows]


def image_lengths(model: Any, architecture: Architecture, sequence: HostSequence) -> list[int] | None:
    """Tokens per image in the order of the prompt; None where the family does not know."""
    if "raster" not in architecture.capabilities or sequence.images is None:
        return None
    return [layout.tokens for layout in architecture.family.layouts(model, sequence.images.inputs)]
