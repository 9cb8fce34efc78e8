"""Images and conversations to inputs, and every mistake a user can make on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tessera.errors import UserError
from tessera.models.image_processing import TesseraImageProcessor
from tessera.models.modeling import TesseraForConditionalGeneration
from tessera.models.processing import TesseraProcessor


def picture(size: tuple[int, int] = (40, 20), seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def chat(question: str, images: int = 1, seed: int = 0) -> list[dict[str, Any]]:
    content = [{"type": "image", "image": picture(seed=seed + i)} for i in range(images)]
    return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]


def test_the_whole_image_is_resized_and_normalised() -> None:
    out = TesseraImageProcessor(size=32)(picture(), return_tensors="pt")["pixel_values"]
    expected = np.asarray(picture().resize((32, 32), Image.Resampling.BILINEAR), dtype=np.float32) / 127.5 - 1
    assert out.shape == (1, 3, 32, 32)
    assert out.dtype == torch.float32
    np.testing.assert_allclose(out[0].permute(1, 2, 0).numpy(), expected, atol=1e-6)


def test_padding_keeps_the_aspect() -> None:
    white = Image.new("RGB", (64, 32), (255, 255, 255))
    out = TesseraImageProcessor(size=32, fit="pad")(white)["pixel_values"][0]
    assert out[:, 8:24].min() == 1.0
    assert abs(out[:, :8]).max() < 0.01
    assert abs(out[:, 24:]).max() < 0.01


@pytest.mark.parametrize("layout", ["hwc", "chw", "float", "torch", "path", "nested"])
def test_every_kind_of_image_gives_the_same_values(layout: str, tmp_path: Path) -> None:
    image, process = picture(), TesseraImageProcessor(size=32)
    array = np.asarray(image)
    picture().save(tmp_path / "a.png")
    given: Any = {
        "hwc": array,
        "chw": array.transpose(2, 0, 1),
        "float": array.astype(np.float32) / 255,
        "torch": torch.from_numpy(array.copy()).permute(2, 0, 1),
        "path": tmp_path / "a.png",
        "nested": [[image]],
    }[layout]
    np.testing.assert_array_equal(process(given)["pixel_values"], process(image)["pixel_values"])


def test_other_modes_become_rgb() -> None:
    process = TesseraImageProcessor(size=8)
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert process(clear)["pixel_values"].min() == 1.0
    assert process(Image.new("CMYK", (8, 8)))["pixel_values"].shape == (1, 3, 8, 8)
    assert process(Image.fromarray(np.full((8, 8), 65535, np.uint16)))["pixel_values"].min() == 1.0


BAD_IMAGES: list[tuple[Any, str]] = [
    (np.zeros((6, 6, 5), np.uint8), "C = 1, 3 or 4"),
    (np.full((4, 4, 3), 300.0), r"floats in \[0, 1\]"),
    ({"image": 1}, "not dict"),
    ([], "no image"),
    ("nowhere.png", "nowhere.png"),
]


@pytest.mark.parametrize(("image", "message"), BAD_IMAGES)
def test_what_is_no_image_is_refused(image: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TesseraImageProcessor(size=8)(image)


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(UserError, match="'resampl'. Did you mean 'resample'"):
        TesseraImageProcessor(resampl=3)


@pytest.mark.parametrize("wrong", [{"size": 0}, {"size": "big"}, {"fit": "crop"}, {"image_std": (1, 0, 1)}])
def test_senseless_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        TesseraImageProcessor(**wrong)


def test_chats_become_inputs_and_batches_pad_left(processor: TesseraProcessor) -> None:
    chats = [chat("Is there a dog?"), chat("What does the sign say?", 2, seed=5)]
    out = processor.apply_chat_template(
        chats, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt",
        processor_kwargs={"padding": True, "return_mm_token_type_ids": True},
    )  # fmt: skip
    assert out["pixel_values"].shape == (3, 3, 32, 32)
    assert (out["input_ids"] == 4).sum(1).tolist() == [4, 8]
    assert torch.equal(out["mm_token_type_ids"], (out["input_ids"] == 4).long())
    assert out["attention_mask"][0].tolist() == sorted(out["attention_mask"][0].tolist())
    text = processor.tokenizer.decode(out["input_ids"][1])
    assert text.startswith("<bos> <img> <image> <image> <image> <image> <img> <image>")
    assert text.endswith("<user> What does the sign say? <assistant>")


def test_the_trainers_ids_are_the_chats_ids(processor: TesseraProcessor) -> None:
    messages = [*chat("Is there a dog?", 2), {"role": "assistant", "content": "yes"}]
    whole = processor.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
    pieces = processor.prefix_ids(2) + processor.question_ids("Is there a dog?") + processor.answer_ids("yes")
    assert list(whole[0]) == pieces


def test_a_pillow_image_and_a_prompt(processor: TesseraProcessor, model: TesseraForConditionalGeneration) -> None:
    out = processor(images=picture(), text=processor.prompt("Is there a dog?"), return_tensors="pt")
    assert model.generate(**out, max_new_tokens=3, do_sample=False).shape[0] == 1


def test_it_counts_tokens_for_servers(processor: TesseraProcessor) -> None:
    data = processor._get_num_multimodal_tokens(image_sizes=[[10, 20], [30, 40]])
    assert data["num_image_tokens"] == [4, 4]
    assert data["num_image_patches"] == [1, 1]
    assert processor.image_token_ids == [4]
    assert processor.image_token == "<image>"
    assert {"input_ids", "attention_mask", "pixel_values"} <= set(processor.model_input_names)


def test_it_comes_back_from_a_folder(processor: TesseraProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    loaded = TesseraProcessor.from_pretrained(tmp_path)
    assert (loaded.tokens_per_image, loaded.max_images, loaded.max_length) == (4, 3, 64)
    assert loaded.chat_template == processor.chat_template
    assert type(loaded.image_processor) is TesseraImageProcessor
    first, second = (p(images=picture(), text=p.prompt("no")) for p in (processor, loaded))
    assert first["input_ids"] == second["input_ids"]
    np.testing.assert_array_equal(first["pixel_values"], second["pixel_values"])


def test_too_long_a_question_says_by_how_much(processor: TesseraProcessor) -> None:
    text = processor.prompt("dog " * 60)
    with pytest.raises(UserError, match=r"has 68 tokens \(4 of them for 1 images\), 4 more than the 64"):
        processor(images=picture(), text=text)


WRONG_CALLS: list[tuple[int, str, str]] = [
    (4, "<image>" * 4, "holds 4 images; this model takes at most 3"),
    (1, "<image><image>", "2 <image> placeholders, but 1 images are given"),
    (1, "dog", "0 <image> placeholders, but 1 images are given"),
    (0, "<image>", "1 <image> placeholders, but 0 images are given"),
]


@pytest.mark.parametrize(("images", "text", "message"), WRONG_CALLS)
def test_images_and_placeholders_must_agree(processor: TesseraProcessor, images: int, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        processor(images=[picture()] * images or None, text=text)


def test_other_mistakes_are_refused(processor: TesseraProcessor) -> None:
    with pytest.raises(UserError, match="give images, text, or both"):
        processor()
    with pytest.raises(UserError, match="not audio"):
        processor(text="dog", audio=np.zeros(10))
    with pytest.raises(UserError, match="text 0 holds 1"):
        processor(images=[[picture(), picture()], []], text=["<image>", "<image>"])
    with pytest.raises(UserError, match="truncation cut image placeholders off: 2 of 4"):
        processor(images=picture(), text="<bos><image>", truncation=True, max_length=3)


def test_what_a_call_asked_for_is_not_saved(processor: TesseraProcessor, tmp_path: Path) -> None:
    whole = processor.tokenizer("<bos>Is there a dog?")["input_ids"]
    assert len(processor.tokenizer("<bos>Is there a dog?", truncation=True, max_length=3, padding="max_length")["input_ids"]) == 3
    processor.save_pretrained(tmp_path)
    assert '"truncation": null' in (text := (tmp_path / "tokenizer.json").read_text()) and '"padding": null' in text
    assert TesseraProcessor.from_pretrained(tmp_path)(text="<bos>Is there a dog?")["input_ids"] == [whole]
