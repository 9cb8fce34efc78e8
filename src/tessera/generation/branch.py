"""A second stream of the same model: other inputs, followed by the same tokens.

Contrastive decoding compares what a model says about an image with what it says without it (or with a spoilt one). A `Branch`
reads the other inputs once, keeps its own cache, and is told the tokens that the main stream chooses; it works inside
`generate()`, inside any other loop that calls logits processors, and by itself.

Legend: B prompts, R rows of the main stream (B, or B times the beams), T tokens so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tessera.errors import TesseraError
from tessera.generation.request import prepare
from tessera.generation.route import Route
from tessera.generation.steps import ModelSteps, Reading

if TYPE_CHECKING:
    from tessera.hosts.contract import Host


class Branch:
    """Next-token logits of `inputs` continued by another stream's tokens."""

    def __init__(self, model: Any, inputs: Mapping[str, Any], host: Host | None = None) -> None:
        """inputs: what `model.generate` would be given, B rows; left-padded rows need an `attention_mask`. host: the model's, if
        parts are plugged in; what it knows of the main stream stays as it is. Nothing runs yet."""
        self.model, self.inputs, self.host = model, dict(inputs), host
        self._steps: ModelSteps | None = None
        self._told: Tensor | None = None

    @torch.no_grad()
    def begin(self, rows: int | None = None) -> Tensor:
        """Reads the prompts: logits [R, V] of the first token. rows: R, a multiple of B; None: B."""
        given = int(self.inputs["input_ids"].shape[0])
        wanted = given if rows is None else rows
        if wanted % given:
            raise TesseraError(f"{wanted} rows are not a multiple of the {given} prompts of the branch.")
        with _aside(self.model, self.host):
            request = prepare(self.model, _repeated(self.model, self.inputs, wanted // given), **self._options())
            self._steps = ModelSteps(request, Reading(Route(request.model), request))
        return self._steps.logits

    @torch.no_grad()
    def logits(self, ids: Tensor) -> Tensor:
        """Logits [R, V] of the next token when the main stream stands at ids [R, T].

        Called once per step. The first call fixes what the prompt is; rows may change places between calls (beams), as long
        as every row continues a row of the call before.
        """
        steps = self._steps
        if steps is None or self._told is None:
            found = self.begin(ids.shape[0])
            self._told = ids
            return found
        seen = self._told.shape[1]
        self._follow(steps, ids[:, :seen])
        with _aside(self.model, self.host):
            for tokens in ids[:, seen:].unbind(1):
                steps.step(tokens)
        self._told = ids
        return steps.logits

    def _follow(self, steps: ModelSteps, history: Tensor) -> None:
        """Puts the rows of the cache in the order of `history` [R, T]."""
        told = self._told
        assert told is not None
        if torch.equal(told, history):
            return
        same = (history[:, None] == told[None]).all(-1)
        if not bool(same.any(1).all()):
            raise TesseraError("a row of the main stream continues none of its rows of the step before.")
        places = torch.arange(history.shape[0], device=history.device)
        stays = torch.zeros_like(same[:, 0])
        shared = min(same.shape)
        stays[:shared] = same.diagonal()[:shared]
        order = torch.where(stays, places, same.int().argmax(1))
        cache = steps.kwargs["past_key_values"]
        if order.shape[0] == told.shape[0]:
            cache.reorder_cache(order)
        else:
            cache.batch_select_indices(order)
        for name, value in steps.kwargs.items():
            if isinstance(value, Tensor) and value.dim() == 2 and value.shape[0] == told.shape[0]:
                steps.kwargs[name] = value.index_select(0, order.to(value.device))

    def _options(self) -> dict[str, Any]:
        """A cache of its own: a model that keeps one for its generations would share it with the main stream."""
        from transformers import DynamicCache

        config = self.model.config.get_text_config(decoder=True)
        return {"max_new_tokens": 1, "do_sample": False, "past_key_values": DynamicCache(config=config), "use_cache": True}


def _repeated(model: Any, inputs: Mapping[str, Any], times: int) -> dict[str, Any]:
    if times == 1:
        return dict(inputs)
    ids, rest = model._expand_inputs_for_generation(times, False, **inputs)
    return {"input_ids": ids, **rest}


@contextmanager
def _aside(model: Any, host: Host | None) -> Iterator[None]:
    """What is noted of the main stream outlives a forward of the branch: a host's last prompt, and the offset of M-RoPE positions
    that models keep on themselves."""
    noted = [(module, module.rope_deltas) for module in model.modules() if "rope_deltas" in vars(module)]
    with nullcontext() if host is None else host.aside():
        try:
            yield
        finally:
            for module, deltas in noted:
                module.rope_deltas = deltas
