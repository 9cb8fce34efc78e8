"""Our own decoding loop for any image-text-to-text model of transformers, over prepared inputs.

    inputs = processor(images=images, text=prompts, return_tensors="pt", padding=True, padding_side="left")
    tokens = decode_inputs(model, inputs, max_new_tokens=64)

gives what `model.generate(**inputs, max_new_tokens=64, do_sample=False)` gives, token for token in float32, sooner. Everything
that `generate` does before its loop is done by `generate` itself (`tessera.generation.request`); the loop avoids what it does
for every token.

Legend: B rows, S prompt tokens, N new tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tessera.generation.request import Request, prepare
from tessera.generation.route import Route
from tessera.generation.steps import Steps, begin


class ChosenTokens:
    """Iterating chooses token after token, until every row has ended: yields tokens [B], `pad` in ended rows.

    log_probabilities  [B] float32 of all that was chosen in open rows, ends included, at temperature 1; None unless wanted
    open               which rows want another token
    """

    def __init__(self, request: Request, steps: Steps, seed: int | None = None, known: bool = False) -> None:
        """seed: of drawing; None takes torch's own random state. known: whether probabilities are wanted."""
        self.request, self.steps = request, steps
        rows = steps.logits.shape[0]
        self.open = [True] * rows
        self.log_probabilities: Tensor | None = steps.logits.new_zeros(rows, dtype=torch.float32) if known else None
        self.made: list[Tensor] = []
        self._random: torch.Generator | None = None
        if request.sampled and seed is not None:
            self._random = torch.Generator(steps.logits.device).manual_seed(seed)
        self._all: Tensor | None = None
        if request.processors or request.criteria:
            prompt = request.input_ids.to(steps.logits.device)
            self._all = torch.cat([prompt, prompt.new_zeros((rows, request.limit))], 1)

    @torch.inference_mode()
    def __iter__(self) -> Iterator[Tensor]:
        request, steps = self.request, self.steps
        prompt = request.input_ids.shape[1]
        for number in range(request.limit):
            if number:
                steps.step(self.made[-1])
            logits = steps.logits
            scores = self._scores(logits, prompt + number)
            if request.sampled:
                chosen = torch.multinomial(scores.softmax(-1), 1, generator=self._random)[:, 0]
            else:
                chosen = scores.argmax(-1)
            closed = not all(self.open)
            if closed and request.ends:
                chosen = chosen.masked_fill(~torch.tensor(self.open, device=chosen.device), request.pad)
            if self.log_probabilities is not None:
                known = logits.float().log_softmax(-1).gather(1, chosen[:, None])[:, 0]
                if closed:
                    known = known * torch.tensor(self.open, device=chosen.device)
                self.log_probabilities += known
            self.made.append(chosen)
            self._close(chosen, prompt + number)
            yield chosen
            if not any(self.open):
                return

    def close(self, row: int) -> None:
        """Ends a row from outside (a stop string was met)."""
        self.open[row] = False

    def _scores(self, logits: Tensor, length: int) -> Tensor:
        if not self.request.processors:
            return logits.float() if self.request.sampled else logits
        assert self._all is not None
        scores = logits.to(torch.float32, copy=True)
        for processor in self.request.processors:
            scores = processor(self._all[:, :length], scores)
        return scores

    def _close(self, chosen: Tensor, length: int) -> None:
        request = self.request
        if request.ends:
            for row, token in enumerate(chosen.tolist()):
                if token in request.ends:
                    self.open[row] = False
        if self._all is not None:
            self._all[:, length] = chosen
            for criterion in request.criteria:
                ended = criterion(self._all[:, : length + 1], None)
                for row, done in enumerate(ended.expand(len(self.open)).tolist()):
                    self.open[row] &= not done


@torch.inference_mode()
def decode_inputs(
    model: Any,
    inputs: Mapping[str, Any],
    *,
    max_new_tokens: int | None = None,
    stop: str | Sequence[str] = (),
    tokenizer: Any = None,
    seed: int | None = None,
    streamer: Any = None,
    route: Route | None = None,
    **options: Any,
) -> Tensor:
    """Prompt and answer, int64 [B, S + N], as `model.generate(**inputs, ...)` returns them.

    inputs    what the family's processor makes: input_ids [B, S] padded on the left, attention_mask, pixel_values ...
    stop      strings that end a row, their tokens included; need `tokenizer`
    seed      of drawing, with do_sample=True
    streamer  of transformers, for one row
    route     kept from call to call it saves reading the weights again
    options   `generate`'s own: do_sample (False unless given), temperature, top_p, top_k, logits_processor,
              generation_config, cache_implementation ...

    Raises `UserError` for what this loop does not do (see `tessera.generation.request.prepare`).
    """
    options = {"do_sample": False, **options}
    if max_new_tokens is not None:
        options["max_new_tokens"] = max_new_tokens
    strings = [stop] if isinstance(stop, str) else list(stop)
    if strings:
        options["stopping_criteria"] = [*options.get("stopping_criteria", ()), stopping(strings, tokenizer)]
    request = prepare(model, inputs, **options)
    steps, _ = begin(route_of(model, request, route), request)
    choices = ChosenTokens(request, steps, seed)
    if streamer is not None:
        streamer.put(request.input_ids.cpu())
        for tokens in choices:
            streamer.put(tokens.cpu())
        streamer.end()
    else:
        for _ in choices:
            pass
    return torch.cat([request.input_ids, torch.stack(choices.made, 1).to(request.input_ids.device)], 1)


def route_of(model: Any, request: Request, route: Route | None = None) -> Route:
    """The route of the model that a request reached: the one that is known, or a new one."""
    if route is not None and route.model is request.model:
        return route
    return Route(request.model)


def stopping(strings: list[str], tokenizer: Any) -> Any:
    """The criterion of transformers that ends a row once its text ends with one of some strings."""
    from transformers import StoppingCriteriaList, StopStringCriteria

    from tessera.errors import UserError

    if tokenizer is None:
        raise UserError("stop strings need the tokenizer: decode_inputs(..., stop=[...], tokenizer=processor.tokenizer).")
    return StoppingCriteriaList([StopStringCriteria(tokenizer, strings)])[0]
