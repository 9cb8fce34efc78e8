"""The decoder of Llama-type language models, written for few tokens at a time, where Python's overhead dominates.

The weights are taken out of the modules once: query, key and value projections become one matrix, gate and up another. Keys
and values live in one buffer that is allocated before the first token. Several questions about the same images are decoded as
one packed sequence, exactly as they are trained (`tessera.nn.segments`): the keys of the prefix stand once at the front of the
buffer, every question's tokens follow in columns of their own, and a mask keeps questions from seeing each other.

Legend: I images' prefixes side by side (items), P tokens of a prefix, Q questions per item, S packed tokens of all questions of
an item, C columns of the buffer, E width, H query heads, K key heads, D head width, L layers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TYPES = ("llama", "mistral", "qwen2", "qwen3")
STATIC_ROPE = ("default", "linear", "llama3", "yarn")
MOST_PARAMETERS = 500_000_000
"""Beyond it Python's overhead no longer matters and a second copy of the weights would."""


def obstacle(language_model: nn.Module) -> str | None:
    """Why `LlamaDecoder` cannot stand in for the language model, or None if it can."""
    config: Any = language_model.config
    if config.model_type not in TYPES:
        return f"its type is {config.model_type!r}, not one of {', '.join(TYPES)}"
    windows = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if windows or (config.model_type == "mistral" and config.sliding_window is not None):
        return "it has sliding windows"
    base: Any = language_model.base_model
    if base.rotary_emb.rope_type not in STATIC_ROPE:
        return f"its rotary embedding ({base.rotary_emb.rope_type!r}) changes with the length"
    for name, module in language_model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            return f"its module {name or 'model'} is hooked"
        if name.endswith("_proj") and type(module) is not nn.Linear:
            return f"its module {name} is a {type(module).__name__}"
    if sum(p.numel() for p in language_model.parameters()) > MOST_PARAMETERS:
        return f"it has more than {MOST_PARAMETERS:,} parameters"
    return None


@dataclass(slots=True)
class _Layer:
    """Weights of one layer, matrices as [in, out]; biases and head norms may be None."""

    norm1: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    head_norm: Tensor | None  # [H + K, D], of queries and keys
    out: Tensor
    out_bias: Tensor | None
    norm2: Tensor
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


