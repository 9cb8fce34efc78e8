"""What no coupling may change: packed rows, batches with padding, caches and beams give what single rows give."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tessera.data.packing import collate, pack, unpack
from tessera.lab.claims import part_module
from tessera.lab.composed import pictures, prefix, tiny
from tessera.registry import get


def model_of(kind: str) -> Any:
    """A tiny model whose new parts do something: gates are open, experts differ."""
    model = tiny({"kind": kind, **getattr(part_module(get("couplings", kind)), "TINY", {})})
    for name, parameter in model.named_parameters():
        if name.endswith("_gate"):
            torch.nn.init.constant_(parameter, 0.5)
        if ".experts.1." in name:
            parameter.data.neg_()
    return model


@pytest.fixture(params=["prefix", "flamingo", "ep_alm", "eve", "moe_llava"])
def model(request: pytest.FixtureRequest) -> Any:
    return model_of(request.param)


def test_packed_questions_lose_what_single_ones_do(model: Any) -> None:
    asked = [([6, 20, 21, 7], [30, 2], None), ([6, 22, 7], [31, 32, 2], None), ([6, 23, 24, 25, 7], [33, 2], None)]
    row, images = pack(prefix(model, 2), asked, 250), pictures(2)
    with torch.no_grad():
        together = model(**collate([row], images)).loss_sum
        alone = sum(model(**collate([single], images)).loss_sum for single in unpack(row))
    assert float(together) == pytest.approx(float(alone), abs=1e-5)


def test_padding_caches_and_beams_change_nothing(model: Any) -> None:
    images = pictures(3)
    ids, short = [*prefix(model, 2), 6, 20, 21, 7], [*prefix(model, 1), 6, 22, 7]
    blank = len(ids) - len(short)
    batch = torch.tensor([ids, [0] * blank + short])
    mask = torch.tensor([[1] * len(ids), [0] * blank + [1] * len(short)])
    with torch.no_grad():
        whole = model(batch, images, attention_mask=mask).logits
        first, second = model(batch[:1], images[:2]).logits, model(batch[1:, blank:], images[2:]).logits
        begun = model(batch[:, :-3], images, attention_mask=mask[:, :-3], use_cache=True)
        rest = model(batch[:, -3:], past_key_values=begun.past_key_values, attention_mask=mask).logits
        options: dict[str, Any] = {"pixel_values": images, "attention_mask": mask, "max_new_tokens": 4, "do_sample": False}
        beams = [model.generate(batch, num_beams=2, use_cache=cache, **options) for cache in (True, False)]
    torch.testing.assert_close(whole[:1], first, rtol=0, atol=1e-5)
    torch.testing.assert_close(whole[1:, blank:], second, rtol=0, atol=1e-5)
    torch.testing.assert_close(rest, whole[:, -3:], rtol=0, atol=1e-5)
    assert torch.equal(*beams)
