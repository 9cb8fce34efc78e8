"""Dual encoders and vision experts: fakes that know everything, and real tiny models."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.evaluation.conftest import ENCODER, SIZE
from torch import nn

from tessera.data.dense import DenseData, character_labels, object_labels
from tessera.errors import UserError
from tessera.evaluation.experts import GALLERY, evaluate_expert
from tessera.evaluation.items import EvaluationConfig
from tessera.models.configuration import TesseraDualEncoderConfig, TesseraVisionConfig
from tessera.models.contrast import Embedded
from tessera.models.dual_encoder import TesseraDualEncoder
from tessera.models.image_processing import TesseraImageProcessor
from tessera.models.processing import TesseraDualProcessor
from tessera.models.vision import TesseraVisionModel
from tessera.world import World, WorldConfig
from tessera.world.vocabulary import attribute_values

WORLD = WorldConfig(split="test", width=SIZE, height=SIZE)


def vision(labels: list[str], patch: int = 16) -> TesseraVisionModel:
    torch.manual_seed(0)
    config = TesseraVisionConfig(
        encoder={**ENCODER, "patch_size": patch}, num_labels=len(labels), id2label=dict(enumerate(labels))
    )
    return TesseraVisionModel(config).eval()


class AllKnowing(nn.Module):
    """A vision expert that looks the labels of an image up."""

    def __init__(self, like: TesseraVisionModel, data: DenseData, images: int) -> None:
        super().__init__()
        self.config, self.encoder, self.head, self.grid = like.config, like.encoder, like.head, like.grid
        self.known = {}
        for i in range(images):
            batch = data.collate([i])
            self.known[batch["pixel_values"].numpy().tobytes()] = batch["labels"].clamp_min(0)

    def forward(self, pixel_values: torch.Tensor) -> Any:
        labels = self.known[pixel_values.numpy().tobytes()]
        return SimpleNamespace(logits=nn.functional.one_hot(labels, int(self.config.num_labels)), attributes=None)


def test_an_expert_that_knows_every_patch_is_always_right() -> None:
    plain = vision(object_labels(), patch=8)
    data = DenseData([World(WorldConfig(split="test", width=SIZE, height=SIZE, kinds={"scene": 1.0}))], "objects", 8)
    found = evaluate_expert(AllKnowing(plain, data, 8), None, EvaluationConfig(world=WORLD, n=8)).measures
    assert set(found) == {"things"}
    assert found["things"].accuracy == 1.0
    assert found["things"].n > 20
    assert 0.5 < found["things"].low < 1.0


@pytest.mark.parametrize(("labels", "measured"), [(object_labels, {"things"}), (character_labels, {"signs", "charts"})])
def test_a_random_expert_is_about_as_good_as_a_guess(labels: Any, measured: set[str]) -> None:
    told: list[tuple[int, int]] = []
    result = evaluate_expert(
        vision(labels()),
        None,
        EvaluationConfig(world=WORLD, n=12),
        name="tiny",
        progress=lambda done, total: told.append((done, total)),
    )
    assert set(result.measures) == measured
    assert result.model == "tiny" and result.weights
    assert told[-1] == (12, 12)
    for found in result.measures.values():
        assert found.low <= found.accuracy <= found.high
        assert found.accuracy < 0.5
        assert found.chance == pytest.approx(1 / len(labels()))


def test_attributes_are_measured_besides() -> None:
    config = TesseraVisionConfig(
        encoder={**ENCODER, "patch_size": 16}, id2label=dict(enumerate(object_labels())), attributes=attribute_values()
    )
    found = evaluate_expert(TesseraVisionModel(config).eval(), None, EvaluationConfig(world=WORLD, n=8)).measures
    assert list(found) == ["things", "style", "tint"]
    assert 0 < found["tint"].n <= found["things"].n and found["tint"].chance == pytest.approx(1 / 7)


def test_an_expert_of_other_classes_is_refused() -> None:
    with pytest.raises(UserError, match="3 classes"):
        evaluate_expert(vision(["a", "b", "c"]), None, EvaluationConfig(world=WORLD, n=4))


def test_an_expert_is_asked_about_base_concepts_only() -> None:
    novel = WorldConfig(split="test", width=SIZE, height=SIZE, pool="novel")
    with pytest.raises(UserError, match="base concepts only"):
        evaluate_expert(vision(object_labels()), None, EvaluationConfig(world=novel, n=4))


def test_a_model_of_another_sort_is_refused(model: Any, processor: Any, config: EvaluationConfig) -> None:
    with pytest.raises(UserError, match="neither a dual encoder nor an expert"):
        evaluate_expert(model, processor, config, name="nano")


# Dual encoders


@pytest.fixture
def dual(tokenizer: Any) -> tuple[TesseraDualEncoder, TesseraDualProcessor]:
    torch.manual_seed(0)
    sizes = dict(projection_dim=8, pool_heads=2, text_width=16, text_depth=1, text_heads=2)
    config = TesseraDualEncoderConfig(encoder=dict(ENCODER), vocab_size=len(tokenizer), **sizes)
    return TesseraDualEncoder(config).eval(), TesseraDualProcessor(TesseraImageProcessor(size=SIZE), tokenizer)


def test_a_random_dual_encoder_is_about_as_good_as_a_guess(dual: tuple[Any, Any]) -> None:
    result = evaluate_expert(*dual, EvaluationConfig(world=WORLD, n=40))
    assert set(result.measures) == {"name", "name_top5", "caption_retrieval", "image_retrieval"}
    assert result.measures["name"].n == 20
    assert result.measures["image_retrieval"].n == GALLERY
    assert all(m.accuracy < 0.3 for m in result.measures.values())
    assert result.measures["name_top5"].chance == pytest.approx(5 * result.measures["name"].chance)


def test_a_dual_encoder_that_knows_every_caption_is_always_right(dual: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts and images are replaced by the same code of what they say, so that each matches its own only."""
    from tessera.evaluation import experts

    seen: dict[str, int] = {}

    def code(texts: list[str]) -> Embedded:
        rows = [seen.setdefault(text.replace(" on a", "").split(" background")[0], len(seen)) for text in texts]
        return Embedded(nn.functional.one_hot(torch.tensor(rows), 2000).float()[:, None], torch.ones(len(rows), 1).bool())

    def image(model: Any, processor: Any, samples: Any) -> Embedded:
        things = [s.frames[0].things for s in samples]
        single = all(len(t) == 1 for t in things)
        names = [s.truth()[0].name for s in samples] if single else []
        texts = [f"A picture of {experts.article(n)} {n}." for n in names] or [s.captions()["short"] for s in samples]
        return code(texts)

    monkeypatch.setattr(experts, "_images", image)
    monkeypatch.setattr(experts, "_texts", lambda model, processor, texts: code(texts))
    found = evaluate_expert(*dual, EvaluationConfig(world=WORLD, n=40, batch_size=7)).measures
    assert found["name"].accuracy == found["name_top5"].accuracy == 1.0
    assert found["caption_retrieval"].accuracy == found["image_retrieval"].accuracy == 1.0
