"""S-VCO against what its equations say, on a speaker of random logits (`tessera.lab.speaker`)."""

from __future__ import annotations

import math

import pytest
import torch

from tessera.config import build
from tessera.errors import UserError
from tessera.lab.speaker import speakers
from tessera.parts.preference.s_vco import SVCO, margins
from tessera.world import World
from tessera.world.contrasts import contrasts

WORLD = World(split="train", width=64, height=64)


def test_margins_are_symmetric_in_the_two_images() -> None:
    logprobs = torch.randn(4, 3, 2)
    turned = logprobs[:, [1, 0, 2]][..., [1, 0]]
    torch.testing.assert_close(margins(turned), margins(logprobs)[:, [2, 3, 0, 1]])


def test_terms_of_beta_zero_are_left_out() -> None:
    policy, reference, processor = speakers()
    batch = SVCO(SVCO.Config()).collate([WORLD], processor, 2)(range(2))
    one = [tuple(0.1 if i == k else 0.0 for i in range(4)) for k in range(4)]
    parts = [SVCO(SVCO.Config(betas=betas)).loss(policy, batch, reference).loss_sum.detach() for betas in one]  # type: ignore[arg-type]
    whole = SVCO(SVCO.Config()).loss(policy, batch, reference).loss_sum.detach()
    assert float(sum(parts)) == pytest.approx(float(whole), rel=1e-5)


def test_learning_lowers_the_loss_where_the_images_can_be_told_apart() -> None:
    policy, _, processor = speakers()
    _, reference, _ = speakers()
    reference.load_state_dict(policy.state_dict())
    part = SVCO(SVCO.Config())
    batch = part.collate([WORLD], processor, 1)(range(1))
    batch["pixel_values"] = torch.ones_like(batch["pixel_values"]) * torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.1)
    begin = part.loss(policy, batch, reference)
    for _ in range(60):
        loss = part.loss(policy, batch, reference)
        optimizer.zero_grad()
        loss.loss_sum.backward()
        optimizer.step()
    assert float(loss.loss_sum.detach()) < 0.9 * float(begin.loss_sum.detach())


def test_rows_are_first_second_and_no_image() -> None:
    _, _, processor = speakers()
    batch = SVCO(SVCO.Config()).collate([WORLD], processor, 2)(range(2))
    images = (batch["input_ids"] == processor.tokenizer.convert_tokens_to_ids("<image>")).any(1)
    assert images.tolist() == [True, True, False] * 2
    assert len(batch["pixel_values"]) == 4


def test_a_random_negative_is_a_picture_of_another_pair_and_changes_the_contradicting_terms_alone() -> None:
    policy, reference, processor = speakers()
    index = next(i for i in range(50) if contrasts(WORLD.sample(i, "pair")))
    plain, control = SVCO(SVCO.Config()), SVCO(SVCO.Config(negatives="random"))
    pair, random = (part.collate([WORLD], processor, 2)([index, index + 1]) for part in (plain, control))
    images = (random["input_ids"] == processor.tokenizer.convert_tokens_to_ids("<image>")).any(1)
    assert images.tolist() == [True, True, False, True] * 2
    shown = random["pixel_values"].view(2, 3, *random["pixel_values"].shape[1:])
    assert torch.equal(shown[:, :2].flatten(0, 1), pair["pixel_values"])
    assert all(not torch.equal(shown[n, 2], other) for n in range(2) for other in pair["pixel_values"])
    found = {part.config.negatives: part.loss(policy, batch, reference) for part, batch in ((plain, pair), (control, random))}
    for term in ("matching", "matching_other"):
        same, other = (float(loss.numbers[f"margin/{term}"]) for loss in found.values())
        assert same == pytest.approx(other, abs=1e-5)
    for term in ("contradicting", "contradicting_other"):
        same, other = (float(loss.numbers[f"margin/{term}"]) for loss in found.values())
        assert same != pytest.approx(other, abs=1e-5)


def test_a_fourth_image_takes_the_place_of_the_wrong_one() -> None:
    logprobs = torch.randn(5, 3, 2)
    own, other, blind = logprobs.unbind(1)
    random = torch.randn(5, 2)
    found = margins(torch.stack([own, other, blind, random], 1))
    wanted = [own[:, 0] - blind[:, 0], (blind - random)[:, 0], other[:, 1] - blind[:, 1], (blind - random)[:, 1]]
    torch.testing.assert_close(found, torch.stack(wanted, 1))


def test_the_plain_form_is_dpo_of_own_over_other() -> None:
    policy, reference, processor = speakers()
    part = SVCO(SVCO.Config(form="dpo"))
    batch = part.collate([WORLD], processor, 1)(range(1))
    same = part.loss(policy, batch, policy)
    assert float(same.loss_sum.detach() / same.loss_weight) == pytest.approx(2 * math.log(2), rel=1e-6)
    assert part.loss(policy, batch, reference).numbers.keys() == {"preferred"}


@pytest.mark.parametrize(
    "options",
    [
        {"betas": (0.0, 0.0, 0.0, 0.0)},
        {"betas": (-0.1, 0.1, 0.1, 0.1)},
        {"questions": 0},
        {"form": "dpo", "negatives": "random"},
    ],
)
def test_bad_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UserError):
        build(SVCO.Config, options)
