"""How a host's next tokens are computed: the fastest of three ways that gives what the full model gives.

"own"       the arithmetic of `LlamaDecoder` over weights that were read once: language models of a Llama type in float32, with
            nothing hooked into them
"decoder"   the language model's own forward and its output layer; hooks on layers are met, the outer model's work per token is
            not done
"model"     the full model's forward, as `generate` calls it
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import nullcontext
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from tessera.generation.linear import hooked
from tessera.generation.llama import MOST_PARAMETERS, STATIC_ROPE, LlamaDecoder
from tessera.generation.parts import LAYER_HOOKS, chooses_only
from tessera.hosts.plug import plugged

Way: TypeAlias = Literal["own", "decoder", "model"]

TYPES = ("llama", "mistral", "qwen2", "qwen3", "qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text")
"""Language models whose layers are Llama's; those with M-RoPE rotate text, whose three positions are equal, like the others."""
_IDLE = ("transformers.utils.output_capturing", "tessera.hosts.inputs")
_CLOSE = 1e-3
"""How far the own arithmetic may be from the model's, relative to the largest logit; float32 gives about 1e-6."""


class Route:
    """Where a model's language model and output layer are, and the way that is open now; cheap to ask again."""

    def __init__(self, model: Any, *, own: bool = True) -> None:
        """model: whose `forward` gives logits. own: False leaves the first way out, for comparison."""
        self.model = model
        self.head: Any = model.get_output_embeddings()
        self.language_model: Any = _decoder(model)
        self._own = own
        self._decoder: LlamaDecoder | None = None
        self._print: tuple[Any, ...] = ()
        self._unlike: str | None = None
        self.path = _between(model, self.language_model)

    def way(self) -> tuple[Way, str | None]:
        """The way, and why no faster one."""
        if self.language_model is None or self.head is None:
            return "model", "it has no language model with layers and an output layer of the usual kind"
        for name, module in self.path:
            if _touched(module):
                return "model", f"{name or 'the model'} is hooked"
        why = self._obstacle()
        return ("own", None) if why is None else ("decoder", why)

    def decoder(self) -> LlamaDecoder:
        """The own arithmetic; `way` must have said "own"."""
        assert self._decoder is not None
        return self._decoder

    def decoder_behind(self) -> LlamaDecoder | None:
        """The own arithmetic for the tokens behind a prompt that plugged parts have read, None where it is not theirs."""
        host = plugged(self.model)
        if host is None:
            return self.decoder() if self.way()[0] == "own" else None
        return self._decoder if chooses_only(host) and self._obstacle(LAYER_HOOKS) is None else None

    def _obstacle(self, but: Collection[str] = ()) -> str | None:
        if not self._own:
            return "it was asked for"
        language, head = self.language_model, self.head
        found = obstacle(language, head, but)
        if found is not None:
            return found
        fingerprint = _fingerprint(language, head)
        if fingerprint != self._print:  # new, or the weights have changed
            self._print, self._decoder = fingerprint, None
            self._unlike = "its arithmetic is not that of its type"
            try:
                host = plugged(self.model)
                with nullcontext() if host is None else host.plain():
                    decoder = LlamaDecoder(language, head)
                    if _alike(decoder, language, head):
                        self._unlike, self._decoder = None, decoder
            except (AttributeError, RuntimeError, TypeError):  # modules of another make behind the known names
                pass
        return self._unlike


def obstacle(language_model: Any, head: Any, but: Collection[str] = ()) -> str | None:
    """Why `LlamaDecoder` cannot stand in for a host's language model and output layer, or None. Hooks of the modules `but` are no
    reason."""
    config = language_model.config
    if config.model_type not in TYPES:
        return f"its language model is of type {config.model_type!r}, not one of {', '.join(TYPES)}"
    windows = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if windows or (config.model_type == "mistral" and config.sliding_window is not None):
        return "its language model has sliding windows"
    kind = language_model.rotary_emb.rope_type
    if kind not in STATIC_ROPE:
        return f"its rotary embedding ({kind!r}) changes with the length"
    name = hooked(language_model, but)
    if name is not None:
        return f"its language model's {name or 'forward'} is hooked"
    if hooked(head) is not None:
        return "its output layer is hooked"
    if language_model.training:
        return "it is in training mode"
    for name, module in (*language_model.named_modules(), ("embed_tokens", language_model.embed_tokens), ("lm_head", head)):
        wanted = nn.Embedding if name == "embed_tokens" else nn.Linear
        if name.endswith(("_proj", "embed_tokens", "lm_head")) and type(module) is not wanted:
            return f"its {name} is a {type(module).__name__}"
    parameters = [*language_model.parameters(), *head.parameters()]
    if any(p.dtype != torch.float32 for p in parameters):
        return "its weights are not float32"
    if len({p.device for p in parameters}) > 1:
        return "it is spread over devices"
    if sum(p.numel() for p in parameters) > MOST_PARAMETERS:
        return f"its language model has more than {MOST_PARAMETERS:,} parameters"
    return None


def _decoder(model: Any) -> Any:
    """The module that holds the layers, or None."""
    found = model
    for _ in range(4):
        if isinstance(getattr(found, "layers", None), nn.ModuleList):
            return found
        inner = found.get_decoder() if hasattr(found, "get_decoder") else None
        if inner is None or inner is found:
            return None
        found = inner
    return None


def _between(model: nn.Module, language_model: nn.Module | None) -> list[tuple[str, nn.Module]]:
    """The modules that hold the language model, from the model itself down."""
    if language_model is None:
        return []
    name = next((name for name, module in model.named_modules() if module is language_model), "")
    parts = name.split(".")[:-1] if name else []
    prefixes = ["", *(".".join(parts[: n + 1]) for n in range(len(parts)))] if name else []
    return [(prefix, model.get_submodule(prefix)) for prefix in prefixes]


def _touched(module: nn.Module) -> bool:
    """Whether a module itself has hooks or a forward of its own, but for those that transformers leaves idle and those that only
    watch what a host is given."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return "forward" in vars(module) or any(getattr(hook, "__module__", "") not in _IDLE for hook in hooks)


def _fingerprint(*modules: nn.Module) -> tuple[Any, ...]:
    """Changes when a module is replaced or a parameter is written to."""
    found: list[Any] = []
    for module in modules:
        found += map(id, module.modules())
        found += ((id(p), p.data_ptr(), 0 if p.is_inference() else p._version) for p in module.parameters())
    return tuple(found)


@torch.inference_mode()
def _alike(decoder: LlamaDecoder, language_model: Any, head: Any) -> bool:
    """Whether both compute the same logits for a few tokens."""
    weight: Tensor = language_model.embed_tokens.weight
    length = min(5, weight.shape[0])
    tokens = torch.linspace(0, weight.shape[0] - 1, length, device=weight.device).long()
    wanted = head(language_model(inputs_embeds=weight[tokens][None], use_cache=False).last_hidden_state[0])
    decoder.reach(length)
    layers = 2 * len(decoder.layers)
    buffer = weight.new_empty((layers, 1, decoder.key_heads, length, decoder.head_width))
    rotation = decoder.rotation(torch.arange(length, device=weight.device))
    found = decoder.forward(weight[tokens], rotation, buffer, length, 0, None, keep=None)
    return bool((found - wanted).abs().max() <= _CLOSE * wanted.abs().max())
