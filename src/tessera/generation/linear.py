"""Linear layers for inference: weights packed once for oneDNN where PyTorch has it, plain matrix products elsewhere.

PyTorch multiplies float32 matrices on a CPU with MKL, whether or not oneDNN, which it ships too, is faster. Its compiler packs
frozen weights for oneDNN by the operators that are used here; they are private, so `pack` tries them first and does without.
Measured in processor time, one thread of an AMD EPYC with AVX-512, weights of 0.15 to 0.7 million: from 64 rows on the plain
product takes 1.18 times as long (0.84 to 1.39), and the public way to oneDNN, `Tensor.to_mkldnn`, which converts the input of
every call, 1.15 times (0.99 to 1.36), with 8 rows 1.1 to 1.9 times. Sixteen answers of 16 tokens take 1.17 times as long with
plain products. For very few rows the plain product of a small matrix is faster, so both forms of those are held.

Legend: N rows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from functools import cache

import torch
from torch import Tensor, nn

FEW = 4
"""Below so many rows the plain product of a small matrix is faster."""
LARGE = 2**18
"""Weights from which on the packed product is faster for a single row too."""
_RECORDING = "transformers.utils.output_capturing"
_ROWS = 64
"""What weights are packed for; the layout that oneDNN takes hardly depends on it."""


class Matrix:
    """`x` [N, in] -> x W + b [N, out], from one layer or from several with the same input side by side."""

    __slots__ = ("bias", "few", "packed", "plain")

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None] = ()) -> None:
        """`weights` [out, in] each; biases [out] each, all of them or none."""
        weight = torch.cat([w.detach() for w in weights])
        there = [b.detach() for b in biases if b is not None]
        self.bias: Tensor | None = torch.cat(there) if there else None
        self.packed = pack(weight)
        self.few = FEW if self.packed is None or weight.numel() < LARGE else 1
        # Never asked where every number of rows takes the packed form: not held twice.
        self.plain: Tensor = weight.new_empty(0) if self.few == 1 else weight.t().contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        """`x` [N, in] -> [N, out], new memory."""
        if self.packed is not None and x.shape[0] >= self.few:
            return self.packed(x, self.bias)
        return torch.mm(x, self.plain) if self.bias is None else torch.addmm(self.bias, x, self.plain)

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        """`residual` [N, out], x [N, in] -> residual + x W + b, new memory."""
        if self.packed is not None and x.shape[0] >= self.few:
            return self.packed(x, self.bias).add_(residual)
        moved = torch.addmm(residual, x, self.plain)
        return moved if self.bias is None else moved.add_(self.bias)


Product = Callable[[Tensor, Tensor | None], Tensor]
"""`x` [..., in], bias [out] or None -> [..., out]."""


def pack(weight: Tensor) -> Product | None:
    """The product with a weight [out, in] that oneDNN has packed, or None where it cannot: not float32, not on a CPU, or a
    PyTorch without these operators."""
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or not _available():
        return None
    operators = torch.ops.mkldnn
    packed = operators._reorder_linear_weight(weight.detach().contiguous(), _ROWS)
    linear = operators._linear_pointwise.default

    def product(x: Tensor, bias: Tensor | None) -> Tensor:
        found: Tensor = linear(x, packed, bias, "none", [], "")
        return found

    return product


@cache
def _available() -> bool:
    """Whether this PyTorch has the operators and they compute what they should; they are not part of its public interface."""
    if not torch.backends.mkldnn.is_available():
        return False
    x, weight, bias = torch.arange(12.0).view(3, 4), torch.arange(20.0).view(5, 4) / 8, torch.arange(5.0)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
        found = torch.ops.mkldnn._linear_pointwise.default(x, packed, bias, "none", [], "")
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
    return torch.allclose(found, torch.addmm(bias, x, weight.t()))


class PackedLinear(nn.Module):
    """An `nn.Linear` for inference; `weight` and `bias` are the original's."""

    def __init__(self, linear: nn.Linear, product: Product) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._product = product

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return self._product(x, self.bias)


def with_packed_linears(module: nn.Module) -> nn.Module:
    """The same module in evaluation mode with its linear layers packed; it shares the parameters of the original, which stays."""
    if type(module) is nn.Linear:
        product = pack(module.weight)
        return module if product is None else PackedLinear(module, product)
    twin = copy.copy(module)
    twin.training = False
    twin._modules = {name: None if child is None else with_packed_linears(child) for name, child in module._modules.items()}
    return twin


def hooked(module: nn.Module, but: Collection[str] = ()) -> str | None:
    """The name of a submodule with hooks or a forward of its own ("" the module itself), or None.

    Hooks that are defined in the modules `but` do not count, nor do those by which transformers records hidden states: they stay
    behind, idle, once a model was asked for any.
    """
    ignored = {_RECORDING, *but}
    for name, each in module.named_modules():
        hooks = [*each._forward_hooks.values(), *each._forward_pre_hooks.values()]
        if "forward" in vars(each) or any(getattr(hook, "__module__", "") not in ignored for hook in hooks):
            return name
    return None
