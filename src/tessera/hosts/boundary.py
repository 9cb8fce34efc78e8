"""One boundary between decoder layers: parts are asked, tokens are dropped or merged, and the decisions are recorded.

Legend: B rows, S tokens of the prompt, K tokens left at a layer, K' those that go on, E width.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tessera.errors import TesseraError, UserError
from tessera.hosts.context import PlugContext
from tessera.hosts.forward import Applied, ForwardPass
from tessera.hosts.part import HostPart, LayerView, name_of
from tessera.hosts.reader import AttentionReader, PartTaps, Probes
from tessera.hosts.sequence import Decision, Sequence, TokenStage
from tessera.hosts.values import Positions


@dataclass(slots=True, eq=False)
class Boundary:
    """The tokens that enter decoder layer `layer`: `stage` and their states `hidden` [B, K, E] change as parts act.

    Parts are named by their numbers in the context.

    taps     what each part has tapped
    probes   for what it has not
    kwargs   what the host passes to the layer, in full indices
    """

    context: PlugContext
    taps: SequenceOf[PartTaps]
    probes: Probes
    layer: int
    current: ForwardPass
    stage: TokenStage
    hidden: Tensor
    kwargs: Mapping[str, Any]

    def view(self, number: int) -> LayerView:
        """What the part sees."""
        stage, context = self.stage, self.context
        return LayerView(
            host=context.host,
            reader=AttentionReader(
                model=context.host.model,
                architecture=context.architecture,
                title=context.host.title,
                taps=self.taps[number],
                probes=self.probes,
                current=self.current,
                stage=stage,
            ),
            layer=self.layer,
            sequence=self.current.sequence,
            hidden=self.hidden,
            kwargs=self.kwargs,
            prefill=self.current.prefill,
            index=stage.index,
            present=stage.present,
            visual=stage.visual,
            real=stage.real,
            query=stage.query,
        )

    def transform(self, parts: SequenceOf[int]) -> None:
        """Parts change hidden states."""
        for number in parts:
            part = self.context.parts[number]
            found = part.transform(self.view(number))
            if found is not None:
                self.hidden = self._fitting(found, part)

    def select(self, parts: SequenceOf[int]) -> None:
        """Parts say which tokens go on; each sees what the one before has left."""
        applied = []
        for number in parts:
            part = self.context.parts[number]
            selection = part.select(self.view(number))
            if selection is None:
                continue
            merged = None if selection.hidden is None else self._fitting(selection.hidden, part)
            present = self.stage.present
            keep = present if selection.keep is None else (selection.keep | ~self.stage.visual) & present
            done = self._apply(keep, merged, part.positions)
            if done is not None:
                applied.append(Applied(None if merged is None else number, done[0], self.stage))
        self.current.applied[self.layer] = applied

    def again(self) -> None:
        """Does what was decided when this layer ran before in this forward; merged states are computed anew, for gradients."""
        for step in self.current.applied[self.layer]:
            if step.part is not None:
                selection = self.context.parts[step.part].select(self.view(step.part))
                assert selection is not None and selection.hidden is not None
                self.hidden = selection.hidden
            if step.order is not None:
                self.hidden = gathered(self.hidden, step.order)
            self.stage = step.stage

    def replay(self, replayed: Sequence) -> None:
        """Does what was decided in another sequence, of which this prompt is a continuation."""
        rows, length = self.current.sequence.visual.shape
        for decision in replayed.plan.get(self.layer, ()):
            known = decision.keep.shape
            if known[1] > length or known[0] != rows:
                raise UserError(f"what was decided for a prompt {tuple(known)} cannot be replayed on a prompt {(rows, length)}.")
            keep = torch.nn.functional.pad(decision.keep, (0, length - known[1]), value=True)
            merged = None
            if decision.hidden is not None:
                merged = torch.cat([decision.hidden.to(self.hidden), self.hidden[:, decision.hidden.shape[1] :]], 1)
            self._apply(keep.gather(1, self.stage.index) & self.stage.present, merged, decision.positions)

    def _apply(self, keep: Tensor, merged: Tensor | None, positions: Positions) -> tuple[Tensor | None] | None:
        """Drops what is not kept and notes the decision down; None if nothing changed, else the order of those that go on."""
        sequence, stage = self.current.sequence, self.stage
        narrowed = narrow(sequence, stage, keep, positions)
        if narrowed is None and merged is None:
            return None
        full_length = torch.zeros_like(sequence.visual).scatter(1, stage.index, keep)
        payload = None if merged is None else merged.detach()
        sequence.plan.setdefault(self.layer, []).append(Decision(full_length, positions, payload))
        self.hidden = self.hidden if merged is None else merged
        if narrowed is None:
            return (None,)
        self.stage, order = narrowed
        self.hidden = gathered(self.hidden, order)
        return (order,)

    def _fitting(self, found: Tensor, part: HostPart) -> Tensor:
        if found.shape != self.hidden.shape:
            shapes = f"{tuple(found.shape)} for {tuple(self.hidden.shape)}"
            raise TesseraError(f"{name_of(part)} gave hidden states {shapes} at layer {self.layer}.")
        return found


def narrow(sequence: Sequence, stage: TokenStage, keep: Tensor, positions: Positions) -> tuple[TokenStage, Tensor] | None:
    """The stage behind a drop and the places [B, K'] of its tokens among the old ones; None if every token stays.

    keep [B, K] bool. Padding goes with the dropped tokens. Rows that keep fewer tokens than others get fillers that nobody sees.
    """
    if bool((keep == stage.present).all()):
        return None
    keep = keep & stage.real
    count = int(keep.sum(1).max())
    order = (~keep).int().argsort(dim=1, stable=True)[:, :count].sort(1).values
    index, present = stage.index.gather(1, order), keep.gather(1, order)
    real = sequence.real.gather(1, index) & present
    shift = sequence.real.sum(1) - real.sum(1) if positions == "reindex" else None
    return (
        TokenStage(
            index=index,
            present=present,
            visual=sequence.visual.gather(1, index) & present,
            real=real,
            query=(index <= sequence.query[:, None]).sum(1) - 1,
            full=False,
            ragged=not bool(present.all()),
            shift=shift,
        ),
        order,
    )


def gathered(hidden: Tensor, order: Tensor) -> Tensor:
    """The tokens at some places: hidden [B, K, E], order [B, K'] -> [B, K', E]."""
    return hidden.gather(1, order[..., None].expand(*order.shape, hidden.shape[-1]))
