"""Whole models on disk: saved whole, loaded or refused with a sentence."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tessera.errors import UserError
from tessera.models import reference
from tessera.models.configuration import TesseraVisionConfig
from tessera.models.image_processing import TesseraImageProcessor
from tessera.models.modeling import TesseraForConditionalGeneration
from tessera.models.processing import TesseraProcessor
from tessera.models.reference import REFERENCES, check_safetensors, load, resolve, save
from tessera.models.vision import TesseraVisionModel


@pytest.fixture
def folder(model: TesseraForConditionalGeneration, processor: TesseraProcessor, tmp_path: Path) -> Path:
    return save(model, processor, tmp_path / "model", torch.float32)


def test_float32_is_bit_equal(folder: Path, model: TesseraForConditionalGeneration) -> None:
    loaded, processor = load(folder)
    assert not loaded.training
    assert isinstance(processor, TesseraProcessor)
    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_bfloat16_on_disk_float32_in_memory(
    model: TesseraForConditionalGeneration, processor: TesseraProcessor, tmp_path: Path
) -> None:
    save(model, processor, tmp_path / "half")
    loaded, _ = load(tmp_path / "half")
    assert loaded.dtype == torch.float32
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.bfloat16().float()), name
    assert model.dtype == torch.float32
    names, dtypes = header(tmp_path / "half" / "model.safetensors")
    assert dtypes == {"BF16"}
    assert not [name for name in names if "lm_head" in name], "tied weights are stored once"
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    assert load(tmp_path / "half", torch.bfloat16)[0].dtype == torch.bfloat16


def header(path: Path) -> tuple[set[str], set[str]]:
    data = path.read_bytes()
    table = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    table.pop("__metadata__", None)
    return set(table), {entry["dtype"] for entry in table.values()}


def test_an_expert_comes_with_its_image_processor(encoder: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    model = TesseraVisionModel(TesseraVisionConfig(encoder=encoder(), num_labels=3))
    save(model, TesseraImageProcessor(size=32), tmp_path / "expert")
    loaded, images = load(tmp_path / "expert")
    assert isinstance(loaded, TesseraVisionModel)
    assert isinstance(images, TesseraImageProcessor)


def test_a_stock_checkpoint_loads(tmp_path: Path, tokenizer: Any, processor: TesseraProcessor) -> None:
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    vision = CLIPVisionConfig(
        hidden_size=24,
        num_attention_heads=2,
        num_hidden_layers=2,
        intermediate_size=24,
        image_size=32,
        patch_size=8,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_attention_heads=2,
        num_hidden_layers=1,
        intermediate_size=32,
    )
    LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_index=4)).save_pretrained(
        tmp_path
    )
    images = CLIPImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False)
    LlavaProcessor(images, tokenizer, patch_size=8, vision_feature_select_strategy="default").save_pretrained(tmp_path)
    model, loaded = load(tmp_path)
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert type(loaded).__name__ == "LlavaProcessor"


def test_a_failed_save_leaves_the_old_model(folder: Path, model: TesseraForConditionalGeneration) -> None:
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    class Broken:
        def save_pretrained(self, where: Path) -> None:
            raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        save(model, Broken(), folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def damage(folder: Path, how: str) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    data = weights.read_bytes()
    if how == "no config":
        config.unlink()
    elif how == "no weights":
        weights.unlink()
    elif how == "pickled":
        weights.rename(folder / "pytorch_model.bin")
    elif how == "truncated":
        weights.write_bytes(data[: len(data) // 2])
    elif how == "cut in the header":
        weights.write_bytes(data[:100])
    elif how == "empty":
        weights.write_bytes(b"")
    elif how == "garbage header":
        weights.write_bytes(struct.pack("<Q", 10) + b"{" * 400)
    elif how == "config is no json":
        config.write_text("{")
    elif how == "another shape":
        changed = json.loads(config.read_text())
        changed["text_config"]["intermediate_size"] = 96
        config.write_text(json.dumps(changed))
    elif how == "a deeper model":
        changed = json.loads(config.read_text())
        changed["text_config"]["num_hidden_layers"] = 5
        config.write_text(json.dumps(changed))
    elif how == "an unknown kind":
        changed = json.loads(config.read_text())
        changed["model_type"] = "nothing"
        config.write_text(json.dumps(changed))


DAMAGES = {
    "no config": "it has no config.json",
    "no weights": "has no weights: model.safetensors is missing",
    "pickled": "pickled weights only",
    "truncated": r"is truncated: \d+ of \d+ bytes",
    "cut in the header": "is truncated: it ends after 100 bytes",
    "empty": "is not a safetensors file",
    "garbage header": "its header cannot be read",
    "config is no json": "is not valid JSON",
    "another shape": "cannot be loaded",
    "a deeper model": "lack 27 tensors",
    "an unknown kind": "cannot be loaded",
}


@pytest.mark.parametrize(("how", "message"), DAMAGES.items(), ids=list(DAMAGES))
def test_damaged_folders_are_refused_in_words(folder: Path, how: str, message: str) -> None:
    damage(folder, how)
    with pytest.raises(UserError, match=message):
        load(folder)


def test_every_truncation_is_noticed(folder: Path, tmp_path: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    check_safetensors(folder / "model.safetensors")
    cut = tmp_path / "cut"
    for length in [*range(40), *range(40, len(data), len(data) // 50), len(data) - 1]:
        cut.write_bytes(data[:length])
        with pytest.raises(UserError):
            check_safetensors(cut)


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="'nanno'. Did you mean 'nano'"):
        resolve("nanno")
    with pytest.raises(UserError, match="no model folder ./run/x"):
        resolve("./run/x")
    (tmp_path / "runs").mkdir()
    with pytest.raises(UserError, match="no model folder runs/first"):
        resolve("runs/first")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        resolve("file")
    assert resolve("some-org/some-model") == ("some-org/some-model", False)
    assert resolve(tmp_path) == (str(tmp_path), True)


def test_references_are_looked_up_in_the_package(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(REFERENCES) == {"nano", "nano-clip", "object-expert", "reading-expert"}
    monkeypatch.setattr(reference, "reference_folder", lambda name: tmp_path / "weights" / name)
    with pytest.raises(UserError, match="'nano' is not part of this installation"):
        load("nano")
    shutil.copytree(folder, tmp_path / "weights" / "nano")
    assert isinstance(load("nano")[0], TesseraForConditionalGeneration)
