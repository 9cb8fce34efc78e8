"""What experts may ask of the composed model: layers of the encoders, and the question."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tessera.data.packing import collate, pack
from tessera.errors import UserError
from tessera.evaluation.answering import generator
from tessera.hosts.generate import Generator
from tessera.hosts.host_generate import HostGenerator
from tessera.models.configuration import TesseraConfig
from tessera.models.modeling import TesseraForConditionalGeneration
from tessera.models.processing import TesseraProcessor
from tessera.training.features import cacheable

Made = Callable[..., TesseraConfig]
MOVA = {"kind": "mova", "heads": 2, "blocks": 1, "reader_width": 16}


def built(config: Made, encoder: Callable[..., dict[str, Any]], experts: dict[str, Any]) -> TesseraForConditionalGeneration:
    torch.manual_seed(0)
    encoders = [encoder(width=16, depth=2), encoder(depth=3), encoder(width=16)]
    model = TesseraForConditionalGeneration(config({"encoders": encoders, "experts": experts, "tokens": {"kind": "identity"}}))
    for parameter in model.model.experts.parameters():  # the adapter of MoVA begins deaf
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture
def comm(config: Made, encoder: Callable[..., dict[str, Any]]) -> TesseraForConditionalGeneration:
    return built(config, encoder, {"kind": "comm", "shares": (1.0, 0.5)})


@pytest.fixture
def mova(config: Made, encoder: Callable[..., dict[str, Any]]) -> TesseraForConditionalGeneration:
    return built(config, encoder, MOVA)


def batch(processor: TesseraProcessor, question: str = "Is there a dog?", answer: str = "yes") -> dict[str, Any]:
    items = [(processor.question_ids(question), processor.answer_ids(answer), None)]
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return collate([pack(processor.prefix_ids(1), items, 64)], pixels)


def test_layers_reach_the_experts(comm: TesseraForConditionalGeneration) -> None:
    part: Any = comm.model.experts
    assert part.counts == [2, 2, 1] and comm.model.reads_levels and not comm.reads_question
    pixels = torch.randn(2, 3, 32, 32)
    sets = []
    part.register_forward_pre_hook(lambda module, args: sets.extend(args[0]))
    comm.encode_images(pixels)
    assert [len(tokens.levels) for tokens in sets] == [2, 3, 1]
    assert all(torch.equal(tokens.levels[-1], tokens.features) for tokens in sets)


def test_an_encoder_without_layers_is_refused(config: Made, encoder: Callable[..., dict[str, Any]], monkeypatch: Any) -> None:
    from tessera.parts.encoders.conv_vit import ConvViT

    monkeypatch.setattr(ConvViT, "level_count", property(lambda self: 0, lambda self, count: None))
    with pytest.raises(UserError, match=r"experts 'comm' reads several layers of every encoder; encoder 0 \(ConvViT\) shows"):
        built(config, encoder, {"kind": "comm"})


def test_it_is_saved_and_loaded_whole(mova: TesseraForConditionalGeneration, processor: TesseraProcessor, tmp_path: Path) -> None:
    from tessera.models import reference

    other, _ = reference.load(reference.save(mova, processor, tmp_path / "model", dtype=torch.float32))
    inputs = batch(processor)
    with torch.no_grad():
        assert torch.equal(other(**inputs).loss, mova(**inputs).loss)


def test_the_image_depends_on_the_question_and_never_on_the_answer(
    mova: TesseraForConditionalGeneration, processor: TesseraProcessor
) -> None:
    def features(question: str, answer: str) -> torch.Tensor:
        given = batch(processor, question, answer)
        asked = given.pop("labels") == -100
        del given["loss_weights"]
        with torch.no_grad():
            found: torch.Tensor = mova.model(**given, question_mask=asked).image_hidden_states
        return found

    same = features("Is there a dog?", "yes"), features("Is there a dog?", "no")
    torch.testing.assert_close(*same, rtol=0, atol=1e-6)
    assert not torch.allclose(same[0], features("What does the sign say?", "yes"), rtol=0, atol=5e-6)
    seen = []
    mova.model.experts.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    given = batch(processor)
    mova(**given)
    answers = given["labels"] != -100
    assert not bool((seen[0].mask & answers).any()) and bool(seen[0].mask.any())
    assert not bool((seen[0].mask & (given["input_ids"] == mova.config.image_token_id)).any())


def test_every_image_of_a_row_is_asked_its_row(mova: TesseraForConditionalGeneration) -> None:
    image, n = mova.config.image_token_id, mova.tokens_per_image
    ids = torch.tensor([[1, *[image] * n, *[image] * n, 5, 6], [1, *[image] * n, *[7] * (n + 2)]])
    question = mova.model.question(ids)
    assert question.embeddings.shape[:2] == (3, ids.shape[1])
    assert question.mask.sum(1).tolist() == [3, 3, n + 3]


def test_question_by_question_is_how_it_is_asked(mova: TesseraForConditionalGeneration, processor: TesseraProcessor) -> None:
    with pytest.raises(UserError, match="read the question to see the image"):
        Generator(mova, processor)
    answers = generator(mova, processor)
    assert isinstance(answers, HostGenerator)
    picture, questions = Image.new("RGB", (32, 32), "red"), ["Is there a dog?", "What does the sign say?"]
    together = answers.answer_batch([([picture], questions)], 3)[0]
    alone = [answers.answer_batch([([picture], [q])], 3)[0][0] for q in questions]
    assert [a.tokens for a in together] == [a.tokens for a in alone]


def test_features_that_depend_on_the_question_are_not_kept(
    mova: TesseraForConditionalGeneration, comm: TesseraForConditionalGeneration
) -> None:
    assert cacheable(mova, mova.sockets(), set()) == []
    assert "experts" in cacheable(comm, comm.sockets(), set())
