"""What a model that went through a file shares with the one it was written from."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def assert_same_model(loaded: nn.Module, model: nn.Module, compute: Callable[[Any], Tensor]) -> None:
    """Parameters and buffers are alike to the bit, also buffers that no file holds; so is, to rounding, what is computed.

    Outputs are compared in float32 and with a tolerance: loaded weights lie elsewhere in memory than drawn ones, mostly not at
    the start of a cache line, and no library of matrix products promises the same bits for that.
    """
    for kind in ("named_parameters", "named_buffers"):
        before, after = (dict(getattr(m, kind)()) for m in (model, loaded))
        assert before.keys() == after.keys()
        for name, value in before.items():
            assert value.dtype == after[name].dtype, name
            assert torch.equal(value, after[name]), name
    with torch.no_grad():
        found, wanted = (compute(copy.deepcopy(m).float().eval()) for m in (loaded, model))
    assert float(wanted.std()) > 1e-3
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