class LlamaDecoder:
    """A copy of a language model's weights and the arithmetic over them; later changes of the model are not seen."""

    @torch.no_grad()
    def __init__(self, language_model: nn.Module, suppressed: Sequence[int] = ()) -> None:
        """suppressed: tokens that are never generated. The model must have no `obstacle`."""
        base: Any = language_model.base_model
        config: Any = language_model.config
        first = base.layers[0].self_attn
        self.head_width: int = first.head_dim
        self.heads: int = config.num_attention_heads
        self.key_heads: int = config.num_key_value_heads
        self.scaling: float = first.scaling
        self.epsilon: float = config.rms_norm_eps
        self.activation: Callable[[Tensor], Tensor] = base.layers[0].mlp.act_fn
        self.layers = [_layer(layer) for layer in base.layers]
        self.norm: Tensor = base.norm.weight.detach().clone()
        self.embedding: Tensor = base.embed_tokens.weight.detach()
        self.device, self.dtype = self.embedding.device, self.embedding.dtype
        head: Any = language_model.get_output_embeddings()  # type: ignore[operator]
        self.head: Tensor = head.weight.detach().t().contiguous()
        bias = torch.zeros(self.head.shape[1]) if head.bias is None else head.bias.detach().float().cpu()
        bias[list(suppressed)] = -torch.inf
        self.head_bias = bias.to(self.device, self.dtype)
        rotary = base.rotary_emb
        self._frequencies: Tensor = rotary.inv_freq.detach().float()
        self._attention_scaling: float = rotary.attention_scaling
        self._rotations = self._table(256)

    @property
    def column_bytes(self) -> int:
        """Bytes of keys and values that one token takes."""
        return 2 * len(self.layers) * self.key_heads * self.head_width * self.embedding.element_size()

    @property
    def rotations(self) -> int:
        """Positions that the table of rotations holds at present."""
        return self._rotations.shape[0]

    def _table(self, length: int) -> Tensor:
        """[length, 2, 1, D]: cosines, and sines whose first half is negated, so that rolling the halves rotates."""
        angles = torch.arange(length, device=self.device, dtype=torch.float32)[:, None] * self._frequencies
        cos, sin = angles.cos(), angles.sin()
        table = torch.stack([torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)], 1)[:, :, None]
        return (table * self._attention_scaling).to(self.dtype)

    def reach(self, length: int) -> None:
        """Makes sure that positions below `length` can be rotated."""
        if length > self.rotations:
            self._rotations = self._table(2 * length)

    def rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions [n] -> cosines and sines, each [n, 1, D]."""
        cos, sin = self._rotations.index_select(0, positions).unbind(1)
        return cos, sin

    def prefix(self, embeddings: Tensor) -> Tensor:
        """embeddings [I, P, E] from position 0 on -> keys and values [2 L, I, K, P, D]."""
        items, length, width = embeddings.shape
        self.reach(length)
        shape = (2 * len(self.layers), items, self.key_heads, length, self.head_width)
        buffer = torch.empty(shape, device=self.device, dtype=self.dtype)
        cos, sin = self._rotations[:length].unbind(1)
        self.forward(
            embeddings.reshape(items * length, width), (cos, sin), buffer, length, 0, None, keep=None, keys_only=True
        )
        return buffer

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        buffer: Tensor,
        new: int,
        start: int,
        mask: Tensor | None,
        keep: Tensor | None,
        keys_only: bool = False,
    ) -> Tensor:
        """x [I * new, E], embeddings of `new` tokens per item that take the buffer's columns from `start` on.

        rotation: cosines and sines, each [new, 1, D] for all items or [I * new, 1, D]; buffer [2 L, I, K, C, D], written to;
        mask [I or 1, 1, new, start + new], added to the scores, None: every token sees everything, or, with start 0, what is
        not later. keep: of the last layer only these rows [R] are computed. keys_only: stop once the keys are written.
        Returns logits [R or I * new, V].
        """
        items, heads, keys, width = buffer.shape[1], self.heads, self.key_heads, self.head_width
        both, last = heads + keys, len(self.layers) - 1
        cos, sin = (r.view(-1, new, 1, width) for r in rotation)
        slots = buffer.narrow(3, start, new).unflatten(0, (-1, 2)).unbind(0)
        live = buffer.narrow(3, 0, start + new).unbind(0)
        causal = mask is None and start == 0 and new > 1
        for number, layer in enumerate(self.layers):
            h = F.rms_norm(x, (x.shape[1],), layer.norm1, self.epsilon)
            qkv = _times(h, layer.qkv, layer.qkv_bias).view(items, new, both + keys, width)
            turned = qkv[:, :, :both]
            if layer.head_norm is not None:
                turned = F.rms_norm(turned, (width,), None, self.epsilon) * layer.head_norm
            turned = torch.addcmul(turned * cos, turned.roll(width // 2, -1), sin)
            slot = slots[number]
            slot[0].copy_(turned[:, :, heads:].transpose(1, 2))
            slot[1].copy_(qkv[:, :, both:].transpose(1, 2))
            if keys_only and number == last:
                break
            mixed = F.scaled_dot_product_attention(
                turned[:, :, :heads].transpose(1, 2),
                live[2 * number],
                live[2 * number + 1],
                attn_mask=mask,
                is_causal=causal,
                scale=self.scaling,
                enable_gqa=heads != keys,
            )
            mixed = mixed.transpose(1, 2).reshape(items * new, heads * width)
            if number == last and keep is not None:
                x, mixed = x.index_select(0, keep), mixed.index_select(0, keep)
            x = _onto(x, mixed, layer.out, layer.out_bias)
            h = F.rms_norm(x, (x.shape[1],), layer.norm2, self.epsilon)
            gate, up = _times(h, layer.gate_up, layer.gate_up_bias).chunk(2, -1)
            x = _onto(x, self.activation(gate).mul_(up), layer.down, layer.down_bias)
        if keys_only:
            return x
        return torch.addmm(self.head_bias, F.rms_norm(x, (x.shape[1],), self.norm, self.epsilon), self.head)


def _times(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.mm(x, weight) if bias is None else torch.addmm(bias, x, weight)


def _onto(residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    moved = torch.addmm(residual, x, weight)
    return moved if bias is None else moved.add_(bias)


def _layer(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    qkv, qkv_bias = _joined([attention.q_proj, attention.k_proj, attention.v_proj])
    out, out_bias = _joined([attention.o_proj])
    gate_up, gate_up_bias = _joined([mlp.gate_proj, mlp.up_proj])
    down, down_bias = _joined([mlp.down_proj])
    head_norm = None
    if hasattr(attention, "q_norm"):
        config = attention.config
        rows = [attention.q_norm.weight] * config.num_attention_heads
        head_norm = torch.stack(rows + [attention.k_norm.weight] * config.num_key_value_heads).detach()
    return _Layer(
        norm1=layer.input_layernorm.weight.detach().clone(),
        qkv=qkv,
        qkv_bias=qkv_bias,
        head_norm=head_norm,
        out=out,
        out_bias=out_bias,
        norm2=layer.post_attention_layernorm.weight.detach().clone(),
        gate_up=gate_up,
        gate_up_bias=gate_up_bias,
        down=down,
        down_bias=down_bias,
    )


def _joined(linears: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """Several layers with one input as one: weight [in, out], bias [out] or None."""
    weight = torch.cat([linear.weight for linear in linears]).detach().t().contiguous()
    biases = [linear.bias for linear in linears if linear.bias is not None]
    return weight, torch.cat(biases).detach() if biases else None
