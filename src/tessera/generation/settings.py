"""The generation settings of a model that affect greedy decoding."""

from __future__ import annotations

from typing import Any

from tessera.errors import UserError

# Settings that change what greedy `generate` gives and that are not done here, with the values that mean "off".
_OFF: dict[str, tuple[Any, ...]] = {
    "num_beams": (None, 1),
    "repetition_penalty": (None, 1.0),
    "encoder_repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "bad_words_ids": (None, []),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "exponential_decay_length_penalty": (None,),
    "begin_suppress_tokens": (None, []),
    "sequence_bias": (None, {}),
    "guidance_scale": (None, 1.0),
    "watermarking_config": (None,),
    "stop_strings": (None, []),
}


def ending_tokens(model: Any, processor: Any) -> frozenset[int]:
    """Tokens that end an answer: the generation settings' if they name any, else the tokenizer's.

    Raises `UserError` for a setting that is not done here.
    """
    settings = model.generation_config
    for name, off in _OFF.items():
        value = getattr(settings, name, None)
        if value not in off:
            raise UserError(
                f"the model's generation_config sets {name} to {value!r}, which Tessera's generation does not do; "
                f"set it to {off[-1]!r}, or use model.generate()."
            )
    ends = settings.eos_token_id
    if ends is None:
        ends = processor.tokenizer.eos_token_id
    return frozenset([ends] if isinstance(ends, int) else ends or ())


def suppressed_tokens(model: Any) -> list[int]:
    """Tokens that are never generated."""
    return list(model.generation_config.suppress_tokens or ())
