"""What plugged parts save on the last prompt: tokens, FLOPs, key-value bytes, and measured time, against the plain model.

Both are run again on the same inputs, in turns, so that a machine that slows down slows both; times are medians. FLOPs are
counted by torch's counter (matrix products, convolutions and attention) over the prefill, the encoding of the images included.

Legend: B rows, S tokens.
"""

from __future__ import annotations

import inspect
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from tessera.errors import UserError
from tessera.hosts.architecture import Architecture
from tessera.hosts.forward import ModelCall, ThreadStates
from tessera.hosts.sequence import Sequence

_LEFT_OUT = (
    "past_key_values",
    "labels",
    "use_cache",
    "logits_to_keep",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
)


@dataclass(frozen=True, slots=True)
class GenerationCost:
    """flops and kv_bytes of the prefill of the whole batch; medians of seconds for the prefill and for one decoding step."""

    flops: int
    kv_bytes: int
    prefill_seconds: float
    decode_seconds: float


@dataclass(frozen=True, slots=True)
class CostReport:
    """What parts cost and save.

    parts    names of the parts
    host     the model's family
    rows     prompts in the batch
    prompt   tokens per prompt without padding, mean over rows
    visual   visual ones among them
    tokens   tokens entering each decoder layer, mean over rows
    rounds   how often each time was measured
    """

    parts: tuple[str, ...]
    host: str
    rows: int
    prompt: float
    visual: float
    tokens: tuple[float, ...]
    bare: GenerationCost
    plugged: GenerationCost
    rounds: int

    @property
    def ratios(self) -> dict[str, float]:
        """Plugged over plain, of every cost and of the tokens over all layers."""
        costs = {name: getattr(self.plugged, name) / max(getattr(self.bare, name), 1e-12) for name in GenerationCost.__slots__}
        return {"tokens": sum(self.tokens) / max(self.prompt * len(self.tokens), 1e-12), **costs}

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {**asdict(self), "parts": list(self.parts), "tokens": list(self.tokens), "ratios": self.ratios}

    def __str__(self) -> str:
        ratios, plain, plugged = self.ratios, self.bare, self.plugged
        layers = []
        for tokens, group in groupby(range(len(self.tokens)), key=lambda layer: self.tokens[layer]):
            own = list(group)
            layers.append(f"{tokens:g} in layer{'s' if len(own) > 1 else ''} {own[0]}" + (f"-{own[-1]}" if len(own) > 1 else ""))
        rows = [
            ("FLOPs", f"{plugged.flops / 1e9:.4g} of {plain.flops / 1e9:.4g} G", ratios["flops"]),
            ("keys, values", f"{plugged.kv_bytes / 2**20:.4g} of {plain.kv_bytes / 2**20:.4g} MiB", ratios["kv_bytes"]),
            (
                "prefill",
                f"{plugged.prefill_seconds * 1e3:.4g} of {plain.prefill_seconds * 1e3:.4g} ms",
                ratios["prefill_seconds"],
            ),
            ("one token", f"{plugged.decode_seconds * 1e3:.4g} of {plain.decode_seconds * 1e3:.4g} ms", ratios["decode_seconds"]),
        ]
        head = f"{', '.join(self.parts) or 'nothing'} on {self.host}: {self.prompt:g} tokens, {self.visual:g} of them visual"
        head += f" (mean of {self.rows} rows)" if self.rows > 1 else ""
        lines = [f"  {name:13s} {text:28s} {ratio:.3f}" for name, text, ratio in rows]
        return "\n".join([head, f"  tokens        {', '.join(layers)}", *lines])


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """What is measured: a host's model, the names of its parts, and the last prompt with the call that it came in."""

    model: Any
    architecture: Architecture
    title: str
    parts: tuple[str, ...]
    sequence: Sequence
    example: ModelCall


