"""Tiny hosts for exact claims: one prefill with a part, and which tokens are left. Imports torch inside functions only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tessera.lab.experiment import Checked

if TYPE_CHECKING:
    from torch import Tensor

    from tessera.hosts.contract import Host
    from tessera.hosts.sequence import Sequence as HostSequence


@contextmanager
def prefilled(
    family: str, name: str, options: Mapping[str, Any], images: tuple[int, ...] = (1, 1)
) -> Iterator[tuple[Host, HostSequence]]:
    """A tiny model of a family, with random weights, that has read one batch of prompts with the part `name` plugged in."""
    import torch

    from tessera.hosts.plug import plug
    from tessera.hosts.zoo import tiny

    made = tiny(family)
    with torch.no_grad(), plug(made.model, name, **options) as host:
        made.model(**made.inputs(images))
        assert host.sequence is not None
        yield host, host.sequence


def places(sequence: HostSequence, layer: int) -> list[list[int]]:
    """Places in the prompt of the visual tokens that enter a layer, per row."""
    stage = sequence.stages[layer]
    return [stage.index[row][stage.visual[row]].tolist() for row in range(len(stage.index))]


def best(candidates: Sequence[int], score: Tensor, count: int) -> list[int]:
    """The `count` candidates with the highest score, in order; of equal ones the earlier."""
    return sorted(sorted(candidates, key=lambda place: (-float(score[place]), place))[:count])


def same(found: Mapping[str, bool], shape: str = "", **differences: float) -> Checked:
    """Comparisons that hold or not, with the greatest differences that were seen."""
    measured = {f"{name.replace('_', ' ')} differs by": value for name, value in differences.items()}
    return Checked(checks=found, measured=measured, shape=shape)
