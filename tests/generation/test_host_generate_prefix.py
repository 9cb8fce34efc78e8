"""Several questions about one image: the image is read once, and the tokens are those of whole prompts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tessera.generation.prefixes import SEES_QUESTION, Head, agrees, decode_tails, full_prompt, ragged, read, why_not
from tessera.generation.route import Route
from tessera.hosts import zoo
from tessera.hosts.tiny_configs import IMAGE

NEW = 8
TAILS = [[21, 35, 50, 81, 17], [40, 22, 97, 61, 33, 45, 70], [90], [12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22]]
LOOKING_BACK = ("paligemma", "instructblip", "instructblip_opt")


def continued(host: zoo.Tiny, tail: list[int] | None) -> dict[str, Any]:
    """Inputs of one row with one image, cut behind its last image token and gone on with `tail` (None: only cut)."""
    inputs = host.inputs((1,))
    length = int((inputs["input_ids"][0] == IMAGE).nonzero().max()) + 1
    rest = torch.tensor([tail or []], dtype=torch.long)
    fills = {"input_ids": rest, "attention_mask": torch.ones_like(rest)}
    for key in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
        if key in inputs:
            cut = inputs[key][:, :length]
            inputs[key] = torch.cat([cut, fills.get(key, torch.zeros_like(rest)).to(cut.dtype)], 1)
    return inputs


def tokens(host: zoo.Tiny, route: Route, head: Head, tails: list[list[int]], new: int = NEW) -> list[list[int]]:
    found: list[list[int]] = decode_tails(route, head, tails, max_new_tokens=new).tolist()
    return found


def wanted(host: zoo.Tiny, tail: list[int], new: int = NEW) -> list[int]:
    inputs = continued(host, tail)
    out = host.model.generate(**inputs, max_new_tokens=new, do_sample=False)
    found: list[int] = out[0, inputs["input_ids"].shape[1] :].tolist()
    return found


@pytest.mark.parametrize("name", [name for name in zoo.names() if name not in LOOKING_BACK])
def test_questions_behind_one_image(name: str) -> None:
    if (package := zoo.recipe(name).package) is not None:
        pytest.importorskip(package)
    host = zoo.tiny(name)
    assert why_not(host.model) is None
    expected = [wanted(host, tail) for tail in TAILS]
    for own in (True, False):
        route = Route(host.model, own=own)
        with torch.inference_mode():
            head = read(route, continued(host, None))
            assert isinstance(head, Head)
            _, steps = full_prompt(host.model, route, continued(host, TAILS[0]), max_new_tokens=1)
            assert agrees(route, head, TAILS[0], steps.logits[0])
        groups = [[tail] for tail in TAILS] if ragged(head, TAILS) else [TAILS]
        assert [row for group in groups for row in tokens(host, route, head, group)] == expected
        assert tokens(host, route, head, TAILS[1:2]) == expected[1:2]  # the head is as it was


@pytest.mark.parametrize("name", LOOKING_BACK)
def test_what_looks_back_is_refused_by_name(name: str) -> None:
    host = zoo.tiny(name)
    assert SEES_QUESTION[host.model.config.model_type] in (why_not(host.model) or "")


def test_what_looks_back_would_be_found_out_without_its_name() -> None:
    host = zoo.tiny("paligemma")
    route = Route(host.model)
    with torch.inference_mode():
        head = read(route, continued(host, None))
        assert isinstance(head, Head)
        _, steps = full_prompt(host.model, route, continued(host, TAILS[0]), max_new_tokens=1)
        assert not agrees(route, head, TAILS[0], steps.logits[0])


def test_short_windows_keep_questions_of_other_lengths_apart() -> None:
    host = zoo.tiny("gemma3", text_config={"sliding_window": 12})
    route = Route(host.model)
    with torch.inference_mode():
        head = read(route, continued(host, None))
    assert isinstance(head, Head)
    assert ragged(head, TAILS)
    twins = [TAILS[0], TAILS[0][::-1]]
    assert not ragged(head, twins)
    assert tokens(host, route, head, twins, 20) == [wanted(host, tail, 20) for tail in twins]


def test_nothing_is_shared_where_something_is_hooked() -> None:
    host = zoo.tiny("llava")
    layer = host.model.model.language_model.layers[1]
    handle = layer.register_forward_hook(lambda *_: None)
    assert "model.language_model.layers.1 is hooked" in (why_not(host.model) or "")
    handle.remove()
    assert why_not(host.model) is None
