"""Batches from readers: labels on the assistant's words only, images in order, the same batch for the same
step.
"""

from __future__ import annotations

import itertools
import json
import logging
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tessera.data.readers import read
from tessera.data.row_reader import BadRow
from tessera.data.supervised import IGNORED, Order, SupervisedData, shuffled
from tessera.errors import UserError
from tessera.models.image_processing import TesseraImageProcessor
from tessera.models.processing import TesseraProcessor
from tessera.models.tokenizer import build_tokenizer

WORDS = ["question", "answer", *map(str, range(40))]


@pytest.fixture(scope="module")
def processor() -> TesseraProcessor:
    return TesseraProcessor(TesseraImageProcessor(8), build_tokenizer(WORDS, 64), tokens_per_image=3, max_length=60)


class PlainProcessor:
    """A processor without marks for generation: words are tokens, an image is two."""

    pad_token_id = 0

    def __init__(self, appends: bool = True) -> None:
        self.vocabulary = {word: i + 10 for i, word in enumerate(WORDS)}
        self.appends = appends

    def apply_chat_template(
        self, messages: list[dict[str, Any]], add_generation_prompt: bool = False, **_: Any
    ) -> dict[str, Any]:
        ids: list[int] = [] if self.appends else [100 + len(messages)]
        pixels = []
        for message in messages:
            ids.append(2 if message["role"] == "assistant" else 1)
            for part in message["content"]:
                if part["type"] == "image":
                    ids += [5, 5]
                    pixels.append(torch.from_numpy(np.asarray(part["image"].resize((2, 2))).copy()).float())
                else:
                    ids += [self.vocabulary[word] for word in part["text"].split()]
            ids += [3] if message["role"] == "assistant" else []
        ids += [2] if add_generation_prompt else []
        made: dict[str, Any] = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids))}
        made["token_type_ids"] = torch.ones(1, len(ids), dtype=torch.int64)
        if pixels:
            made["pixel_values"] = torch.stack(pixels).permute(0, 3, 1, 2)
        return made


def turns(number: int, images: int = 1, count: int = 1) -> dict[str, Any]:
    messages = []
    for turn in range(count):
        shown = [{"type": "image"}] * images if turn == 0 else []
        messages += [
            {"role": "user", "content": [*shown, {"type": "text", "text": f"question {number}"}]},
            {"role": "assistant", "content": f"answer {turn}"},
        ]
    return {"messages": messages, "images": [f"{(number + i) % 5}.png" for i in range(images)]}


def data_set(folder: Path, rows: list[Any]) -> Path:
    for number in range(5):
        Image.new("RGB", (8, 8), (number * 50, 0, 0)).save(folder / f"{number}.png")
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def words(processor: TesseraProcessor, ids: torch.Tensor) -> str:
    return " ".join(processor.tokenizer.convert_ids_to_tokens(ids.tolist()))


# ---- labels and images


def test_labels_stand_on_the_answers_only(tmp_path: Path, processor: TesseraProcessor) -> None:
    path = data_set(tmp_path, [turns(7, images=2, count=2)])
    encoded = SupervisedData(read(path), processor, 1).encode(0)
    ids, labels = torch.tensor(encoded.input_ids), torch.tensor(encoded.labels)
    assert words(processor, ids) == (
        "<bos> <img> <image> <image> <image> <img> <image> <image> <image> <user> question 7 "
        "<assistant> answer 0 <eos> <user> question 7 <assistant> answer 1 <eos>"
    )
    assert words(processor, labels[labels != IGNORED]) == "answer 0 <eos> answer 1 <eos>"
    assert torch.equal(labels[labels != IGNORED], ids[labels != IGNORED])


def test_without_marks_a_turn_is_what_it_adds(tmp_path: Path) -> None:
    path = data_set(tmp_path, [turns(7, images=2, count=2), turns(8, images=0)])
    processor = PlainProcessor()
    encoded = SupervisedData(read(path), processor, 1).encode(0)
    word = processor.vocabulary
    answers = [[word["answer"], word[str(turn)], 3] for turn in range(2)]
    question = [word["question"], word["7"]]
    assert encoded.input_ids == [1, 5, 5, 5, 5, *question, 2, *answers[0], 1, *question, 2, *answers[1]]
    assert [label for label in encoded.labels if label != IGNORED] == [*answers[0], *answers[1]]
    assert encoded.labels[8:11] == answers[0]
    assert encoded.labels[-3:] == answers[1]


