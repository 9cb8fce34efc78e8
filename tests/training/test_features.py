"""The real composed model in the trainer: stored features of frozen encoders, packing, compilation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.training.toy import Killed, kill_after, losses, settings
from torch import Tensor

from tessera.data.packing import collate, pack
from tessera.errors import UserError
from tessera.models.configuration import TesseraConfig
from tessera.models.modeling import TesseraForConditionalGeneration
from tessera.training.data import Batches
from tessera.training.features import FeatureStore
from tessera.training.plan import Stage, TrainConfig
from tessera.training.speed import compile_pays
from tessera.training.trainer import Trainer

IMAGE, EOS = 3, 2
PLAN = {"connector": 1.0, "language_model": 1.0}


def build() -> TesseraForConditionalGeneration:
    encoder = {"kind": "conv_vit", "image_size": 16, "patch_size": 4, "width": 24, "depth": 1, "heads": 2}
    text = {
        "model_type": "llama",
        "vocab_size": 24,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": EOS,
        "tie_word_embeddings": True,
    }
    parts = {"encoders": [encoder], "tokens": {"kind": "pixel_shuffle"}}
    torch.manual_seed(0)
    return TesseraForConditionalGeneration(
        TesseraConfig(parts=parts, text_config=text, image_token_id=IMAGE, attn_implementation="eager")
    )


def rows(indices: Sequence[int]) -> dict[str, Any]:
    """Two questions about an image; the first answer is whether its first pixel is bright."""
    pixels = np.stack([np.random.default_rng(i).uniform(-1, 1, (3, 16, 16)) for i in indices]).astype(np.float32)
    packs = []
    for index, image in zip(indices, pixels, strict=True):
        items = [([5, 6], [7 + int(image[0, 0, 0] > 0)], None), ([5, 9], [10 + index % 3, 13], None)]
        packs.append(pack([1, *[IMAGE] * 4], items, 40, eos_id=EOS))
    return collate(packs, pixels) | {"image_keys": [f"image-{i}" for i in indices]}


class Counting(TesseraForConditionalGeneration):
    """Counts the images that its encoders see."""

    seen = 0

    def encode_images(self, pixel_values: Tensor) -> Any:
        self.seen += len(pixel_values)
        return super().encode_images(pixel_values)


def run(out: Path, config: TrainConfig, length: int | None = 8, **how: Any) -> Counting:
    model = build()
    model.__class__ = Counting
    Trainer(model, Batches(rows, config, length), config, out, **how).run()
    assert isinstance(model, Counting)
    return model


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_frozen_encoders_run_once_per_image(tmp_path: Path, precision: str) -> None:
    config = settings(stages=[Stage(steps=6, train=PLAN)], precision=precision)
    stored = run(tmp_path / "stored", config)
    assert stored.seen == 8
    plain = run(tmp_path / "plain", settings(stages=config.stages, precision=precision, cache_gb=0.0))
    assert losses(tmp_path / "stored") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)
    assert plain.seen == 0 and not (tmp_path / "plain" / "cache").exists()


def test_nothing_is_stored_for_endless_data_or_trained_encoders(tmp_path: Path) -> None:
    run(tmp_path / "endless", settings(stages=[Stage(steps=2, train=PLAN)]), length=None)
    run(tmp_path / "trained", settings(stages=[Stage(steps=2)]))
    assert not list(tmp_path.rglob("cache"))


def test_a_resumed_run_reads_what_was_stored_and_stays_bit_equal(tmp_path: Path) -> None:
    stages = [Stage(name="a", steps=5, train=PLAN), Stage(name="b", steps=3)]
    config = settings(stages=stages, save_every=1, batch_size=3)
    with pytest.raises(Killed):
        run(tmp_path / "killed", config, on_event=kill_after(2))
    resumed = run(tmp_path / "killed", config)
    assert resumed.seen == 2  # six of eight images were stored before
    run(tmp_path / "whole", config)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


def test_other_weights_have_another_store(tmp_path: Path) -> None:
    config = settings(stages=[Stage(name="t", steps=1), Stage(name="f", steps=2, train=PLAN)], save_every=0)
    run(tmp_path, config)
    other = settings(stages=config.stages, save_every=0, seed=7)
    model = build()
    Trainer(model, Batches(rows, other, 8), other, tmp_path).run(resume=False)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_the_store_keeps_to_its_limit(tmp_path: Path) -> None:
    calls: list[int] = []

    def encode(pixels: Tensor) -> Tensor:
        calls.append(len(pixels))
        return pixels.flatten(2).mT * 2

    pixels = torch.randn(4, 3, 2, 2)
    store = FeatureStore(tmp_path, limit=2 * 3 * 4 * 4 + 1)
    torch.testing.assert_close(store.get(["a", "b", "a"], pixels[[0, 1, 0]], encode), encode(pixels[[0, 1, 0]]))
    store.get(["c", "d"], pixels[2:], encode)
    torch.testing.assert_close(store.get(["c", "b"], pixels[[2, 1]], encode), encode(pixels[[2, 1]]))
    assert calls == [2, 3, 2, 1, 2] and len(store) == 2 and store.closed
    again = FeatureStore(tmp_path, limit=1000)
    assert len(again) == 2 and again.bytes == store.bytes


def test_the_composed_model_learns_from_packed_rows(tmp_path: Path) -> None:
    config = settings(30, stages=[Stage(steps=30, train={"*": 1.0, "encoders.*": 0.5})], batch_size=8)
    run(tmp_path, config)
    curve = losses(tmp_path)
    assert sum(curve[-5:]) < 0.7 * sum(curve[:5])


def test_compiled_training_says_in_words_that_placeholders_and_images_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    events: list[str] = []

    def cut(indices: Sequence[int]) -> dict[str, Any]:
        batch = rows(indices)
        return batch | {"pixel_values": batch["pixel_values"][:-1]}

    config = settings(stages=[Stage(steps=2)], compile="on")
    with pytest.raises(UserError, match=r"the text holds 16 image placeholder tokens \(room for 4 images\), but 3 image"):
        Trainer(build(), Batches(cut, config, 8), config, tmp_path, on_event=lambda event: events.append(event.text)).run()
    assert events and not [text for text in events if "torch.compile failed" in text]


@pytest.mark.slow
@pytest.mark.skipif(not compile_pays(1_000_000), reason="no compiler here")
@pytest.mark.filterwarnings("ignore")  # those of the compiler about itself
def test_compiled_training_follows_eager(tmp_path: Path) -> None:
    notices: list[str] = []
    for kind in ("off", "on"):
        config = settings(stages=[Stage(steps=4)], compile=kind)
        run(tmp_path / kind, config, on_event=lambda event: notices.append(event.text))
    assert not [text for text in notices if "torch.compile failed" in text]
    assert losses(tmp_path / "on") == pytest.approx(losses(tmp_path / "off"), rel=1e-3)
