"""The adapter for lmms-eval against its interface; its package is no part of the test environment."""

from __future__ import annotations

import importlib
import sys
import tomllib
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.hosts.tiny import build, images

from tessera.errors import UserError
from tessera.evaluation import lmms
from tessera.generation.session import open_session
from tessera.models import reference


class Base:
    """`lmms_eval.api.model.lmms` as far as a model sees it."""

    is_simple = True

    def __init__(self) -> None:
        self.task_dict: dict[str, Any] = {}
        self.cached: list[Any] = []
        self.cache_hook = types.SimpleNamespace(add_partial=lambda *entry: self.cached.append(entry))


@dataclass
class Manifest:
    model_id: str
    chat_class_path: str


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """The adapter's module, imported beside a stand-in for lmms-eval."""
    for name, content in (
        ("lmms_eval", {}), ("lmms_eval.api", {}), ("lmms_eval.api.model", {"lmms": Base}),
        ("lmms_eval.models", {}), ("lmms_eval.models.registry_v2", {"ModelManifest": Manifest}),
    ):  # fmt: skip
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    yield importlib.import_module("tessera.evaluation.lmms_model")
    sys.modules.pop("tessera.evaluation.lmms_model")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    model, processor = build()
    return str(reference.save(model, processor, tmp_path_factory.mktemp("models") / "tiny", dtype=torch.float32))


DOCS = [("Is there a dog?", 0), ("Where is the red fire engine?", 1), ("dog", 2), ("cat", 0), ("What does the sign say?", 3)]
PICTURES = images(4)


def messages(place: int) -> list[dict[str, Any]]:
    question, picture = DOCS[place]
    content = [{"type": "image", "url": PICTURES[picture]}, {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def request(place: int, **settings: Any) -> Any:
    return types.SimpleNamespace(args=(f"context {place}", messages, settings, place, "task", "test"))


def expected(folder: str, place: int, new: int) -> str:
    session = open_session(folder)
    question, picture = DOCS[place]
    session.show([PICTURES[picture]])
    return session.ask(question, new, lambda _: None).text


def test_the_manifest_names_a_class_that_answers(installed: types.ModuleType, folder: str, root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, name = project["entry-points"]["lmms_eval.models"]["tessera"].partition(":")
    found = getattr(importlib.import_module(module), name)()
    assert found.model_id == "tessera"
    path, _, attribute = found.chat_class_path.rpartition(".")
    model_class = getattr(importlib.import_module(path), attribute)
    assert issubclass(model_class, Base)
    assert not model_class.is_simple


def test_answers_are_those_of_ask_whatever_the_batch(installed: types.ModuleType, folder: str) -> None:
    wanted = [expected(folder, place, 5 if place % 2 else 7) for place in range(5)]
    for size in (1, 2, "8", "auto"):
        model = installed.TesseraLmms(pretrained=folder, batch_size=size, max_batch_size=None, device="cpu")
        model.task_dict = {"task": {"test": list(range(5))}}
        requests = [request(place, max_new_tokens=5 if place % 2 else 7, until=["\n\n"], do_sample=False) for place in range(5)]
        assert model.generate_until(requests) == wanted
        assert sorted(entry[1][0] for entry in model.cached) == [f"context {place}" for place in range(5)]
        model.clean()
        assert not hasattr(model, "asked")


def test_stop_strings_cut(folder: str) -> None:
    whole = expected(folder, 0, 9)
    words = whole.split(" ")
    [answer] = lmms.ConversationModel(folder).answer([messages(0)], {"max_new_tokens": 9, "until": words[2]})
    assert answer.text == whole.partition(words[2])[0].strip()


def test_a_conversation(folder: str) -> None:
    turns = [*messages(0), {"role": "assistant", "content": "no"}, {"role": "user", "content": [{"type": "text", "text": "cat"}]}]
    asked = lmms.ConversationModel(folder)
    first, second = asked.answer([turns, messages(1)], {"max_new_tokens": 6})
    assert second.text == expected(folder, 1, 6)
    model, processor = reference.load(folder)
    plain = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is there a dog?"}]},
        {"role": "assistant", "content": "no"},
        {"role": "user", "content": "cat"},
    ]
    text = processor.apply_chat_template(plain, add_generation_prompt=True)
    inputs = processor(images=[PICTURES[0]], text=text, return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert first.text == processor.tokenizer.decode(out, skip_special_tokens=True).strip()


def test_what_is_not_done_is_refused(installed: types.ModuleType, folder: str) -> None:
    asked = lmms.ConversationModel(folder)
    video = [{"role": "user", "content": [{"type": "video", "url": "x"}, {"type": "text", "text": "dog"}]}]
    with pytest.raises(UserError, match="read text and images, not video"):
        asked.answer([video], {})
    broken = [{"role": "user", "content": [{"type": "image", "url": Image.new("F", (4, 4))}, {"type": "text", "text": "dog"}]}]
    with pytest.raises(UserError, match="floating-point"):
        asked.answer([broken], {})
    with pytest.raises(UserError, match="Did you mean 'max_new_tokens'"):
        asked.answer([messages(0)], {"max_tokens": 3})
    with pytest.raises(UserError, match="num_beams is 4"):
        asked.answer([messages(0)], {"num_beams": 4})
    with pytest.raises(UserError, match="Did you mean 'pretrained'"):
        installed.TesseraLmms(pretraned=folder)
    with pytest.raises(UserError, match="there is no model folder"):
        installed.TesseraLmms(pretrained=folder + "/none")
    with pytest.raises(UserError, match="nothing"):
        installed.TesseraLmms(pretrained=folder, plug="nothing")
    model = installed.TesseraLmms(pretrained=folder)
    with pytest.raises(UserError, match="probabilities of given answers"):
        model.loglikelihood([])
    with pytest.raises(UserError, match="tasks of one round"):
        model.generate_until_multi_round([])


def test_settings() -> None:
    assert lmms.read_settings({})[0] == lmms.NEW_TOKENS
    new, sampling, stop = lmms.read_settings(
        {"max_new_tokens": 5, "do_sample": True, "top_p": None, "temperature": 0.5, "until": "x", "image_aspect_ratio": "pad"}
    )
    assert (new, sampling.temperature, sampling.top_p, stop) == (5, 0.5, 1.0, ["x"])
    assert lmms.read_settings({"do_sample": True})[1].temperature == 1
    assert lmms.read_settings({"do_sample": False, "temperature": 0.7})[1].temperature == 0
