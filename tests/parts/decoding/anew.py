"""Tiny hosts, and what they say when everything is read anew in every step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tessera.hosts import zoo
from tessera.hosts.plug import attach


def made(name: str) -> tuple[Any, Any]:
    """A tiny model and its host; skips the test where a package is missing."""
    try:
        found = zoo.tiny(name)
    except ModuleNotFoundError as missing:
        pytest.skip(str(missing))
    return found, attach(found.model)


def longer(inputs: dict[str, Any], token: Tensor) -> dict[str, Any]:
    """The same prompt one text token [B, 1] later: everything about tokens grows by one column."""
    grown = dict(inputs)
    for name, value in inputs.items():
        if name == "input_ids":
            grown[name] = torch.cat([value, token], 1)
        elif name in ("attention_mask", "token_type_ids", "mm_token_type_ids"):
            grown[name] = torch.cat([value, torch.full_like(token, int(name == "attention_mask"))], 1)
    return grown


def fresh(model: Any, inputs: dict[str, Any]) -> Tensor:
    """Logits [B, V] of the next token by reading everything again."""
    found = model.generate(**inputs, max_new_tokens=1, do_sample=False, return_dict_in_generate=True, output_logits=True)
    return found.logits[0]


def close(found: Tensor, wanted: Tensor) -> None:
    """Equal to 1e-5 of the greatest value."""
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 * float(wanted[~wanted.isneginf()].abs().max()))
