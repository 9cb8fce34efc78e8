"""Which settings are faster on this machine: the number type of matrix products, and compilation."""

from __future__ import annotations

import os
import shutil
import time

import torch

WORTH = 1.3
"""bfloat16 is used when its products are at least this many times as fast as float32's."""
COMPILE_STEPS = 2000
"""`compile: auto` compiles runs of more steps than this."""


def matmul_speed(device: torch.device, dtype: torch.dtype, size: int = 768, repeats: int = 6) -> float:
    """GFLOPS of a square matrix product of `size` in `dtype` on `device`, the best of `repeats`.

    0.0 when the device cannot do it.
    """
    try:
        left = torch.ones(size, size, device=device, dtype=dtype)
        best = float("inf")
        for i in range(repeats + 1):
            begin = time.perf_counter()
            result = left @ left
            result[0, 0].item()  # waits for the device
            if i:
                best = min(best, time.perf_counter() - begin)
        return 2 * size**3 / best / 1e9
    except RuntimeError:
        return 0.0


def bf16_pays(device: torch.device) -> tuple[bool, str]:
    """Whether matrix products on `device` are `WORTH` times as fast in bfloat16, and why."""
    size = 768 if device.type == "cpu" else 4096
    single = matmul_speed(device, torch.float32, size)
    half = matmul_speed(device, torch.bfloat16, size)
    why = f"a matrix product runs at {single:,.0f} GFLOPS in float32 and {half:,.0f} in bfloat16"
    return half >= WORTH * single, why


def compile_pays(steps: int) -> bool:
    """Whether a run of `steps` steps is long enough to pay for compilation, and there is a compiler."""
    if steps <= COMPILE_STEPS:
        return False
    if torch.cuda.is_available():
        return True
    return any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++"))
