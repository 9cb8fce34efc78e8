"""What `generate()` would do with a prompt, prepared by transformers itself and handed to a loop of our own.

`generate(custom_generate=...)` is the public way in: transformers checks the inputs, encodes images ahead, makes position ids,
mask, cache, logits processors and stopping criteria exactly as for its own loop, whatever the family overrides on the way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tessera.errors import UserError

_SINGLE = ("greedy_search", "sample")


@dataclass(slots=True)
class Request:
    """One prepared generation. B rows, S prompt tokens.

    model       whose `generate` was reached in the end (an InstructBLIP's is its language model)
    input_ids   [B, S]; S is 0 where the prompt came as embeddings alone
    processors  of logits, in order
    criteria    that stop a row, other than its length and its end tokens
    kwargs      of the first forward: mask, positions, pixels, cache ...
    limit       new tokens at most
    ends        tokens that end a row
    pad         what ended rows are filled with
    sampled     whether tokens are drawn
    """

    model: Any
    input_ids: Tensor
    processors: list[Any]
    criteria: list[Any]
    kwargs: dict[str, Any]
    limit: int
    ends: frozenset[int]
    pad: int
    sampled: bool

    @property
    def mask(self) -> Tensor | None:
        """[B, S], zero at padding; None without any."""
        mask: Tensor | None = self.kwargs.get("attention_mask")
        return mask


def prepare(model: Any, inputs: Mapping[str, Any], **options: Any) -> Request:
    """What `model.generate(**inputs, **options)` would begin with.

    Raises `UserError` for what is not done here: beams, assisted decoding, no cache, scores or attentions in the output, a prompt
    that continues a filled cache.
    """
    if options.get("custom_generate") is not None or options.get("assistant_model") is not None:
        raise UserError("assistants and custom loops belong to model.generate(); this is another loop.")

    def grab(
        inner: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Request:
        return _request(inner, input_ids, logits_processor, stopping_criteria, generation_config, model_kwargs)

    found: Request = model.generate(**inputs, **options, custom_generate=grab)
    return found


def _request(model: Any, input_ids: Tensor, processors: Any, criteria: Any, settings: Any, kwargs: dict[str, Any]) -> Request:
    from transformers import EosTokenCriteria, MaxLengthCriteria

    mode = settings.get_generation_mode().value
    if mode not in _SINGLE or settings.num_beams != 1:
        raise UserError(f"Tessera's loop follows one answer per row; {mode.replace('_', ' ')} is model.generate()'s.")
    if settings.return_dict_in_generate:
        raise UserError("Tessera's loop gives tokens only; for scores, attentions or the cache use model.generate().")
    if not settings.use_cache:
        raise UserError("Tessera's loop needs the cache; without it (use_cache=False) use model.generate().")
    if model.config.is_encoder_decoder:
        raise UserError("Tessera's loop is for decoders; an encoder-decoder has model.generate().")
    cache = kwargs.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0:
        raise UserError("the given cache is filled already; Tessera's loop begins with the prompt, or with a prefix of its own.")
    longest = [c.max_length for c in criteria if type(c) is MaxLengthCriteria]
    ends = [c.eos_token_id for c in criteria if type(c) is EosTokenCriteria]
    pad = settings._pad_token_tensor
    return Request(
        model=model,
        input_ids=input_ids,
        processors=list(processors),
        criteria=[c for c in criteria if type(c) not in (MaxLengthCriteria, EosTokenCriteria)],
        kwargs=kwargs,
        limit=min(longest) - input_ids.shape[1],
        ends=frozenset(int(token) for found in ends for token in found.flatten().tolist()),
        pad=0 if pad is None else int(pad),
        sampled=bool(settings.do_sample),
    )
