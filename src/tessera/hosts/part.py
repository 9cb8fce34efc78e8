"""The contract of parts for hosts: a method written once that plugs into any transformers vision-language model.

Two coordinate systems. *Full* indices are those of the prompt, which the model's own code and `generate` use; *pruned* indices
are those of the tokens that are left at decoder layer l. A `LayerView` shows the tokens that are left and gives the full index
of each.

Legend: B rows, S tokens of the prompt, K tokens left at a layer, E width of the language model, H heads.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from tessera.hosts.contract import Host
from tessera.hosts.reader import AttentionReader
from tessera.hosts.sequence import Sequence as HostSequence
from tessera.hosts.values import Positions, Selection, Tap
from tessera.nn.layout import Layout
from tessera.nn.reduction import keep_top


@dataclass(slots=True)
class LayerView:
    """The tokens that enter decoder layer `layer`, before anything is dropped there.

    In decoding steps (`prefill` False) only host, layer, sequence and hidden mean something.

    reader   answers the methods below, for the part that was given this view
    hidden   [B, K, E]
    index    [B, K] int64, full index of each token, increasing
    present  [B, K] bool, False at filler slots of ragged rows
    visual   [B, K] bool, a visual token that is present
    real     [B, K] bool, neither padding nor filler
    query    [B] int64, pruned index of the last instruction token
    kwargs   what the host passes to the layer, in full indices
    """

    host: Host
    reader: AttentionReader
    layer: int
    sequence: HostSequence
    hidden: Tensor
    kwargs: Mapping[str, Any]
    prefill: bool
    index: Tensor
    present: Tensor
    visual: Tensor
    real: Tensor
    query: Tensor

    def attention(self, layer: int) -> Tensor:
        """What the part's tap at language-model layer `layer` (an earlier one) captured in this prefill."""
        return self.reader.captured(layer)

    def probe(self) -> Tensor:
        """[B, K]: attention of the last instruction token by this layer's own queries and keys, computed now."""
        return self.reader.probe(self.layer, self.hidden, self.kwargs)

    def tower_scores(self) -> Tensor:
        """[B, K] float: the tower tap's score of each visual token (several patches: their mean), -inf elsewhere.

        Tokens that show no place (newlines) score +inf: they always stay.
        """
        return self.reader.tower_scores()

    def layouts(self) -> Sequence[Sequence[Layout]]:
        """Per row, the layouts of its images, in the order of their tokens."""
        return self.reader.layouts()

    def keep_top(self, score: Tensor, count: Tensor) -> Tensor:
        """[B, K] bool: every token that is not visual, and per row the `count [B]` visual ones with the highest `score [B, K]`;
        of equal ones the earlier."""
        return keep_top(score, self.visual, count)


class HostPart:
    """Base of all parts that plug into a running model. Override what the method needs; the rest does nothing.

    Parts carry no state from one prefill to the next; what belongs to one sequence goes into `view.sequence.notes`.
    """

    Config: ClassVar[type]
    needs: ClassVar[tuple[str, ...]] = ()
    """Capabilities of a host without which the part is refused: names of `tessera.hosts.architecture.CAPABILITIES`."""
    claims: ClassVar[tuple[str, ...]] = ()
    """What only one plugged part may change: of "visual tokens", "positions", "logits", "pixels"."""
    reads_question: ClassVar[bool] = True
    """Whether what it does to an image may depend on the text behind it. False lets many questions share one reading."""
    images: ClassVar[int] = 1
    """Images of one prompt without which the part does nothing."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @classmethod
    def identity(cls) -> dict[str, Any]:
        """Options with which the part changes nothing, bit for bit."""
        raise NotImplementedError

    @classmethod
    def example(cls, layers: int) -> dict[str, Any]:
        """Options with which the part does its work on a host of `layers` decoder layers (about half of the visual tokens)."""
        return {}

    @classmethod
    def budget(cls, share: float, layers: int) -> dict[str, Any] | None:
        """Options with which about `share` (0 to 1) of the visual tokens are read, on average over `layers` decoder layers; None:
        no option says how many."""
        return None

    @property
    def positions(self) -> Positions:
        """How tokens are numbered after this part dropped some."""
        return "keep"

    def language_taps(self, host: Host) -> Mapping[int, Tap]:
        """Decoder layers whose attention is wanted, with what is. Captured for prompts that have visual tokens."""
        return {}

    def tower_taps(self, host: Host) -> Mapping[int, Tap]:
        """Blocks of the vision tower whose attention is wanted (negative ones count from the last)."""
        return {}

    def install(self, host: Host, undo: ExitStack) -> None:
        """Puts own hooks or modules into the host; everything that was done is undone by a callback on `undo`."""

    def boundaries(self, host: Host) -> Collection[int] | None:
        """Layers in front of which `select` or `transform` may do anything; None: all. Elsewhere the host runs untouched."""
        return None

    def select(self, view: LayerView) -> Selection | None:
        """At every layer boundary of a prefill (layer 0: the projector's output): which tokens go on.

        Asked only for prompts that have visual tokens.
        """
        return None

    def transform(self, view: LayerView) -> Tensor | None:
        """At every layer boundary of every forward, before `select`: other hidden states [B, K, E], or None."""
        return None

    def edit_positions(self, host: Host, sequence: HostSequence, position_ids: Tensor) -> Tensor:
        """Other position ids, float or int, same shape [B, S] ([3, B, S] with M-RoPE); called in every forward."""
        return position_ids

    def logits_processors(self, host: Host, inputs: Mapping[str, Any]) -> list[Any]:
        """Logits processors (transformers' protocol) for a generation that was begun with `inputs`."""
        return []


def name_of(part: HostPart) -> str:
    """The name of a part: its file's in the wing, else its class's."""
    module = type(part).__module__.split(".")
    return module[3] if module[:2] == ["tessera", "parts"] else type(part).__name__
