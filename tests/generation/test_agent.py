from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.hosts.tiny import build, images, save_llava

from tessera.config import build as build_config
from tessera.errors import UserError
from tessera.generation.agent import SessionModel, image_size
from tessera.generation.session import open_session
from tessera.parts.agents.zoomeye import ZoomEye


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of Tessera's own and a stock LLaVA."""
    root = tmp_path_factory.mktemp("models")
    model, processor = build({"max_position_embeddings": 512}, max_length=512)
    model.save_pretrained(root / "own")
    processor.save_pretrained(root / "own")
    return {"own": root / "own", "llava": save_llava(root / "llava")}


@pytest.fixture(params=["own", "llava"])
def interface(request: pytest.FixtureRequest, folders: dict[str, Path]) -> SessionModel:
    return SessionModel(open_session(str(folders[request.param])), words=("yes", "no"), max_new_tokens=6)


def prompt(interface: SessionModel, count: int) -> dict[str, Any]:
    processor = interface.session.processor
    content = [{"type": "image"}] * count + [{"type": "text", "text": "Is there a dog?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return dict(processor(images=[images(count)] if count else None, text=[text], return_tensors="pt"))


@pytest.mark.parametrize("count", [1, 2])
def test_yes_is_the_share_of_the_first_words_logits(interface: SessionModel, count: int) -> None:
    with torch.no_grad():
        logits = interface.session.model(**prompt(interface, count)).logits[0, -1]
    tokenizer = interface.session.processor.tokenizer
    yes, no = (logits[tokenizer(word, add_special_tokens=False)["input_ids"][0]] for word in ("yes", "no"))
    assert interface.yes(images(count), "Is there a dog?") == pytest.approx(float(torch.sigmoid(yes - no)), rel=1e-4)
    assert interface.calls == 1 and interface.size == 16


def test_losses_are_those_of_the_answers_tokens(interface: SessionModel) -> None:
    found = interface.losses(images(1), "Is there a dog?", ["dog", "the red dog"])
    for answer, loss in zip(["dog", "the red dog"], found, strict=True):
        ids = interface.session.processor.tokenizer(answer, add_special_tokens=False)["input_ids"]
        inputs, total = prompt(interface, 1), 0.0
        for token in ids:
            with torch.no_grad():
                total -= float(interface.session.model(**inputs).logits[0, -1].log_softmax(-1)[token])
            inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[token]])], 1)
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        assert loss == pytest.approx(total / len(ids), rel=1e-4)


def test_zoomeye_runs_around_any_session(interface: SessionModel) -> None:
    eye = ZoomEye(build_config(ZoomEye.Config, {"depth": 2, "prompts": {"latent": "Is there a {} to be seen?"}}))
    picture = images(1)[0].resize((64, 64))
    done = eye.answer(interface, picture, "Is there a dog?", cues=["dog"])
    assert done.asked >= 2 and interface.calls == done.asked + 1
    assert eye.answer(interface, picture, "What is it?", options=["dog", "cat"], cues=[]).text in ("dog", "cat")


def test_what_cannot_be_done_is_refused(interface: SessionModel) -> None:
    with pytest.raises(UserError, match="same token"):
        SessionModel(interface.session, words=("yes", "yes"))
    with pytest.raises(UserError, match="no tokens"):
        interface.losses([], "Is there a dog?", [""])
    with pytest.raises(UserError, match="size="):
        image_size(object())