def measure(
    what: Measured,
    states: ThreadStates,
    without_parts: Callable[[], AbstractContextManager[None]],
    rounds: int,
    decode_tokens: int,
) -> CostReport:
    """See `PluggedHost.report`. without_parts: a context in which the model runs plain."""
    if rounds < 1 or decode_tokens < 1:
        raise UserError("a report needs at least one round and one decoding step.")
    sequence, run = what.sequence, _Run(what, states)
    flops: dict[str, int] = {}
    bytes_: dict[str, int] = {}
    times: dict[str, list[tuple[float, float]]] = {"plain": [], "plugged": []}
    with torch.no_grad(), _evaluating(what.model):
        for number in range(rounds + 1):
            for which, context in (("plain", without_parts), ("plugged", nullcontext)):
                with context():
                    if number == 0:  # warms up, too
                        flops[which], bytes_[which] = run.count()
                    else:
                        times[which].append(run.time(decode_tokens))
    costs = {
        which: GenerationCost(
            flops[which],
            bytes_[which],
            statistics.median(prefill for prefill, _ in found),
            statistics.median(decode for _, decode in found),
        )
        for which, found in times.items()
    }
    return CostReport(
        parts=what.parts,
        host=what.title,
        rows=sequence.visual.shape[0],
        prompt=_mean(sequence.real),
        visual=_mean(sequence.visual),
        tokens=tuple(_mean(stage.real) for stage in sequence.stages),
        bare=costs["plain"],
        plugged=costs["plugged"],
        rounds=rounds,
    )


class _Run:
    """A prefill and decoding steps like those of the last prompt, on a cache of their own."""

    def __init__(self, what: Measured, states: ThreadStates) -> None:
        self.what, self.states, self.sequence = what, states, what.sequence
        sequence = what.sequence
        self.module, self.args, given = what.example
        self.kwargs = {name: value for name, value in given.items() if name not in _LEFT_OUT}
        mask = self.kwargs.get("attention_mask")
        if mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 2):  # made for the cache of that time
            self.kwargs["attention_mask"] = sequence.real.long()
        if "logits_to_keep" in inspect.signature(self.module.forward).parameters:
            self.kwargs["logits_to_keep"] = 1
        images = sequence.images
        encoded = "pixel_values" not in self.kwargs and sequence.has_visual
        self.images: Mapping[str, Any] | None = images.inputs if encoded and images is not None else None
        self.language_model: Any = what.architecture.language_model
        self.takes = inspect.signature(self.language_model.forward).parameters

    def prefill(self) -> Any:
        """Reads the prompt; the filled cache."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self.language_model.config)
        if self.images is not None:
            base: Any = self.what.architecture.base
            base.get_image_features(**self.images)
        if self.module is self.language_model:  # nobody showed it the prompt's ids
            self.states.own().prompt.placeholders = self.sequence.visual
        self.module(*self.args, **self.kwargs, past_key_values=cache, use_cache=True)
        return cache

    def decode(self, cache: Any, tokens: int) -> None:
        """Some steps, whatever the tokens are."""
        real = self.sequence.real
        ids = torch.zeros(real.shape[0], 1, dtype=torch.int64, device=real.device)
        embeds = self.language_model.get_input_embeddings()(ids)
        head: Any = self.what.model.get_output_embeddings()
        mask, positions = real.long(), real.sum(1, keepdim=True)
        for step in range(tokens):
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            place = {"position_ids": positions + step} if "position_ids" in self.takes else {}
            out = self.language_model(inputs_embeds=embeds, attention_mask=mask, past_key_values=cache, use_cache=True, **place)
            head(out.last_hidden_state)

    def count(self) -> tuple[int, int]:
        """FLOPs of the prefill and bytes of its cache."""
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            cache = self.prefill()
        stored = [t for layer in cache.layers for t in (getattr(layer, "keys", None), getattr(layer, "values", None))]
        self.decode(cache, 1)
        return counter.get_total_flops(), sum(t.numel() * t.element_size() for t in stored if t is not None)

    def time(self, tokens: int) -> tuple[float, float]:
        """Seconds of the prefill, and of one of `tokens` decoding steps."""
        cache, prefill = self._clock(self.prefill)
        _, decode = self._clock(lambda: self.decode(cache, tokens))
        return prefill, decode / tokens

    def _clock(self, work: Callable[[], Any]) -> tuple[Any, float]:
        self._wait()
        begin = time.perf_counter()
        found = work()
        self._wait()
        return found, time.perf_counter() - begin

    def _wait(self) -> None:
        kind = self.sequence.real.device.type
        if kind != "cpu":
            getattr(torch, kind).synchronize()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and every module's own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _mean(tokens: Tensor) -> float:
    return round(float(tokens.sum(1).float().mean()), 3)
