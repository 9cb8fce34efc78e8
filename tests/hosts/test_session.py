"""Asking a checkpoint of transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from tests.hosts.tiny import save_llava

from tessera.cli import main
from tessera.world import World

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A stock LLaVA of transformers, saved."""
    return str(save_llava(tmp_path_factory.mktemp("models") / "llava"))


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "scene.png"
    World(split="test")[3].images()[0].save(path)
    return str(path)


def run(*args: str) -> int:
    return main.run(list(args))


def test_a_transformers_checkpoint_streams_what_generate_gives(llava: str, picture: str, capsys: Captured) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(llava).eval()
    processor = AutoProcessor.from_pretrained(llava)
    content = [{"type": "image"}, {"type": "text", "text": "Is there a dog?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=[Image.open(picture)], text=[text], return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    wanted = processor.tokenizer.decode(out, skip_special_tokens=True).strip()
    capsys.readouterr()
    assert run("ask", picture, "Is there a dog?", "--model", llava, "--max-new-tokens", "6") == 0
    assert capsys.readouterr().out.split() == wanted.split() != []
    assert run("ask", picture, "Is there a dog?", "--model", llava, "--max-new-tokens", "6", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["answer"], found["tokens"], found["probability"]) == (wanted, 6, None)


def test_what_a_transformers_checkpoint_cannot_take(llava: str, picture: str, tmp_path: Path, capsys: Captured) -> None:
    assert run("ask", picture, "dog " * 200, "--model", llava) == 2
    assert "more than this model's context of 128 leaves room for" in capsys.readouterr().err
    assert run("ask", picture, "What is <image>?", "--model", llava) == 2
    assert "cannot take this question with 1 image(s)" in capsys.readouterr().err
    mute = tmp_path / "mute"
    shutil.copytree(llava, mute)
    (mute / "chat_template.jinja").unlink()
    assert run("ask", picture, "dog", "--model", str(mute)) == 2
    assert "no chat template" in capsys.readouterr().err
