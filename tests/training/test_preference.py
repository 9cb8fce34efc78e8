from __future__ import annotations

import math

import pytest
import torch
from tests.training.small import made, small

from tessera.data.packing import collate, unpack
from tessera.training.preference import dpo, pack_answers, score

ASKED = [
    ("Is there a dog?", ("yes", "no")),
    ("What colour is the dog?", ("red", "blue")),
    ("Where is it?", ("top left", "left")),
]


def test_packed_answers_score_as_each_by_itself() -> None:
    model, processor = made(small())
    model.eval()
    packs = [pack_answers(processor, 1, ASKED), pack_answers(processor, 1, ASKED[:1]), pack_answers(processor, 0, ASKED[:2])]
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        packed = score(model, collate(packs, pixels))
        assert packed.shape == (3, 6)
        sums, lengths = packed.sums(), packed.lengths()
        assert lengths[0].tolist() == [2, 2, 2, 2, 3, 2]
        assert lengths[1].tolist() == [2, 2, 0, 0, 0, 0] and not sums[1, 2:].any()
        for row, pack in enumerate(packs):
            for segment, single in enumerate(unpack(pack)):
                own = collate([single], pixels[row : row + 1] if row < 2 else None)
                assert float(score(model, own).sums()[0, 0]) == pytest.approx(float(sums[row, segment]), abs=1e-4)


def test_scores_are_what_the_models_own_loss_says() -> None:
    model, processor = made(small())
    model.eval()
    batch = collate([pack_answers(processor, 1, ASKED)], torch.rand(1, 3, 64, 64))
    with torch.no_grad():
        output = model(**batch)
        assert float(-score(model, batch).sums().sum()) == pytest.approx(float(output.loss_sum), rel=1e-5)


def test_rows_without_segments_are_one_sequence_each() -> None:
    model, processor = made(small())
    model.eval()
    batch = collate([pack_answers(processor, 0, ASKED[:1])])
    single = collate([unpack(pack_answers(processor, 0, ASKED[:1]))[0]])
    single.pop("segment_ids")
    single["attention_mask"] = (single["input_ids"] != 0).long()
    with torch.no_grad():
        alone = score(model, single)
        assert alone.shape == (1, 1)
        assert float(alone.sums()) == pytest.approx(float(score(model, batch).sums()[0, 0]), abs=1e-4)


def test_other_tokens_in_the_same_places() -> None:
    model, processor = made(small())
    scored = score(model.eval(), collate([pack_answers(processor, 0, ASKED[:1])]))
    assert torch.equal(scored.sums(scored.tokens), scored.sums())
    best = scored.sums(scored.logits.argmax(-1))
    assert (best >= scored.sums()).all()


def test_dpo_is_minus_log_sigmoid() -> None:
    margin = torch.tensor([-3.0, 0.0, 3.0])
    wanted = [math.log1p(math.exp(-0.5 * float(m))) for m in margin]
    assert dpo(margin, 0.5).tolist() == pytest.approx(wanted, rel=1e-6)
