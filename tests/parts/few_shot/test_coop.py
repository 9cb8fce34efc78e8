"""CoOp: what its prompts are, what learns, and that it does."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from tests.parts.few_shot.tiny import tiny_duals

from tessera.config import build
from tessera.errors import UserError
from tessera.models.few_shot import FewShot, FrozenDual, Shots, zero_shot
from tessera.parts.few_shot.coop import CoOp, Prompts

NAMES = ["dog", "fire engine", "cat"]


@cache
def duals() -> dict[str, FrozenDual]:
    return tiny_duals(["a picture of a {name}."])


def part(**options: Any) -> CoOp:
    return CoOp(build(CoOp.Config, {"views": 0, "epochs": 3, "context": 4} | options))


def shots(count: int = 6) -> Shots:
    generator = torch.Generator().manual_seed(0)
    return Shots(torch.randn(count, 3, 16, 16, generator=generator), torch.arange(count) % 3)


@pytest.mark.parametrize("kind", ["Tessera", "CLIP of transformers"])
@pytest.mark.parametrize(("place", "cut"), [("end", 4), ("middle", 2), ("front", 0)])
def test_the_name_stands_where_it_should(kind: str, place: str, cut: int) -> None:
    dual = duals()[kind]
    prompts = Prompts(dual, NAMES, part(place=place).config, 0)
    filler, end = dual.ids("X", special=False), dual.ids("a.")[1 + (kind != "Tessera") :]
    for row, name in enumerate(NAMES):
        own = dual.ids(name, special=False)
        expected = dual.ids(f"{'X ' * 4}{name}.")
        first = expected.index(filler[0])
        expected = [*expected[:first], *filler * cut, *own, *filler * (4 - cut), *end]
        spoken = [0 if i == filler[0] else i for i in expected]
        assert prompts.there[row].sum() == len(expected)
        found = prompts.spoken[row][prompts.there[row]].tolist()
        assert [0 if i == filler[0] else i for i in found] == spoken


def test_prompts_are_what_is_read() -> None:
    """The weights equal those of a text tower that is fed by hand."""
    dual = duals()["Tessera"]
    prompts = Prompts(dual, NAMES, part(place="middle", per_class=True).config, 0)
    with torch.no_grad():
        found = prompts()
        for row, name in enumerate(NAMES):
            ids = torch.tensor([dual.ids(f"{name}.")])
            own = dual.embed(ids)[0]
            v = prompts.vectors[row]
            stop = len(dual.ids(name, special=False))
            embeds = torch.cat([v[:2], own[:stop], v[2:], own[stop:]])[None]
            there = torch.ones(embeds.shape[:2]).bool()
            torch.testing.assert_close(dual.encode(embeds, there.long(), there)[0], found[row], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("per_class", [False, True])
def test_it_learns_its_images_and_the_model_stays(per_class: bool) -> None:
    dual, few = duals()["Tessera"], shots()
    before = {n: p.detach().clone() for n, p in dual.model.named_parameters()}
    flags = [p.requires_grad for p in dual.model.parameters()]
    first = zero_shot(dual, NAMES).logits(few.pixels)
    found = part(per_class=per_class, init="a picture of a", epochs=40).fit(dual, NAMES, few, seed=1)
    loss = [torch.nn.functional.cross_entropy(logits, few.labels) for logits in (first, found.logits(few.pixels))]
    assert loss[1] < loss[0] - 0.01
    assert all(torch.equal(p, before[n]) for n, p in dual.model.named_parameters())
    assert [p.requires_grad for p in dual.model.parameters()] == flags
    torch.testing.assert_close(found.of_features(dual.images(few.pixels)), found.logits(few.pixels))


def test_the_same_seed_gives_the_same_classifier() -> None:
    dual, few = duals()["Tessera"], shots()
    a, b, c = (part(views=2).fit(dual, NAMES, few, seed=s).logits(few.pixels) for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_epochs_follow_the_number_of_images() -> None:
    free = part(epochs=None)
    assert [free._epochs(k * 5, 5) for k in (1, 2, 4, 8, 16)] == [50, 100, 100, 200, 200]


def test_mistakes_are_refused() -> None:
    dual = duals()["Tessera"]
    with pytest.raises(UserError, match="labels go from 0 to 2 for 3 classes; got 3"):
        part().fit(dual, NAMES, Shots(torch.zeros(1, 3, 16, 16), torch.tensor([3])))
    with pytest.raises(UserError, match="one label each; there are 2 images, 1 labels"):
        part().fit(dual, NAMES, Shots(torch.zeros(2, 3, 16, 16), torch.tensor([0])))
    with pytest.raises(UserError, match="texts at most 24: fewer vectors"):
        part(context=40).fit(dual, NAMES, shots())
    with pytest.raises(UserError, match="contex"):
        part(contex=4)
    with pytest.raises(UserError, match="place"):
        part(place="back")
    with pytest.raises(UserError, match="at least 1"):
        part(context=0)
    with pytest.raises(UserError, match="adapt dual encoders"):
        FrozenDual(_Plain(), None)
    assert issubclass(CoOp, FewShot)


class _Plain(torch.nn.Module):
    config = None
