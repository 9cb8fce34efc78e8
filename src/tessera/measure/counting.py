"""Counts the floating-point operations of a piece of work while it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def flops(work: Callable[[], Any]) -> int:
    """Floating-point operations of `work`: matrix products, convolutions and attention, as torch's counter sees them."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())
