from __future__ import annotations

from typing import Any

import pytest
import torch

from tessera.config import build
from tessera.errors import UserError
from tessera.hosts import zoo
from tessera.hosts.plug import attach
from tessera.parts.tokens.scm import ScaleCompression, scores


def made(name: str) -> tuple[Any, Any]:
    tiny = zoo.tiny(name)
    return tiny, attach(tiny.model)


def test_scores_are_the_mean_of_later_real_queries() -> None:
    attention = torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(0))
    detail = torch.tensor([[0, 1, 1, 0, 0, 0], [0, 0, 1, 1, 0, 0]]).bool()
    real = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 0]]).bool()
    found = scores(attention, detail, real)
    assert found[0].tolist() == pytest.approx(attention[0, 3:6].mean(0).tolist())
    assert found[1].tolist() == pytest.approx(attention[1, 4].tolist())


def eager_attention(tiny: Any, inputs: dict[str, Any], layer: int) -> torch.Tensor:
    """Heads' mean of one layer, as the model itself gives it in eager mode: [B, S, S]."""
    tiny.model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            return tiny.model(**inputs, output_attentions=True).attentions[layer].mean(1)
    finally:
        tiny.model.set_attn_implementation("sdpa")


@pytest.mark.parametrize("detail", [(1,), (2, 1)])
def test_half_of_the_detail_tokens_stay_and_everything_else(detail: tuple[int, ...]) -> None:
    tiny, host = made("llava")
    inputs = tiny.inputs((2, 2))
    attention = eager_attention(tiny, inputs, 1)
    with host.plug("scm", keep=0.5, detail=detail), torch.no_grad():
        tiny.model(**inputs)
        sequence = host.sequence
        assert sequence is not None
        full, after = sequence.stages[1], sequence.stages[2]
        assert full.full and not after.full
        counts = detail * 2 if len(detail) == 1 else detail
        for row, images in enumerate(counts):
            own = sequence.visual[row] & (sequence.image_of[row] < images)
            places = own.nonzero()[:, 0]
            later = sequence.real[row].clone()
            later[: places[-1] + 1] = False
            score = attention[row][later].mean(0)[places]
            best = set(places[score.topk(len(places) // 2).indices].tolist())
            stayed = set(after.index[row][after.present[row]].tolist())
            assert stayed & set(places.tolist()) == best
            others = (sequence.real[row] & ~own).nonzero()[:, 0].tolist()
            assert set(others) <= stayed, "nothing but detail tokens is dropped"


def test_tiles_of_a_host_that_tiles_are_its_detail_layer() -> None:
    tiny, host = made("llava_next")
    with host.plug("scm", keep=0.25), torch.no_grad():
        tiny.model(**tiny.inputs())
        sequence = host.sequence
        assert sequence is not None
        dropped = sequence.visual.sum(1) - sequence.stages[2].visual.sum(1)
        layouts = host.architecture.family.layouts(tiny.model, sequence.images.inputs)
        for row, layout in enumerate(layouts):
            tiles = sum(b.rows * (b.columns + b.newline) for b in layout.blocks if not b.whole)
            assert dropped[row] == tiles - int(tiles * 0.25) > 0


@pytest.mark.parametrize("name", ["llava", "qwen3_vl", "gemma3"])
def test_keeping_all_is_the_model_itself(name: str) -> None:
    tiny, host = made(name)
    inputs = tiny.inputs()
    with torch.no_grad():
        bare = tiny.model(**inputs).logits
        with host.plug("scm", **ScaleCompression.identity()):
            assert torch.equal(tiny.model(**inputs).logits, bare)


@pytest.mark.parametrize("positions", ["keep", "reindex"])
def test_a_cached_generation_is_what_reading_the_same_tokens_anew_gives(positions: str) -> None:
    tiny, host = made("llava")
    inputs = tiny.inputs((2, 1))
    with host.plug("scm", detail=(1,), positions=positions), torch.no_grad():
        out = tiny.model.generate(
            **inputs,
            max_new_tokens=4,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
            suppress_tokens=[190, 191],
        )
        sequence = host.sequence
        assert sequence is not None
        whole = {**inputs, "input_ids": out.sequences[:, :-1]}
        mask = inputs["attention_mask"]
        whole["attention_mask"] = torch.cat([mask, mask.new_ones(2, 3)], 1)
        with host.replay(sequence):
            logits = tiny.model(**whole).logits[:, -4:]
    torch.testing.assert_close(torch.stack(out.logits, 1), logits, rtol=1e-5, atol=1e-5 * float(logits.abs().max()))


def test_what_cannot_be_done_is_refused() -> None:
    tiny, host = made("llava")
    with pytest.raises(UserError, match="detail"), host.plug("scm"), torch.no_grad():
        tiny.model(**tiny.inputs())
    with pytest.raises(UserError, match="no layer 99"), host.plug("scm", layer=99):
        pass
    for wrong in ({"keep": 1.5}, {"layer": 0}, {"detail": (-1,)}):
        with pytest.raises(UserError):
            build(ScaleCompression.Config, wrong)
