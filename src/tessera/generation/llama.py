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

from tessera.generation.linear import Matrix, hooked

TYPES = ("llama", "mistral", "qwen2", "qwen3")
STATIC_ROPE = ("default", "linear", "llama3", "yarn")
MOST_PARAMETERS = 200_000_000
"""Beyond it Python's overhead no longer matters, and copies of the weights would."""


def obstacle(language_model: nn.Module, head: nn.Module) -> str | None:
    """Why `LlamaDecoder` cannot stand in for the language model and its output layer, or None if it can."""
    config: Any = language_model.config
    if config.model_type not in TYPES:
        return f"its type is {config.model_type!r}, not one of {', '.join(TYPES)}"
    windows = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if windows or (config.model_type == "mistral" and config.sliding_window is not None):
        return "it has sliding windows"
    rotary: Any = language_model.rotary_emb
    if rotary.rope_type not in STATIC_ROPE:
        return f"its rotary embedding ({rotary.rope_type!r}) changes with the length"
    if (found := hooked(language_model)) is not None:
        return f"its module {found or 'model'} is hooked"
    if hooked(head) is not None:
        return "its output layer is hooked"
    for name, module in language_model.named_modules():
        if name.endswith("_proj") and type(module) is not nn.Linear:
            return f"its module {name} is a {type(module).__name__}"
    if sum(p.numel() for p in {*language_model.parameters(), *head.parameters()}) > MOST_PARAMETERS:
        return f"it has more than {MOST_PARAMETERS:,} parameters"
    return None


@dataclass(slots=True)
class _Layer:
    """Weights of one layer; a norm's weight is None where it is part of the matrix behind it. Queries come out scaled."""

    norm1: Tensor | None
    qkv: Matrix
    head_norm: Tensor | None  # [H + K, D], of queries and keys
    out: Matrix
    norm2: Tensor | None
    gate_up: Matrix
    down: Matrix