def test_templates_that_rewrite_earlier_turns_are_refused(tmp_path: Path) -> None:
    data = SupervisedData(read(data_set(tmp_path, [turns(1, count=2)])), PlainProcessor(appends=False), 1)
    with pytest.raises(UserError, match="generation"):
        data.batch(0)


def test_a_batch_is_padded_and_its_images_stand_in_order(tmp_path: Path, processor: TesseraProcessor) -> None:
    rows = [turns(i, images=i % 3, count=1 + i % 2) for i in range(12)]
    data = SupervisedData(read(data_set(tmp_path, rows)), processor, 6, seed=3)
    batch = data.batch(0)
    indices = data.indices(0)
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
    assert batch["input_ids"].shape[1] % 8 == 0
    assert {batch[k].dtype for k in ("input_ids", "labels", "attention_mask")} == {torch.int64}
    for number, index in enumerate(indices):
        encoded = data.encode(index)
        size = len(encoded.input_ids)
        assert batch["input_ids"][number].tolist()[:size] == encoded.input_ids
        assert batch["labels"][number].tolist()[:size] == encoded.labels
        assert batch["attention_mask"][number].sum() == size
        assert (batch["labels"][number, size:] == IGNORED).all()
        assert (batch["input_ids"][number, size:] == processor.tokenizer.pad_token_id).all()
    expected = [(index + i) % 5 for index in indices for i in range(index % 3)]
    shades = ((batch["pixel_values"][:, 0, 0, 0] + 1) * 127.5 / 50).round().int().tolist()
    assert shades == expected
    assert [Path(key).name for key in batch["image_keys"]] == [f"{i}.png" for i in expected]


def test_outputs_per_token_are_padded_and_batches_may_lack_images(tmp_path: Path) -> None:
    data = SupervisedData(read(data_set(tmp_path, [turns(1, 0), turns(2, 0, 2)])), PlainProcessor(), 2)
    batch = data.batch(0)
    assert "pixel_values" not in batch
    assert "image_keys" not in batch
    assert torch.equal(batch["token_type_ids"], batch["attention_mask"])


def test_white_space_around_images_is_not_the_questions(tmp_path: Path, processor: TesseraProcessor) -> None:
    llava = {
        "image": "0.png",
        "conversations": [{"from": "human", "value": "<image>\nquestion 1"}, {"from": "gpt", "value": "answer"}],
    }
    seen: list[Any] = []

    class Spy(PlainProcessor):
        def apply_chat_template(self, messages: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override]
            seen.append(messages)
            return super().apply_chat_template(messages, **options)

    SupervisedData(read(data_set(tmp_path, [llava])), Spy(), 1).batch(0)
    assert seen[0][0]["content"][1] == {"type": "text", "text": "question 1"}


# ---- what cannot be used


def test_bad_rows_are_replaced_counted_and_logged(
    tmp_path: Path, processor: TesseraProcessor, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "text.png").write_text("no image")
    bad = [
        {"text": "x"},
        turns(0) | {"images": []},
        turns(0) | {"images": ["none.png"]},
        turns(0) | {"images": ["text.png"]},
        turns(0) | {"images": ["../0.png"]},
        turns(0, images=40),
        turns(0, count=30),
        {"messages": [{"role": "system", "content": "x"}, *turns(0)["messages"]], "images": ["0.png"]},
        {"messages": turns(0)["messages"][:1], "images": ["0.png"]},
    ]
    rows = [turns(1), *bad, turns(2), turns(3)]
    data = SupervisedData(read(data_set(tmp_path, rows)), processor, len(rows))
    with caplog.at_level(logging.WARNING):
        batch = data.batch(0)
    assert len(batch["input_ids"]) == len(rows)
    asked = [words(processor, row).split("question ")[1][0] for row in batch["input_ids"]]
    assert Counter(asked) == {"1": 1, "2": 1 + len(bad), "3": 1}
    assert data.skipped.count == len(bad)
    assert sum(record.name == "tessera.data.supervised" for record in caplog.records) == 5
    assert {b.where for b in data.skipped.first} == {f"data.jsonl, line {i}" for i in range(2, 2 + len(bad))}
    data.batch(1)
    assert data.skipped.count == len(bad), "a row is counted once"
    with pytest.raises(BadRow, match="30 more than 10|tokens"):
        SupervisedData(read(tmp_path), processor, 1, max_length=10).encode(0)


