"""What a decoder layer is given in this forward, for the tokens that are left.

Legend: B rows, Q queries of this forward, E width.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tessera.hosts.architecture import Architecture
from tessera.hosts.forward import ForwardPass
from tessera.hosts.remap import pruned_arguments
from tessera.hosts.rotary import rotations
from tessera.hosts.sequence import TokenStage


def layer_arguments(
    architecture: Architecture,
    current: ForwardPass,
    layer: int,
    stage: TokenStage,
    hidden: Tensor,
    kwargs: Mapping[str, Any],
) -> dict[str, Any]:
    """Keyword arguments of decoder layer `layer`, from full to pruned indices; hidden [B, Q, E] are its input after pruning."""
    return pruned_arguments(
        kwargs,
        current.sequence,
        stage,
        layer,
        hidden,
        prefill=current.prefill,
        memo=current.memo,
        implementation=architecture.attention_implementation,
        rotations=functools.partial(rotations, architecture.rotary, current),
    )