class LlamaDecoder:
    """A copy of a language model's weights and the arithmetic over them; later changes of the model are not seen."""

    @torch.no_grad()
    def __init__(self, base: Any, head: Any, suppressed: Sequence[int] = ()) -> None:
        """base: the language model without its output layer, which is head; they must have no `obstacle`. suppressed: tokens that
        are never generated."""
        config = base.config
        first = base.layers[0].self_attn
        self.head_width: int = first.head_dim
        self.heads: int = config.num_attention_heads
        self.key_heads: int = config.num_key_value_heads
        self.epsilon: float = config.rms_norm_eps
        self.activation: Callable[[Tensor], Tensor] = base.layers[0].mlp.act_fn
        self.embedding: Tensor = base.embed_tokens.weight.detach()
        self.device, self.dtype = self.embedding.device, self.embedding.dtype
        self.layers = [_layer(layer) for layer in base.layers]
        self._floor = torch.tensor((self.epsilon * config.hidden_size) ** 0.5, device=self.device)
        bias = head.weight.new_zeros(head.out_features) if head.bias is None else head.bias.detach().clone()
        bias[list(suppressed)] = -torch.inf
        self.norm, weight = _absorb(base.norm.weight, [head.weight])
        self.head = Matrix(weight, [bias])
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
        """`positions` [n] -> cosines and sines, each [n, 1, D]."""
        cos, sin = self._rotations.index_select(0, positions).unbind(1)
        return cos, sin

    def prefix(self, embeddings: Tensor) -> Tensor:
        """`embeddings` [I, P, E] from position 0 on -> keys and values [2 L, I, K, P, D]."""
        items, length, width = embeddings.shape
        self.reach(length)
        shape = (2 * len(self.layers), items, self.key_heads, length, self.head_width)
        buffer = torch.empty(shape, device=self.device, dtype=self.dtype)
        cos, sin = self._rotations[:length].unbind(1)
        self.forward(embeddings.reshape(items * length, width), (cos, sin), buffer, length, 0, None, keep=None, keys_only=True)
        return buffer

    def _normed(self, x: Tensor, weight: Tensor | None) -> Tensor:
        """Root mean square norm of x [N, E]. Without a weight, fewer and cheaper operations: x / sqrt(|x|^2 + E epsilon)."""
        if weight is None:
            return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), self._floor)
        return F.rms_norm(x, (x.shape[1],), weight, self.epsilon)

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
        """`x` [I * new, E], embeddings of `new` tokens per item that take the buffer's columns from `start` on.

        rotation: cosines and sines, each [new, 1, D] for all items or [I * new, 1, D]; buffer [2 L, I, K, C, D], written to;
        mask [I or 1, 1, new, start + new], added to the scores, None: every token sees everything, or, with start 0, what is
        not later. keep: of the last layer only these rows [R] are computed. keys_only: stop once the keys are written.
        Returns logits [R or I * new, V].
        """
        items, heads, keys, width = buffer.shape[1], self.heads, self.key_heads, self.head_width
        both, last = heads + keys, len(self.layers) - 1
        cos, sin = (r.view(-1, new, 1, width) for r in rotation)
        slots = buffer.narrow(3, start, new).unbind(0)
        live = buffer.narrow(3, 0, start + new).unbind(0)
        causal = mask is None and not start
        for number, layer in enumerate(self.layers):
            qkv = layer.qkv(self._normed(x, layer.norm1)).view(items, new, both + keys, width)
            turned = qkv[:, :, :both]
            if layer.head_norm is not None:
                turned = F.rms_norm(turned, (width,), None, self.epsilon) * layer.head_norm
            turned = torch.addcmul(turned * cos, turned.roll(width // 2, -1), sin)
            slots[2 * number].copy_(turned[:, :, heads:].transpose(1, 2))
            slots[2 * number + 1].copy_(qkv[:, :, both:].transpose(1, 2))
            if keys_only and number == last:
                break
            queries = turned[:, :, :heads].transpose(1, 2)
            mixed = F.scaled_dot_product_attention(
                queries,
                live[2 * number],
                live[2 * number + 1],
                attn_mask=mask,
                is_causal=causal,
                scale=1.0,
                enable_gqa=heads != keys,
            )
            mixed = mixed.transpose(1, 2).reshape(items * new, heads * width)
            if number == last and keep is not None:
                x, mixed = x.index_select(0, keep), mixed.index_select(0, keep)
            x = layer.out.onto(x, mixed)
            gate, up = layer.gate_up(self._normed(x, layer.norm2)).chunk(2, -1)
            x = layer.down.onto(x, self.activation(gate).mul_(up))
        return x if keys_only else self.head(self._normed(x, self.norm))


def _layer(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    config = attention.config
    norm1, qkv = _absorb(layer.input_layernorm.weight, _weights(attention.q_proj, attention.k_proj, attention.v_proj))
    biases = [attention.q_proj.bias, attention.k_proj.bias, attention.v_proj.bias]
    head_norm = None
    if hasattr(attention, "q_norm"):
        rows = [attention.q_norm.weight * attention.scaling] * config.num_attention_heads
        head_norm = torch.stack(rows + [attention.k_norm.weight] * config.num_key_value_heads)
    else:
        qkv[0] = qkv[0] * attention.scaling
        biases[0] = None if biases[0] is None else biases[0] * attention.scaling
    norm2, gate_up = _absorb(layer.post_attention_layernorm.weight, _weights(mlp.gate_proj, mlp.up_proj))
    return _Layer(
        norm1=norm1,
        qkv=Matrix(qkv, biases),
        head_norm=head_norm,
        out=Matrix(_weights(attention.o_proj), [attention.o_proj.bias]),
        norm2=norm2,
        gate_up=Matrix(gate_up, [mlp.gate_proj.bias, mlp.up_proj.bias]),
        down=Matrix(_weights(mlp.down_proj), [mlp.down_proj.bias]),
    )


def _weights(*linears: nn.Linear) -> list[Tensor]:
    return [linear.weight for linear in linears]


def _absorb(norm: Tensor, weights: list[Tensor]) -> tuple[Tensor | None, list[Tensor]]:
    """Moves a norm's weight [E], and the sqrt(E) that `_normed` leaves out, into the weights [out, E] behind it, where that
    rounds no more than the norm itself would."""
    if norm.dtype != torch.float32:
        return norm.clone(), weights
    return None, [weight * (norm * norm.numel() ** 0.5) for weight in weights]
