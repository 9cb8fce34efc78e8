"""Training data made from the world: labels per patch, packed questions, captions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tessera.data.dense import IGNORED, DenseData, character_labels, object_labels, patch_accuracy, to_pixels
from tessera.data.packing import collate, unpack
from tessera.errors import UserError
from tessera.models.image_processing import TesseraImageProcessor
from tessera.models.processing import TesseraDualProcessor, TesseraProcessor
from tessera.models.tokenizer import build_tokenizer
from tessera.training.captions import CaptionData, caption
from tessera.training.data import Batches, StagedBatches
from tessera.training.options import Questions
from tessera.training.plan import Stage, TrainConfig
from tessera.training.world_questions import WorldQuestions
from tessera.world import World
from tessera.world import concepts as table
from tessera.world.lists import LIST_PROMPTS, lists
from tessera.world.scene import STYLES
from tessera.world.text import ALPHABET
from tessera.world.vocabulary import CAPTION_PROMPTS, attribute_values, words


@pytest.fixture(scope="module")
def processor() -> TesseraProcessor:
    return TesseraProcessor(TesseraImageProcessor(112), build_tokenizer(words()), tokens_per_image=49)


def test_object_labels_say_what_is_visible_in_most_of_a_patch() -> None:
    world = World(kinds={"scene": 1.0})
    batch = DenseData([world], "objects", 8).collate(range(6))
    assert batch["pixel_values"].shape == (6, 3, 112, 112) and batch["labels"].shape == (6, 196)
    names = object_labels()
    for index in range(6):
        sample = world[index]
        _, visible = sample.masks()
        present = {table.concepts()[t.concept].name for t in sample.frames[0].things} | {"background", "text"}
        labels = batch["labels"][index].reshape(14, 14)
        assert {names[i] for i in labels.unique().tolist() if i != IGNORED} <= present
        for mask, thing in zip(visible, sample.frames[0].things, strict=True):
            share = mask.reshape(14, 8, 14, 8).mean((1, 3))
            mine = torch.from_numpy(share >= 0.5)
            assert (labels[mine] == names.index(table.concepts()[thing.concept].name)).all()


def test_attributes_are_told_where_a_thing_is() -> None:
    world = World(kinds={"scene": 0.6, "text": 0.4})
    batch = DenseData([world], "objects", 8, ["style", "tint"]).collate(range(12))
    assert batch["attribute_labels"].shape == (12, 196, 2)
    values, names = attribute_values(), object_labels()
    tinted = 0
    for index in range(12):
        told = batch["attribute_labels"][index].tolist()
        things = {
            (names.index(t.name), STYLES.index(t.style), values["tint"].index(t.tint or "none")) for t in world[index].truth(0)
        }
        for label, (style, tint) in zip(batch["labels"][index].tolist(), told, strict=True):
            if label in (IGNORED, names.index("background"), names.index("text")):
                assert style == tint == IGNORED
            else:
                assert (label, style, tint) in things
                tinted += tint > 0
    assert tinted > 20
    with pytest.raises(UserError, match="'tnt'.*tint"):
        DenseData([world], "objects", 8, ["tnt"])


def test_background_counts_less() -> None:
    batch = DenseData([World(kinds={"scene": 1.0})], "objects", 8).collate([0])
    background = object_labels().index("background")
    quiet = batch["labels"] == background
    assert quiet.any() and (batch["loss_weights"][quiet] == 0.15).all() and (batch["loss_weights"][~quiet] == 1.0).all()


def test_character_labels_read_the_signs_from_left_to_right() -> None:
    world = World(kinds={"text": 1.0}, width=112, height=112)
    data = DenseData([world], "characters", 8)
    found = 0
    for index in range(40):
        sample = world[index]
        labels = data.collate([index])["labels"][0].reshape(14, 14)
        for sign in sample.frames[0].signs:
            row = int((sign.box[1] + sign.box[3]) / 2 * 14)
            first, last = int(sign.box[0] * 14), int(np.ceil(sign.box[2] * 14))
            read = [ALPHABET[i - 1] for i in labels[row, first:last].tolist() if i > 0]
            position = -1
            for letter in read:  # wide letters may cover two patches, narrow ones none
                ahead = sign.text.find(letter, max(position, 0))
                assert ahead >= 0, (sign.text, read)
                position = ahead
            found += len(read)
    assert found > 60
    assert character_labels()[0] == "none" and len(character_labels()) == 37


def test_worlds_take_turns() -> None:
    worlds = [World(kinds={"text": 1.0}), World(kinds={"scene": 1.0})]
    batch = DenseData(worlds, "objects", 8).collate([0, 1])
    apart = [DenseData([w], "objects", 8).collate([i]) for i, w in enumerate(worlds)]
    assert torch.equal(batch["pixel_values"], torch.cat([a["pixel_values"] for a in apart]))


def test_patch_accuracy_leaves_the_quiet_class_out() -> None:
    labels = torch.tensor([[0, 1, 2, IGNORED]])

    class Constant(torch.nn.Module):
        def forward(self, pixel_values: torch.Tensor) -> object:
            return type("Out", (), {"logits": torch.eye(3)[[0, 1, 1, 1]][None]})()

    assert patch_accuracy(Constant(), [{"pixel_values": None, "labels": labels}], quiet=0) == 0.5


def test_questions_of_a_step_share_the_number_of_images(processor: TesseraProcessor) -> None:
    data = WorldQuestions([World()], processor, Questions(several=(0.4, 0.3)), batch_size=12)
    seen = set()
    for step in range(12):
        indices = range(step * 12, step * 12 + 12)
        batch = data.collate(indices)
        images = len(batch["pixel_values"]) // len(batch["input_ids"])
        seen.add(images)
        assert 9 <= len(batch["pixel_values"]) <= 12
        placeholders = (batch["input_ids"] == processor.image_token_id).sum(1)
        assert (placeholders == 49 * images).all()
        # Two processes see together what one sees: slices of a step agree on its kind.
        half = [data.collate(indices[:6]), data.collate(indices[6:])]
        assert torch.equal(torch.cat([h["pixel_values"] for h in half]), batch["pixel_values"])
    assert {1, 2} < seen


def test_packed_texts_are_the_worlds_questions_and_answers(processor: TesseraProcessor) -> None:
    world = World()
    data = WorldQuestions([world], processor, Questions(several=(0.0, 0.0), captions=(0.0, 0.0, 0.0)), batch_size=4)
    batch = data.collate(range(4))
    tokenizer = processor.tokenizer
    for row, segments in zip(batch["input_ids"], batch["segment_ids"], strict=True):
        for segment in range(1, int(segments.max()) + 1):
            text = tokenizer.decode(row[segments == segment])
            assert text.startswith("<user>") and text.endswith("<eos>") and "<unk>" not in text
    (sample,) = data._samples([0])
    known = {(q.text, q.answer) for q in sample.questions()}
    decoded = set()
    for segment in range(1, int(batch["segment_ids"][0].max()) + 1):
        text = tokenizer.decode(batch["input_ids"][0][batch["segment_ids"][0] == segment])
        question, answer = text.removeprefix("<user>").removesuffix("<eos>").split("<assistant>")
        decoded.add((question.strip(), answer.strip()))
    assert decoded and decoded <= known


def test_the_budget_of_tokens_is_kept(processor: TesseraProcessor) -> None:
    data = WorldQuestions([World()], processor, Questions(text_tokens=40, several=(0.0, 0.0)), batch_size=4)
    assert data.collate(range(4))["input_ids"].shape[1] <= -(-(1 + 50 + 40) // 8) * 8


def test_blind_data_hold_no_image(processor: TesseraProcessor) -> None:
    batch = WorldQuestions([World()], processor, Questions(), batch_size=4, blind=True).collate(range(4))
    assert "pixel_values" not in batch
    assert not (batch["input_ids"] == processor.image_token_id).any()


def test_packed_questions_unpack_to_single_ones(processor: TesseraProcessor) -> None:
    from tessera.data.packing import pack

    data = WorldQuestions([World()], processor, Questions(several=(0.0, 0.0)), batch_size=1)
    (sample,) = data._samples([0])
    packed = pack(data.prefix(1), data._items(sample), 200)
    single = collate(unpack(packed), None)
    assert len(single["input_ids"]) == packed.questions > 1


def test_every_word_of_the_world_is_one_token(processor: TesseraProcessor) -> None:
    ids = processor.tokenizer([*words()], add_special_tokens=False)["input_ids"]
    assert all(len(i) == 1 for w, i in zip(words(), ids, strict=True) if w.isalpha())
    for prompt in CAPTION_PROMPTS.values():
        assert processor.tokenizer.unk_token_id not in processor.tokenizer(prompt)["input_ids"]


def test_captions_go_with_their_images() -> None:
    dual = TesseraDualProcessor(TesseraImageProcessor(112), build_tokenizer(words()))
    world = World(kinds={"scene": 1.0})
    batch = CaptionData([world], dual).collate([3, 4])
    assert dual.tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True).strip() == caption(world[3])
    assert torch.equal(batch["pixel_values"][1], to_pixels([np.asarray(world[4].images()[0])])[0])


def test_a_slice_too_small_for_clips_is_refused(processor: TesseraProcessor) -> None:
    data = WorldQuestions([World()], processor, Questions(several=(0.0, 1.0)), batch_size=8)
    with pytest.raises(UserError, match="too few for one micro-batch"):
        data.collate([1])


def test_lists_alone_in_the_forms_that_are_asked_for(processor: TesseraProcessor) -> None:
    world = World(kinds={"scene": 1.0}, things=(1, 4))
    options = Questions(captions=(0.0, 0.0, 0.0), lists=1.0, forms={"places": 1.0}, most=0, several=(0.0, 0.0))
    batch = WorldQuestions([world], processor, options, batch_size=6).collate(range(6))
    assert (batch["segment_ids"].amax(-1) == 1).all(), "one list, no questions"
    for index, (row, segments) in enumerate(zip(batch["input_ids"], batch["segment_ids"], strict=True)):
        text = f"<user>{LIST_PROMPTS['places']}<assistant>{lists(world.sample(index, 'scene'))['places']}<eos>"
        assert row[segments == 1].tolist() == processor.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_no_more_questions_than_asked_for(processor: TesseraProcessor) -> None:
    options = Questions(captions=(0.0, 0.0, 0.0), most=2, several=(0.0, 0.0), text_tokens=400)
    batch = WorldQuestions([World(kinds={"scene": 1.0})], processor, options, batch_size=6).collate(range(6))
    assert (batch["segment_ids"].amax(-1) == 2).all()


def test_only_the_types_that_are_asked_for(processor: TesseraProcessor) -> None:
    world = World(kinds={"scene": 1.0})
    options = Questions(captions=(0.0, 0.0, 0.0), types=("position", "total"), several=(0.0, 0.0), text_tokens=400)
    data = WorldQuestions([world], processor, options, batch_size=6)
    batch = data.collate(range(6))
    asked = [sum(q.type in options.types for q in world.sample(i, "scene").questions()) for i in range(6)]
    assert batch["segment_ids"].amax(-1).tolist() == asked
    with pytest.raises(UserError, match="'positon'.*position"):
        WorldQuestions([world], processor, Questions(types=("positon",)), batch_size=4)


def test_an_unknown_form_of_lists_is_refused(processor: TesseraProcessor) -> None:
    with pytest.raises(UserError, match="'placs'.*places"):
        WorldQuestions([World()], processor, Questions(forms={"placs": 1.0}), batch_size=4)


def test_every_stage_learns_from_its_own_data(processor: TesseraProcessor) -> None:
    config = TrainConfig(stages=[Stage(name="a", steps=2), Stage(name="b", steps=2)], batch_size=3)
    scenes, signs = (DenseData([World(kinds={k: 1.0}, width=112, height=112)], "objects", 8) for k in ("scene", "text"))
    data = StagedBatches([Batches(scenes.collate, config), Batches(signs.collate, config)], config)
    for step, stage in enumerate((scenes, scenes, signs, signs)):
        expected = stage.collate(range(step * 3, step * 3 + 3))["pixel_values"]
        assert torch.equal(data.batch(step, 0, 1, 0)["pixel_values"], expected)
