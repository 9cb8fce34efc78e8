"""Labels of visual tokens: every token is named after what the ground truth says is under it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from tessera.data.packing import IGNORED, pack
from tessera.errors import UserError
from tessera.models.tokenizer import IMAGE, build_tokenizer
from tessera.training.naming import SHARE, TokenNames
from tessera.training.options import Questions
from tessera.training.world_questions import WorldQuestions
from tessera.world import World, WorldConfig
from tessera.world.backgrounds import TINTS
from tessera.world.concepts import concepts
from tessera.world.render import Drawing
from tessera.world.scene import STYLES, Box, Scene
from tessera.world.text import SIGN_COLOURS
from tessera.world.vocabulary import words

GRID = 7


@pytest.fixture(scope="module")
def processor() -> SimpleNamespace:
    tokenizer = build_tokenizer(words())
    prefix = {n: [1] + [5, *[IMAGE] * GRID**2] * n for n in range(5)}
    return SimpleNamespace(tokenizer=tokenizer, tokens_per_image=GRID**2, prefix_ids=lambda images: prefix[images])


@pytest.fixture(scope="module")
def names(processor: SimpleNamespace) -> TokenNames:
    return TokenNames(processor, 0.25)


@pytest.mark.parametrize("index", range(6))
def test_a_token_is_named_after_the_thing_that_fills_most_of_it(
    names: TokenNames, processor: SimpleNamespace, index: int
) -> None:
    sample = World(WorldConfig(kinds={"scene": 1.0})).sample(index, "scene")
    drawing = sample.drawings(owner=True)[0]
    owner, side = np.asarray(drawing.owner), 112 // GRID
    found = names.words(sample.frames[0], drawing, sample.rng("naming"))
    for token in range(GRID**2):
        y, x = divmod(token, GRID)
        cell = owner[y * side : (y + 1) * side, x * side : (x + 1) * side]
        shares = [(cell == i).mean() for i in range(len(sample.frames[0].things))]
        if max(shares) < SHARE:
            continue
        named = [processor.tokenizer(concepts()[t.concept].name)["input_ids"][0] for t in sample.frames[0].things]
        best = {n for n, s in zip(named, shares, strict=True) if s == max(shares)}
        assert found[token] in best
    assert (found >= 0).any()


@pytest.mark.parametrize("index", range(4))
def test_text_is_spelt_by_the_tokens_under_it(names: TokenNames, processor: SimpleNamespace, index: int) -> None:
    sample = World(WorldConfig(kinds={"text": 1.0})).sample(index, "text")
    scene = sample.frames[0]
    found = names.words(scene, sample.drawings(owner=True)[0], sample.rng("naming"))
    pieces = {p for sign in scene.signs for p in processor.tokenizer(sign.text)["input_ids"]}
    assert pieces & set(found.tolist())


def test_characters_of_one_token_share_it(names: TokenNames, processor: SimpleNamespace) -> None:
    # Two digits are one word of the vocabulary, three are a word and a continuation.
    ids = names._pieces("251")
    assert ids[0] == ids[1] != ids[2]
    assert processor.tokenizer.convert_ids_to_tokens([ids[0], ids[2]]) == ["25", "##1"]


def test_labels_stand_one_behind_the_visual_tokens_and_never_outside_the_images(names: TokenNames) -> None:
    world = World(WorldConfig(kinds={"pair": 1.0}))
    sample = world.sample(3, "pair")
    drawings = sample.drawings(owner=True)
    prefix = [1] + [5, *[IMAGE] * GRID**2] * 2
    packed = pack(prefix, [([6, 20], [21, 2], None)], 200)
    before = packed.labels.copy()
    names.label(packed, sample, drawings)
    expected = np.concatenate([names.words(s, d, sample.rng("naming")) for s, d in zip(sample.frames, drawings, strict=True)])
    places = np.flatnonzero(packed.input_ids == IMAGE)
    for place, word in zip(places, expected, strict=True):
        if place + 1 == len(prefix):
            continue
        assert packed.labels[place + 1] == (word if word >= 0 else IGNORED)
        assert packed.loss_weights[place + 1] == (0.25 if word >= 0 else 0.0)
    assert (packed.labels[len(prefix) :] == before[len(prefix) :]).all()


def test_the_model_never_sees_the_names(processor: SimpleNamespace) -> None:
    world = [World(WorldConfig(kinds={"scene": 1.0}))]
    plain = WorldQuestions(world, processor, Questions(several=(0.0, 0.0)), 2).collate([0, 1])
    named = WorldQuestions(world, processor, Questions(several=(0.0, 0.0), naming=0.3), 2).collate([0, 1])
    for key in ("input_ids", "pixel_values", "position_ids", "segment_ids"):
        assert (plain[key] == named[key]).all()
    assert (plain["labels"] != named["labels"]).any()


def test_blind_training_has_no_names(processor: SimpleNamespace) -> None:
    world = [World(WorldConfig(kinds={"scene": 1.0}))]
    batch = WorldQuestions(world, processor, Questions(several=(0.0, 0.0), naming=0.3), 2, blind=True).collate([0, 1])
    assert "pixel_values" not in batch and (batch["labels"][batch["segment_ids"] == 0] == IGNORED).all()


def test_some_things_are_told_by_their_look(processor: SimpleNamespace) -> None:
    looking, world = TokenNames(processor, 0.25, attributes=0.5), World(WorldConfig(kinds={"scene": 1.0}))
    told: dict[str, int] = {}
    for index in range(40):
        sample = world.sample(index, "scene")
        scene = sample.frames[0]
        if scene.signs:
            continue
        found = set(looking.words(scene, sample.drawings(owner=True)[0], sample.rng("naming")).tolist()) - {-1}
        said = {processor.tokenizer.convert_ids_to_tokens(i) for i in found}
        attributes = {t.tint for t in scene.things} | {STYLES[t.style] for t in scene.things}
        kinds = {concepts()[t.concept].category.split()[0] for t in scene.things}
        assert said <= attributes | kinds | {concepts()[t.concept].name.split()[0] for t in scene.things}
        for word in said:
            kind = "style" if word in STYLES else "tint" if word in TINTS else "kind" if word in kinds else "name"
            told[kind] = told.get(kind, 0) + 1
    assert told["name"] > told["style"] > told["tint"] > 0 and told["kind"] > told["tint"]


def test_some_signs_are_told_by_their_colour(processor: SimpleNamespace) -> None:
    looking, world = TokenNames(processor, 0.25, attributes=0.5), World(WorldConfig(kinds={"text": 1.0}, things=(1, 4)))
    coloured = spelt = 0
    for index in range(40):
        sample = world.sample(index, "text")
        scene = sample.frames[0]
        drawing = sample.drawings(owner=True)[0]
        found = looking.words(scene, drawing, sample.rng("naming"))
        for sign, boxes in zip(scene.signs, _characters(scene, drawing), strict=True):
            under = {int((y0 + y1) / 2 * GRID) * GRID + int((x0 + x1) / 2 * GRID) for x0, y0, x1, y1 in boxes}
            said = {processor.tokenizer.convert_ids_to_tokens(int(found[place])) for place in under}
            coloured += said == {SIGN_COLOURS[sign.palette][0]}
            spelt += said <= set(processor.tokenizer.convert_ids_to_tokens(processor.tokenizer(sign.text)["input_ids"]))
    assert coloured > 10 and spelt > 10


def _characters(scene: Scene, drawing: Drawing) -> list[list[Box]]:
    left = [box for _, box in drawing.characters]
    return [[left.pop(0) for _ in sign.text] for sign in scene.signs]


def test_tokens_that_are_no_square_cannot_be_named(processor: SimpleNamespace) -> None:
    with pytest.raises(UserError, match="57 tokens an image"):
        TokenNames(SimpleNamespace(tokenizer=processor.tokenizer, tokens_per_image=57), 0.3)
