"""One image, many questions: the keys and values of a prompt's head are computed once, questions continue from there.

Refused, with the reason, where a question reaches back into the image: prompts with bidirectional attention, towers that read
the question, plugged parts. What is not known by name is found out: the first question is computed both ways once.

Legend: Q questions side by side, P tokens of the head, T of the longest tail, E width, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tessera.generation.linear import hooked
from tessera.generation.loop import ChosenTokens
from tessera.generation.packed import PackedRun
from tessera.generation.parts import bound_to_question, hooks_of
from tessera.generation.request import Request, prepare
from tessera.generation.route import Route
from tessera.generation.steps import DecoderSteps, Reading, Steps, begin
from tessera.hosts.caches import sequence_of
from tessera.hosts.plug import plugged

SEES_QUESTION = {
    "paligemma": "its image tokens see the question (bidirectional attention over the full prompt)",
    "instructblip": "its Q-Former reads the question to see the image",
    "instructblipvideo": "its Q-Former reads the question to see the video",
}
_CLOSE = {torch.float32: 1e-3}
_CLOSE_ELSE = 5e-2
"""How far logits of both ways may be apart, relative to the largest; half precision rounds differently at other lengths."""


def why_not(model: Any) -> str | None:
    """Why a model cannot go on from the head of a prompt, as far as it shows without running it."""
    kind = model.config.model_type
    if kind in SEES_QUESTION:
        return f"{kind}: {SEES_QUESTION[kind]}"
    if getattr(model, "reads_question", False):
        return "parts of it read the question to see the image"
    name = hooked(model, hooks_of(plugged(model)))
    if name is not None:
        return f"its {name or 'forward'} is hooked: what the hook does may depend on the question"
    return bound_to_question(model)


@dataclass(slots=True)
class Head:
    """The head of a prompt as the model has read it: `ids` [P], its cache, and the position ids [..., 1, 1] of the next token.

    packed  keys and values [2 L, 1, K, P', D] for the own arithmetic, P' tokens being left of P; None without it
    """

    ids: list[int]
    cache: Any
    positions: Tensor
    packed: Tensor | None = None

    def shift(self) -> int:
        """How far the next position is from the number of tokens in `packed`."""
        assert self.packed is not None
        sequence = sequence_of(self.cache)
        moved = None if sequence is None else sequence.stages[-1].shift
        return int(self.positions[-3:].max()) - (0 if moved is None else int(moved[0])) - self.packed.shape[3]


def read(route: Route, inputs: Mapping[str, Any]) -> Head | str:
    """Reads a prompt's head (one row, ending with an image token); or why it cannot be gone on from."""
    request = prepare(route.model, inputs, do_sample=False, max_new_tokens=1)
    reading = Reading(route, request)
    way, why = route.way()
    if way == "model" or reading.positions is None or not reading.plain:
        return why or "its language model is not followed by its output layer alone"
    head = Head(request.input_ids[0].tolist(), reading.cache, _next(reading.positions))
    layers = getattr(reading.cache, "layers", [])
    if route.decoder_behind() is not None and _ordinary(layers) and len({layer.keys.shape[2] for layer in layers}) == 1:
        head.packed = torch.stack([kv for layer in layers for kv in (layer.keys, layer.values)])
    return head


def go_on(route: Route, head: Head, tails: Sequence[Sequence[int]], limit: int) -> Steps:
    """Reads questions (token ids, each at least one) behind a head; at most `limit` tokens of each will follow."""
    decoder = None if head.packed is None else route.decoder_behind()
    if decoder is not None and head.packed is not None:
        return PackedRun(decoder, head.packed, [tails], limit, head.shift())
    return _behind(route, head, tails)


def full_prompt(model: Any, route: Route, inputs: Mapping[str, Any], **options: Any) -> tuple[Request, Steps]:
    """A prompt read from its beginning."""
    request = prepare(model, inputs, **options)
    steps, _ = begin(route if request.model is route.model else Route(request.model), request)
    return request, steps


@torch.inference_mode()
def decode_tails(route: Route, head: Head, tails: Sequence[Sequence[int]], *, seed: int | None = None, **options: Any) -> Tensor:
    """What follows questions (token ids, not empty) behind a head: int64 [Q, N], ended rows filled as `generate` does.

    `options` are `generate`'s, with max_new_tokens. Raises `UserError` as `tessera.generation.request.prepare` does.
    """
    request = questions(route, head, tails, **options)
    choices = ChosenTokens(request, go_on(route, head, tails, request.limit), seed)
    for _ in choices:
        pass
    return torch.stack(choices.made, 1)


def questions(route: Route, head: Head, tails: Sequence[Sequence[int]], pad: int = 0, **options: Any) -> Request:
    """What `generate` would prepare for these prompts, as far as it does not depend on the image: processors, criteria, limit."""
    longest = max(map(len, tails))
    missing = [longest - len(tail) for tail in tails]
    ids = [[pad] * n + [*head.ids, *tail] for n, tail in zip(missing, tails, strict=True)]
    mask = [[0] * n + [1] * (len(row) - n) for n, row in zip(missing, ids, strict=True)]
    device = head.positions.device
    plain = {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}
    return prepare(route.model, plain, **{"do_sample": False, **options})


def agrees(route: Route, head: Head, tail: Sequence[int], wanted: Tensor) -> bool:
    """Whether a question computed from the head gives the logits [V] of its full prompt."""
    mine = go_on(route, head, [tail], 1).logits[0].float()
    close = _CLOSE.get(wanted.dtype, _CLOSE_ELSE)
    return bool((mine - wanted.float()).abs().max() <= close * wanted.float().abs().max())


def ragged(head: Head, tails: Sequence[Sequence[int]]) -> bool:
    """Whether these tails can only be read apart: of several lengths, in windows that count filled columns."""
    return head.packed is None and len({len(tail) for tail in tails}) > 1 and not _ordinary(head.cache.layers)


def _ordinary(layers: Sequence[Any]) -> bool:
    """Whether a cache keeps everything it was given."""
    from transformers.cache_utils import DynamicLayer

    return all(type(layer) is DynamicLayer for layer in layers)


def _next(positions: Tensor) -> Tensor:
    """Position ids behind an image: one more than its largest on any axis of M-RoPE. [1, P] or [axes, 1, P] -> [..., 1, 1]."""
    last = positions[..., -1:] + 1
    if last.ndim == 2:
        return last
    axes = last[-3:]
    axes = axes.amax(0, keepdim=True).expand_as(axes)
    return torch.cat([last[:-3], axes])  # in front there may be the token's place in the prompt


def _behind(route: Route, head: Head, tails: Sequence[Sequence[int]]) -> DecoderSteps:
    """Through the language model's own forward: one copy of the head's cache per question, shorter tails padded in front."""
    longest, device = max(map(len, tails)), head.positions.device
    cache = copy.deepcopy(head.cache)
    if len(tails) > 1:
        cache.batch_repeat_interleave(len(tails))
    ids = torch.tensor([[0] * (longest - len(tail)) + list(tail) for tail in tails], device=device)
    missing = torch.tensor([longest - len(tail) for tail in tails], device=device)
    steps = (torch.arange(longest, device=device) - missing[:, None]).clamp(min=0)
    positions = head.positions + steps
    mask = None
    if bool(missing.any()):
        mask = torch.ones(len(tails), len(head.ids) + longest, dtype=torch.long, device=device)
        mask[:, len(head.ids) :] = torch.arange(longest, device=device) >= missing[:, None]
    outputs = route.language_model(
        inputs_embeds=route.model.get_input_embeddings()(ids),
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    )
    logits = route.head(outputs.last_hidden_state[:, -1])
    return DecoderSteps(route, outputs.past_key_values, positions, mask, logits)
