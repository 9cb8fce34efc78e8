"""POVID against what its equations say, on a speaker of random logits (`tessera.lab.speaker`)."""

from __future__ import annotations

import math

import pytest
import torch

from tessera.config import build
from tessera.errors import UserError
from tessera.lab.speaker import speakers
from tessera.parts.preference.povid import POVID, hallucinated, noised, signal_and_noise
from tessera.training.objective import objective_named
from tessera.world import World
from tessera.world.lists import LIST_PROMPTS, lists

WORLD = World(split="train", width=64, height=64, things=(1, 4))


def test_stage_one_is_ordinary_dpo() -> None:
    policy, reference, processor = speakers()
    part = POVID(POVID.Config(beta=0.2, inject=1.0, noise=0.0))
    batch = part.collate([WORLD], processor, 3)(range(3))
    assert "noised_pixel_values" not in batch
    loss = part.loss(policy, batch, reference)
    assert loss.numbers.keys() == {"reward/right", "reward/injected", "preferred"}
    same = part.loss(policy, batch, policy)
    assert float(same.loss_sum.detach() / same.loss_weight) == pytest.approx(math.log(2), rel=1e-6)


def test_a_step_of_gradient_prefers_the_right_answers() -> None:
    policy, _, processor = speakers()
    _, reference, _ = speakers()
    reference.load_state_dict(policy.state_dict())
    part = POVID(POVID.Config(beta=1.0))
    batch = part.collate([WORLD], processor, 3)(range(3))
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.3)
    for _ in range(10):
        loss = part.loss(policy, batch, reference)
        optimizer.zero_grad()
        loss.loss_sum.backward()
        optimizer.step()
    numbers = part.loss(policy, batch, reference).numbers
    assert numbers["reward/right"] > numbers["reward/injected"]
    assert numbers["reward/right"] > numbers["reward/noised"]


def test_the_mistakes_are_mistakes() -> None:
    kinds = set()
    for index in range(40):
        sample = WORLD.sample(index, "scene")
        made = hallucinated(sample, sample.rng("test"))
        if made is None:
            assert not sample.frames[0].things or sample.frames[0].signs
            continue
        question, (right, wrong) = made
        form = next(form for form, prompt in LIST_PROMPTS.items() if prompt == question)
        assert sorted(right.split(", ")) == sorted(lists(sample)[form].split(", "))
        assert right != wrong and set(wrong.split(", ")) != set(right.split(", "))
        kinds.add((form, len(wrong.split(", ")) - len(right.split(", "))))
    assert {("places", 0), ("places", 1), ("names", 1)} <= kinds


def test_batches_depend_on_the_samples_numbers_alone() -> None:
    _, _, processor = speakers()
    part = POVID(POVID.Config())
    collate = part.collate([WORLD], processor, 4)
    whole, half = collate(range(4)), collate(range(2, 4))
    assert torch.equal(whole["noised_pixel_values"][2:], half["noised_pixel_values"])
    assert torch.equal(whole["input_ids"][2, : half["input_ids"].shape[1]][half["segment_ids"][0] >= 0],
                       half["input_ids"][0][half["segment_ids"][0] >= 0])  # fmt: skip


def test_noise_grows_and_keeps_the_variance() -> None:
    pixels = torch.rand(2, 3, 64, 64) * 2 - 1
    for step in (0, 500, 999):
        signal, spread = signal_and_noise(step)
        assert signal**2 + spread**2 == pytest.approx(1, abs=1e-6)
        left = (noised(pixels, step, [1, 2]) - signal * pixels) / spread
        assert float(left.std()) == pytest.approx(1, abs=0.05)
        assert not torch.equal(left[0], left[1])
    assert signal_and_noise(0)[0] > signal_and_noise(500)[0] > signal_and_noise(999)[0]


def test_swapped_pairs_exchange_their_sides() -> None:
    sample = WORLD.sample(0, "scene")
    straight, turned = (POVID(POVID.Config(swapped=s))._asked(sample) for s in (0.0, 1.0))
    assert [(q, (b, a)) for q, (a, b) in straight] == turned


@pytest.mark.parametrize(
    ("options", "said"), [({"step": 1000}, "999"), ({"inject": 0, "noise": 0}, "positive"), ({"swapped": 2.0}, "share")]
)
def test_bad_options_are_refused(options: dict[str, float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build(POVID.Config, options)
    with pytest.raises(UserError):
        objective_named({"kind": "povid", **options})
