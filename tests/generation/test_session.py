"""Asking a checkpoint of transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from tests.hosts.tiny import save_llava

from tessera.cli import main
from tessera.errors import UserError
from tessera.generation.sampling import Sampling
from tessera.generation.session import Session, open_session
from tessera.plugging import parse_plugs

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A stock LLaVA of transformers, saved."""
    return str(save_llava(tmp_path_factory.mktemp("models") / "llava"))


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
    assert (found["answer"], found["tokens"]) == (wanted, 6)
    assert 0 < found["probability"] < 1


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


def test_parts_are_plugged_into_a_checkpoint_and_taken_out(llava: str, picture: str, capsys: Captured) -> None:
    session = open_session(llava)
    image = Image.open(picture)
    questions = ["Is there a dog?", "What does the sign say?", "dog"]

    def ask(session: Session) -> list[str]:
        session.show([image])
        return [session.ask(question, 8, lambda piece: None).text for question in questions]

    plain = ask(session)
    for name, options in (("uniform", "keep=0.5"), ("random", "keep=0.25,seed=3")):
        parts = parse_plugs([f"{name}:{options}"])
        plugged = open_session(llava, parts)
        found = ask(plugged)
        inputs = plugged.generator.asking.inputs(
            [plugged.generator.asking.render(plugged.generator.asking.message(questions[1], 1))], [[image]]
        )
        out = plugged.model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert found[1] == plugged.processor.tokenizer.decode(out, skip_special_tokens=True).strip()
        assert "hooked" in (plugged.generator.why_slow or "")
        plugged.close()
        assert plugged.generator.why_slow is None
        assert ask(plugged) == plain
        assert run("ask", picture, questions[1], "--model", llava, "--max-new-tokens", "8", "--plug", f"{name}:{options}") == 0
        assert capsys.readouterr().out.strip() == found[1]


def test_what_was_read_for_an_answer_is_counted(llava: str, picture: str) -> None:
    session = open_session(llava)
    session.show([Image.open(picture)])
    said = [session.ask(question, 4, lambda piece: None) for question in ("dog", "dog", "Is there a dog?")]
    assert said[0].text == said[1].text
    assert said[0].prompt_tokens == said[1].prompt_tokens < said[2].prompt_tokens
    drawn = [session.ask("dog", 8, lambda piece: None, Sampling(temperature=3.0, seed=seed)).text for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_an_answer_ends_where_the_context_does(llava: str, picture: str) -> None:
    session = open_session(llava)
    session.show([Image.open(picture)])
    for question in ("dog", "dog", "Is there a dog?"):
        said = session.ask(question, 10_000, lambda piece: None, Sampling(temperature=3.0, seed=1))
        assert 0 < said.tokens <= 128 - said.prompt_tokens


def test_messages_that_the_template_refuses(llava: str, picture: str) -> None:
    session = open_session(llava)
    asking = session.generator.asking
    asking.processor.chat_template = "{{ raise_exception('Only one question at a time.') }}"
    with pytest.raises(UserError, match="cannot take these messages: Only one question at a time"):
        asking.render(asking.message("dog", 1))
