from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tessera.config import build
from tessera.errors import UserError
from tessera.hosts import zoo
from tessera.hosts.plug import attach
from tessera.parts.couplings.v2pe import V2PE, positions

STEPS = 5
STRIDES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def made(name: str) -> tuple[Any, Any]:
    try:
        found = zoo.tiny(name)
    except ModuleNotFoundError as missing:
        pytest.skip(str(missing))
    return found, attach(found.model)


def by_hand(kinds: list[int], strides: dict[int, int]) -> list[float]:
    """The ids of one row without padding: -1 is text, a number is a visual token of that image."""
    ids: list[float] = []
    last = -1.0
    for place, kind in enumerate(kinds):
        if kind < 0:
            last = math.ceil(last) + 1
        else:
            if place and kinds[place - 1] not in (-1, kind):
                last = math.ceil(last)
            last = last + strides[kind] / 256
        ids.append(last)
    return ids


@given(
    runs=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 20), st.sampled_from(STRIDES)), min_size=1, max_size=5),
    tail=st.integers(0, 5),
    padding=st.integers(0, 4),
)
def test_ids_are_those_counted_by_hand(runs: list[tuple[int, int, int]], tail: int, padding: int) -> None:
    kinds, strides = list[int](), dict[int, int]()
    for image, (text, tokens, stride) in enumerate(runs):
        kinds += [-1] * text + [image] * tokens
        strides[image] = stride
    kinds += [-1] * tail
    image_of = torch.tensor([[-1] * padding + kinds])
    real = torch.tensor([[False] * padding + [True] * len(kinds)])
    steps = torch.tensor([[strides.get(kind, 256) / 256 for kind in [-1] * padding + kinds]], dtype=torch.float64)
    found = positions(image_of >= 0, real, image_of, steps)[0].tolist()
    assert found == [1.0] * padding + by_hand(kinds, strides)


def test_stride_256_gives_the_default_ids() -> None:
    image_of = torch.tensor([[-1, -1, 0, 0, 0, -1, 1, 1, -1], [-1, 0, 0, 1, 1, 1, -1, -1, -1]])
    real = torch.tensor([[False] + [True] * 8, [True] * 9])
    found = positions(image_of >= 0, real, image_of, torch.ones(2, 9, dtype=torch.float64))
    assert found[0].tolist() == [1, *range(8)]
    assert found[1].tolist() == list(range(9))


def generated(model: Any, inputs: dict[str, Any], **options: Any) -> tuple[Tensor, Tensor]:
    out = model.generate(
        **inputs,
        max_new_tokens=STEPS,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        suppress_tokens=list(attach(model).architecture.image_token_ids),
        **options,
    )
    return out.sequences[:, -STEPS:], torch.stack(out.logits, 1)


@pytest.mark.parametrize("name", zoo.names())
def test_a_host_keeps_its_answers_at_stride_256_and_its_cache_at_64_or_is_refused(name: str) -> None:
    tiny, host = made(name)
    if "rope" not in host.architecture.capabilities:
        with pytest.raises(UserError, match="rotary positions with one index"), host.plug("v2pe"):
            pass
        return
    model, inputs = tiny.model, tiny.inputs()
    bare, logits = generated(model, inputs)
    with host.plug("v2pe", **V2PE.identity()):
        tokens, found = generated(model, inputs)
        assert torch.equal(tokens, bare) and torch.equal(found, logits)
    with host.plug("v2pe", strides=(64,)):
        tokens, found = generated(model, inputs)
        again, anew = generated(model, inputs, use_cache=False)
    assert torch.equal(tokens, again)
    torch.testing.assert_close(found, anew, rtol=1e-5, atol=1e-5 * float(anew.abs().max()))
    assert not torch.allclose(found[:, 0], logits[:, 0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["llava", "internvl"])
def test_the_rotary_module_is_given_these_ids(name: str) -> None:
    tiny, host = made(name)
    inputs = tiny.inputs((2, 1))
    seen: list[Tensor] = []
    with host.plug("v2pe", strides=(32,)):
        rotary = host.architecture.rotary
        handle = rotary.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs.get("position_ids", args[1] if len(args) > 1 else None)),
            with_kwargs=True,
        )
        generated(tiny.model, inputs)
        handle.remove()
        images = inputs["input_ids"] == host.architecture.image_token_ids[0]
    assert len(seen) == STEPS
    for row, ids in enumerate(inputs["input_ids"]):
        real = inputs["attention_mask"][row].bool()
        kinds, image = [], -1
        for place, visual in enumerate(images[row][real].tolist()):
            image += int(visual and not (place and images[row][real][place - 1]))
            kinds.append(image if visual else -1)
        wanted = by_hand(kinds, dict.fromkeys(range(9), 32))
        assert seen[0][row][real].tolist() == wanted
        assert [float(s[row, -1]) for s in seen[1:]] == [wanted[-1] + n for n in range(1, STEPS)]
        assert ids.shape[0] > len(wanted) or real.all()


def test_several_strides_are_drawn_for_each_image() -> None:
    part = V2PE(build(V2PE.Config, {"strides": STRIDES}))
    torch.manual_seed(0)
    image_of = torch.arange(-1, 40).repeat_interleave(3)[None].expand(2, -1)
    steps = part.steps(image_of) * 256
    assert set(steps.flatten().tolist()) == set(map(float, STRIDES))
    assert torch.equal(steps[:, 3:].view(2, 40, 3).amin(2), steps[:, 3:].view(2, 40, 3).amax(2)), "one stride per image"
    tiny, host = made("llava")
    with host.plug(part):
        assert torch.isfinite(generated(tiny.model, tiny.inputs((2, 1)))[1]).all()


def test_beams_and_later_turns_go_on_behind_the_shortened_prompt() -> None:
    tiny, host = made("llava")
    inputs = tiny.inputs((1, 2))
    with host.plug("v2pe", strides=(16,)):
        ids = tiny.model.generate(**inputs, max_new_tokens=STEPS, num_beams=2, do_sample=False, suppress_tokens=[190, 191])
        again = tiny.model.generate(
            **inputs, max_new_tokens=STEPS, num_beams=2, do_sample=False, suppress_tokens=[190, 191], use_cache=False
        )
    assert torch.equal(ids, again)


def test_wrong_strides_are_refused() -> None:
    for strides in ((), (0,), (64, 300)):
        with pytest.raises(UserError, match="strides"):
            build(V2PE.Config, {"strides": strides})
