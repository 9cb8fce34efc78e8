"""MoVA: who is named, who is asked, what the router learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError

from tessera.errors import UserError
from tessera.nn.tokens import QuestionText, VisualTokens, from_grid
from tessera.parts.experts.mova import AdapterBlock, MoVA, Router, heads_of, router_loss, routing_labels

WIDTHS, GRIDS = [16, 8, 12], [(4, 4), (2, 2), (4, 4)]


def made(**options: Any) -> MoVA:
    torch.manual_seed(0)
    part = MoVA(MoVA.Config(**({"heads": 2, "blocks": 1} | options)), WIDTHS, GRIDS, text_width=10)
    for parameter in part.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return part.eval()


def seen(batch: int = 2) -> list[VisualTokens]:
    random = torch.Generator().manual_seed(1)
    return [
        from_grid(torch.randn(batch, grid[0] * grid[1], width, generator=random), grid)
        for width, grid in zip(WIDTHS, GRIDS, strict=True)
    ]


def asked(batch: int = 2, seed: int = 2) -> QuestionText:
    words = torch.randn(batch, 6, 10, generator=torch.Generator().manual_seed(seed))
    return QuestionText(embeddings=words, mask=torch.arange(6)[None] < torch.tensor([4, 6] * batch)[:batch, None])


@pytest.mark.parametrize("halved", [True, False])
def test_an_untrained_adapter_hands_its_base_on(halved: bool) -> None:
    part = MoVA(MoVA.Config(heads=2, downsample=halved), WIDTHS, GRIDS, text_width=10)
    sets = seen()
    wanted = sets[0].features
    if halved:
        wanted = wanted.view(2, 2, 2, 2, 2, 16).mean((2, 4)).flatten(1, 2)
    out = part(sets, asked())
    assert out.grid == ((2, 2) if halved else (4, 4))
    torch.testing.assert_close(out.features, wanted, rtol=0, atol=1e-6 if halved else 0)


def test_the_best_named_experts_share_the_weight() -> None:
    block = AdapterBlock(16, [8, 8, 8], 4, 2, 2, (2, 2))
    torch.nn.init.normal_(block.gate[-1].weight, std=3.0)  # type: ignore[index,arg-type]
    named = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0]]).bool()
    weights = block.weights(torch.randn(4, 4, 16), torch.randn(4, 4), named)
    torch.testing.assert_close(weights.sum(1), torch.tensor([1.0, 1.0, 1.0, 0.0]))
    assert (weights > 0).sum(1).tolist() == [2, 2, 1, 0] and not bool((weights[~named] != 0).any())


def test_training_and_evaluation_agree_on_experts_that_are_not_named() -> None:
    part, named = made(), torch.tensor([[True, False], [True, False]])
    evaluated = part(seen(), asked(), named).features
    torch.testing.assert_close(part.train()(seen(), asked(), named).features, evaluated, rtol=0, atol=1e-6)


def test_the_question_decides_and_its_padding_does_not() -> None:
    part = made()
    first, other = asked(), asked(seed=3)
    assert not torch.allclose(part(seen(), first).features, part(seen(), other).features)
    padded = QuestionText(embeddings=torch.where(first.mask[..., None], first.embeddings, 7.0), mask=first.mask)
    torch.testing.assert_close(part(seen(), padded).features, part(seen(), first).features, rtol=0, atol=1e-6)
    left = QuestionText(embeddings=first.embeddings.roll(2, 1), mask=first.mask.roll(2, 1) & (torch.arange(6) >= 2))
    right = QuestionText(embeddings=first.embeddings, mask=first.mask & (torch.arange(6) < 4))
    torch.testing.assert_close(part(seen(), left).features, part(seen(), right).features, rtol=0, atol=1e-6)


def test_the_router_names_at_most_so_many_and_only_with_a_yes() -> None:
    logits = torch.tensor([[0.5, 2.0, -1.0], [-1.0, -2.0, -3.0], [1.0, 2.0, 3.0]])
    assert Router.choose(logits, 2).tolist() == [[True, True, False], [False] * 3, [False, True, True]]
    part = made(routing="router", most=1)
    assert part.router is not None
    named = Router.choose(part.router(asked(), seen()[0].features, (4, 4)), 1)
    assert torch.equal(part(seen(), asked()).features, part(seen(), asked(), named).features)


def test_labels_are_the_experts_that_help_most() -> None:
    losses, base = torch.tensor([[1.0, 0.2, 0.5], [2.0, 3.0, 4.0]]), torch.tensor([0.8, 1.0])
    assert routing_labels(losses, base, 1).tolist() == [[False, True, False], [False] * 3]
    assert routing_labels(losses, base, 3).tolist() == [[False, True, True], [False] * 3]


def test_the_router_learns_its_labels() -> None:
    torch.manual_seed(0)
    router = Router(10, 16, 2, 1, experts=2, base_width=16, side=2)
    kinds = torch.arange(24) % 2
    words = torch.randn(2, 10)[kinds][:, None] + 0.3 * torch.randn(24, 3, 10)
    question = QuestionText(embeddings=words, mask=torch.ones(24, 3, dtype=torch.bool))
    base, labels = torch.randn(24, 16, 16), torch.nn.functional.one_hot(kinds, 2).bool()
    optimiser = torch.optim.AdamW(router.parameters(), lr=1e-2)
    for _ in range(30):
        optimiser.zero_grad()
        router_loss(router(question, base, (4, 4)), labels).backward()
        optimiser.step()
    assert torch.equal(Router.choose(router(question, base, (4, 4)), 1), labels)


def test_gradients_reach_every_parameter() -> None:
    part = made().train()
    part(seen(), asked()).features.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in part.parameters())


@pytest.mark.parametrize(("width", "heads"), [(192, 6), (128, 4), (1024, 32), (8, 1), (36, 1)])
def test_heads_are_chosen_by_width(width: int, heads: int) -> None:
    assert heads_of(width) == heads


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match="give input_ids together with the images"):
        made()(seen())
    with pytest.raises(UserError, match="4 heads of 2-D rotary positions do not divide 24 channels"):
        MoVA(MoVA.Config(heads=4), [24], [(4, 4)])
    with pytest.raises(UserError, match="needs the width of its words"):
        MoVA(MoVA.Config(heads=2), WIDTHS, GRIDS)
    with pytest.raises(StrictDataclassClassValidationError):
        MoVA.Config(reader_width=9)
    with pytest.raises(StrictDataclassClassValidationError):
        MoVA.Config(top=0)
