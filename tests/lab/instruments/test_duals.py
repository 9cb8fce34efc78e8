"""What claims about dual encoders measure with."""

from __future__ import annotations

import pytest
import torch

from tessera.errors import UserError
from tessera.lab.instruments import duals
from tessera.models.contrast import Embedded
from tessera.models.few_shot import prompt
from tessera.models.image_processing import TesseraImageProcessor
from tessera.models.processing import TesseraDualProcessor
from tessera.models.tokenizer import build_tokenizer
from tessera.world import World
from tessera.world.concepts import held_out


def world(**options: object) -> World:
    return World(**{"split": "test", "width": 64, "height": 64, "kinds": {"scene": 1.0}, **options})


def processor() -> TesseraDualProcessor:
    return TesseraDualProcessor(TesseraImageProcessor(64), build_tokenizer(["A", "picture", "of", "a", "fire", "engine"]), 64)


def test_scenes_of_one_thing_come_from_the_seeds_own_place() -> None:
    found = duals.single_things(world(), 5)
    assert all(len(s.frames[0].things) == 1 and not s.frames[0].signs for s in found)
    assert not {s.index for s in found} & {s.index for s in duals.single_things(world(), 5, seed=1)}
    held = duals.single_things(world(combinations="held-out"), 3, 0, duals.in_held_out_colour)
    assert all(held_out(s.frames[0].things[0].concept, s.frames[0].things[0].tint or "") for s in held)


def test_captions_do_not_come_twice() -> None:
    found = duals.captioned(world(things=(1, 2)), 20)
    assert len({duals.caption(s) for s in found}) == 20


def test_prompts_have_the_right_article() -> None:
    assert prompt(duals.PROMPTS[0], "owl") == "A picture of an owl."
    assert prompt(duals.PROMPTS[1], "owl") == "An owl on a white background."


def test_the_words_of_a_name_are_found() -> None:
    text = prompt(duals.PROMPTS[0], "fire engine")
    assert duals.words_of(processor(), text, "fire engine").tolist() == [False] * 4 + [True] * 2 + [False]
    with pytest.raises(UserError, match="'picture of fire' does not stand in"):
        duals.words_of(processor(), text, "picture of fire")


def test_patches_in_a_box() -> None:
    assert duals.inside((2, 2), (0.5, 0.0, 1.0, 0.5)).tolist() == [False, True, False, False]


def test_tokens_are_averaged_in_squares() -> None:
    class Tower:
        grid = (4, 4)

        def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
            return torch.arange(16.0).view(1, 16, 1).expand(len(pixels), 16, 3)

    found = duals.pairs(Tower(), duals.captioned(world(), 3), processor(), 2)
    assert found.grid == (2, 2) and found.features.shape == (3, 4, 3)
    assert found.features[0, :, 0].tolist() == [2.5, 4.5, 10.5, 12.5]


def test_recall_counts_both_directions() -> None:
    class Model:
        class contrast:
            @staticmethod
            def similarity(images: Embedded, texts: Embedded) -> tuple[torch.Tensor, torch.Tensor]:
                return torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.eye(2)

    some = Embedded(torch.zeros(2, 1, 3), torch.ones(2, 1).bool())
    assert duals.caption_recall(Model, some, some) == (0.5, 1.0)
