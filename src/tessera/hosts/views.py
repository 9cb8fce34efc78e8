"""What parts can ask of a host at a boundary: captured attention, the layer's own attention, scores of the tower, rasters.

Legend: B rows, S tokens of the prompt, K tokens left at the boundary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tessera.errors import TesseraError, UserError
from tessera.hosts.part import HostPart, LayerView, Layout, Tap
from tessera.hosts.sequence import Sequence as HostSequence
from tessera.hosts.sequence import TokenStage, images_of_rows
from tessera.hosts.taps import Listener, listen, probabilities

if TYPE_CHECKING:
    from tessera.hosts.plug import Host


class _Enough(Exception):
    """The probe has what it wants."""


class Captures:
    """The taps of a session and what they caught."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.language_taps: dict[HostPart, dict[int, Tap]] = {}
        self.tower_taps: dict[HostPart, list[tuple[int, Tap]]] = {}
        self.probing = False

    def install(self, undo: ExitStack) -> None:
        """Installs the taps that the host's parts want, until `undo` is closed."""
        architecture = self.host.architecture
        blocks = architecture.tower_blocks
        self.language_taps, self.tower_taps = {}, {}
        for part in self.host.parts:
            name = self.host.name_of(part)
            self.language_taps[part] = {
                _place(layer, self.host.layer_count, name, "decoder layer"): tap
                for layer, tap in part.language_taps(self.host).items()
            }
            wanted = part.tower_taps(self.host)
            if wanted and blocks is None:
                raise UserError(f"{name} needs attention of the vision tower; that of {self.host.title} has no attention blocks.")
            count = 0 if blocks is None else len(blocks)
            self.tower_taps[part] = [(_place(block, count, name, "tower block"), tap) for block, tap in wanted.items()]
        for layer, tap in sorted({(layer, tap) for taps in self.language_taps.values() for layer, tap in taps.items()}):
            listen(architecture.attention(architecture.layers[layer]), self._language_listener(layer, tap), undo)
        for block, tap in sorted({key for taps in self.tower_taps.values() for key in taps}):
            assert blocks is not None
            listen(architecture.attention(blocks[block]), self._tower_listener(block, tap), undo)

    def _language_listener(self, layer: int, tap: Tap) -> Listener:
        def hook(module: nn.Module, query: Tensor, key: Tensor, mask: Any, scaling: float | None) -> None:
            current = self.host.current
            if current is None or not current.prefill or self.probing or not current.sequence.has_visual:
                return
            stage = current.sequence.stages[layer]
            key = key[:, :, : query.shape[2]]  # a static cache hands over all its room
            found = probabilities(module, query, key, mask, scaling, tap, stage.query, stage.real)
            current.captured[layer, tap] = (stage, found)

        return hook

    def _tower_listener(self, block: int, tap: Tap) -> Listener:
        def hook(module: nn.Module, query: Tensor, key: Tensor, mask: Any, scaling: float | None) -> None:
            self.host.prompt.capture((block, tap), probabilities(module, query, key, mask, scaling, tap))

        return hook

    def _asking(self) -> tuple[HostPart, TokenStage]:
        if self.host.asking is None or self.host.current is None:
            raise TesseraError("attention can be asked for at a layer boundary only.")
        return self.host.asking

    def language(self, layer: int) -> Tensor:
        """See `Host.captured`."""
        part, stage = self._asking()
        current = self.host.current
        assert current is not None
        layer = layer % self.host.layer_count
        tap = self.language_taps.get(part, {}).get(layer)
        if tap is None:
            raise TesseraError(f"{self.host.name_of(part)} asks for attention of layer {layer}, which it does not tap.")
        if (layer, tap) not in current.captured:
            raise UserError(
                f"no attention was captured at layer {layer}: it has not run yet, or the prompt has no images, or "
                f"{self.host.title}'s attention does not go through transformers' registry."
            )
        captured, found = current.captured[layer, tap]
        if captured is stage:
            return found
        place = torch.full_like(current.sequence.visual, 0, dtype=torch.int64)
        numbers = torch.arange(captured.index.shape[1], device=place.device).expand_as(captured.index)
        place = place.scatter(1, captured.index, numbers).gather(1, stage.index)
        if tap == "full":
            found = found.gather(1, place[..., None].expand(*place.shape, found.shape[-1]))
            return found.gather(2, place[:, None].expand(-1, place.shape[1], -1))
        return found.gather(1, place)

    @torch.no_grad()
    def probe(self, view: LayerView) -> Tensor:
        """See `Host.probe`."""
        host, current = self.host, self.host.current
        _, stage = self._asking()
        assert current is not None
        layer = host.layers[view.layer]
        attention: Any = host.architecture.attention(layer)
        kwargs = dict(view.kwargs)
        if not stage.full:
            kwargs = host.layer_socket.pruned(view.layer, current, stage, view.hidden, kwargs)
        kwargs |= {"past_key_values": None, "use_cache": False}
        mask = kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() == 4:
            kwargs["attention_mask"] = mask[..., : view.hidden.shape[1]]
        takes = inspect.signature(attention.forward).parameters
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in takes.values()):
            kwargs = {name: value for name, value in kwargs.items() if name in takes}
        caught: list[Tensor] = []

        def hook(module: nn.Module, query: Tensor, key: Tensor, mask: Any, scaling: float | None) -> None:
            caught.append(probabilities(module, query, key, mask, scaling, "last", stage.query))
            raise _Enough

        with ExitStack() as undo:
            self.probing = True
            undo.callback(setattr, self, "probing", False)
            listen(attention, hook, undo)
            with suppress(_Enough):
                attention(hidden_states=host.architecture.norm(layer)(view.hidden), **kwargs)
        if not caught:
            raise UserError(f"{host.title}'s attention does not go through transformers' registry: it cannot be probed.")
        return caught[0]

    def tower_scores(self, view: LayerView) -> Tensor:
        """See `Host.tower_scores`."""
        part, stage = self._asking()
        taps = self.tower_taps.get(part, [])
        if len(taps) != 1:
            raise TesseraError(f"{self.host.name_of(part)} asks for the tower's scores with {len(taps)} tower taps, not one.")
        sequence = view.sequence
        if not sequence.has_visual:
            return torch.full(stage.visual.shape, -torch.inf, device=stage.visual.device)
        images = sequence.images
        raw = None if images is None else images.raw.get(taps[0])
        if not raw:
            raise UserError(
                "the vision tower's attention was not captured for these images: give pixels inside the context, not features "
                "that were computed before."
            )
        scores = self.host.architecture.family.token_scores(self.host.model, raw, images.inputs)
        scores = _for_beams(scores.float().to(sequence.visual.device), sequence.visual)
        full = torch.full(sequence.visual.shape, -torch.inf, device=scores.device).masked_scatter(sequence.visual, scores)
        return full.gather(1, stage.index).masked_fill(~stage.visual, -torch.inf)

    def layouts(self, sequence: HostSequence) -> Sequence[Sequence[Layout]]:
        """See `Host.layouts`."""
        if not sequence.has_visual:
            return [[] for _ in range(sequence.visual.shape[0])]
        if sequence.images is None:
            raise UserError("the images of this prompt were not encoded inside the context: give pixels, not features.")
        found = self.host.architecture.family.layouts(self.host.model, sequence.images.inputs)
        rows = images_of_rows(sequence.visual, [layout.tokens for layout in found])
        return [[found[image] for image in row] for row in rows]


def _place(number: int, count: int, name: str, what: str) -> int:
    if not -count <= number < count:
        raise UserError(f"{name}: there is no {what} {number}; there are {count}.")
    return number % count


def _for_beams(scores: Tensor, visual: Tensor) -> Tensor:
    """Scores of all images -> of all rows: rows that were repeated for beams share theirs."""
    wanted = int(visual.sum())
    if scores.numel() == wanted:
        return scores
    repeats = wanted // max(1, scores.numel())
    per_row = visual[::repeats].sum(1).tolist() if repeats else []
    if sum(per_row) != scores.numel():
        raise TesseraError(f"the vision tower scored {scores.numel()} visual tokens; the prompt has {wanted}.")
    return torch.cat([row for row in scores.split(per_row) for _ in range(repeats)])