def test_nothing_but_bad_rows_is_an_error(tmp_path: Path, processor: TesseraProcessor) -> None:
    data = SupervisedData(read(data_set(tmp_path, [{"text": "x"}] * 300)), processor, 2)
    with pytest.raises(UserError, match="100 rows one after the other .* tessera data check"):
        data.batch(0)
    with pytest.raises(UserError, match="one after the other"):
        data.batch(0)


def test_images_of_different_shapes_do_not_fit_one_batch(tmp_path: Path) -> None:
    class Uneven(PlainProcessor):
        def apply_chat_template(self, messages: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override]
            made = super().apply_chat_template(messages, **options)
            side = made["input_ids"].shape[1]
            return made | {"pixel_values": torch.zeros(1, 3, side, side)}

    rows = [turns(1), turns(2, count=2)]
    with pytest.raises(UserError, match="different shapes"):
        SupervisedData(read(data_set(tmp_path, rows)), Uneven(), 2).batch(0)


# ---- order


def test_batches_depend_on_seed_and_step_alone(tmp_path: Path, processor: TesseraProcessor) -> None:
    path = data_set(tmp_path, [turns(i) for i in range(10)])
    one, two = (SupervisedData(read(path), processor, 4, seed=1) for _ in range(2))
    two = pickle.loads(pickle.dumps(two))
    for step in (3, 0, 7):
        a, b = one.batch(step), two.batch(step)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a)
    other = SupervisedData(read(path), processor, 4, seed=2)
    assert any(one.indices(s) != other.indices(s) for s in range(4))
    assert one.finite


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 1), (2, 1), (1, 3), (2, 2), (3, 2)])
def test_slices_of_a_step_are_the_step(tmp_path: Path, processor: TesseraProcessor, world_size: int, accumulation: int) -> None:
    path = data_set(tmp_path, [turns(i) for i in range(25)])
    whole = SupervisedData(read(path), processor, 8, seed=5)
    cut = SupervisedData(read(path), processor, 8, seed=5, accumulation=accumulation)
    for step in range(4):
        slices = [cut.indices(step, rank, world_size, micro) for micro in range(accumulation) for rank in range(world_size)]
        assert list(itertools.chain(*slices)) == whole.indices(step)


def test_more_slices_than_conversations_are_refused(tmp_path: Path, processor: TesseraProcessor) -> None:
    reader = read(data_set(tmp_path, [turns(1)]))
    with pytest.raises(UserError, match="too small for 4 processes"):
        SupervisedData(reader, processor, 2).batch(0, 0, 4, 0)
    with pytest.raises(UserError):
        SupervisedData(reader, processor, 2, accumulation=3)


@given(st.integers(1, 300), st.text(max_size=3))
def test_shuffled_is_a_permutation(size: int, key: str) -> None:
    assert sorted(shuffled(i, size, key) for i in range(size)) == list(range(size))


def test_shuffled_mixes_well() -> None:
    size = 1000
    for key in ("a", "b"):
        places = np.array([shuffled(i, size, key) for i in range(size)])
        assert abs(np.corrcoef(np.arange(size), places)[0, 1]) < 0.1
        assert (np.abs(np.diff(places)) == 1).mean() < 0.02
    assert np.mean([shuffled(i, size, "a") == shuffled(i, size, "b") for i in range(size)]) < 0.02


blocks = st.lists(st.integers(1, 9), min_size=1, max_size=30).map(lambda sizes: [0, *itertools.accumulate(sizes)])


@given(blocks, st.integers(0, 3))
def test_every_epoch_has_every_row_once(borders: list[int], seed: int) -> None:
    order, rows = Order(borders, seed), borders[-1]
    epochs = [[order(epoch * rows + i) for i in range(rows)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(rows)) for epoch in epochs)
    if rows > 12:
        assert epochs[0] != epochs[1]


def test_blocks_are_read_a_few_at_a_time() -> None:
    borders = list(range(0, 2001, 20))
    order = Order(borders, 0)
    for start in range(0, 2000, 80):
        touched = {order(i) // 20 for i in range(start, start + 80)}
        assert len(touched) == 4
    assert [order(i) for i in range(80)] != sorted(order(i) for i in range(80))
