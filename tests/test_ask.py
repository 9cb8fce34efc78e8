"""`tessera ask` and `tessera caption`: answers, and a sentence for everything that cannot be asked."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tessera.cli import main
from tessera.cli.talk import FIRST
from tessera.generation import session
from tessera.generation.generate import Generator
from tessera.generation.session import Said
from tessera.models import reference
from tessera.world import World

Captured = pytest.CaptureFixture[str]


class Fake:
    """A session that says what it is told to, piece by piece."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.shown: list[list[tuple[int, int]]] = []
        self.asked: list[str] = []
        self.model = types.SimpleNamespace(image_size=96, config=types.SimpleNamespace())
        self.processor = None

    def show(self, images: Sequence[Image.Image]) -> None:
        self.shown.append([image.size for image in images])

    def ask(self, question: str, max_new_tokens: int, on_text: Callable[[str], object]) -> Said:
        self.asked.append(question)
        text = self.answers[min(len(self.asked), len(self.answers)) - 1]
        for word in text.split(" "):
            on_text(word if text.startswith(word) else f" {word}")
        return Said(text, len(text.split()), 0.5, True, 0.01)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Fake]:
    """Puts a session in the place of every model."""

    def put(*answers: str) -> Fake:
        made = Fake(*answers)
        monkeypatch.setattr(session, "open_session", lambda _, parts=(): made)
        return made

    return put


def run(*args: str) -> int:
    return main.run(list(args))


def type_in(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


# Answers


def test_an_answer_as_text_and_as_json(folder: str, picture: str, capsys: Captured) -> None:
    model, processor = reference.load(folder)
    generator = Generator(model, processor)
    [wanted] = generator.answer(generator.prefix([Image.open(picture), Image.open(picture)]), ["Is there a dog?"], 7)
    capsys.readouterr()
    options = [picture, picture, "Is there a dog?", "--model", folder, "--max-new-tokens", "7"]
    assert run("ask", *options) == 0
    assert capsys.readouterr().out == wanted.text + "\n"
    assert run("ask", *options, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    seconds = (found.pop("seconds"), found.pop("load_seconds"))
    assert all(s > 0 for s in seconds)
    assert found == {
        "question": "Is there a dog?",
        "answer": wanted.text,
        "truth": None,
        "box": None,
        "tokens": 7,
        "probability": pytest.approx(wanted.probability, rel=1e-4),
        "finished": False,
        "model": folder,
        "images": [picture, picture],
    }


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF"])
def test_every_format_and_stdin(
    form: str, picture: str, tmp_path: Path, fake: Callable[..., Fake], monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    saw = fake("yes")
    path = tmp_path / f"it.{form.lower()}"
    Image.open(picture).resize((30, 20)).save(path, form)
    type_in(monkeypatch, path.read_bytes())
    assert run("ask", str(path), "-", picture, "Is there a dog?", "--model", "any") == 0
    assert saw.shown == [[(30, 20), (30, 20), (112, 112)]]
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("yes\n", "")


def test_answers_stream(fake: Callable[..., Fake], picture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake("top left of it")
    written: list[str] = []
    monkeypatch.setattr(sys, "stdout", types.SimpleNamespace(write=written.append, flush=lambda: written.append("|")))
    assert run("ask", picture, "Where is the dog?", "--model", "any") == 0
    assert "".join(written).startswith("top| left| of| it|\n|")


def test_nano_says_once_what_it_does_not_know(
    fake: Callable[..., Fake], picture: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    fake("yes")
    type_in(monkeypatch, f"Is there a dog?\n/image {picture}\nIs there a cat?\n".encode())
    assert run("ask", "-i", picture) == 0
    told = capsys.readouterr().err
    assert told.count("photographs want --model PATH") == told.count("\n") == 1
    assert run("ask", "--world", "test:17", "Is there a dog?") == 0
    assert run("ask", picture, "Is there a dog?", "--model", "other") == 0
    assert capsys.readouterr().err == "", "a drawn scene and another model need no such word"


# Scenes of the world


def test_a_world_scene_asks_its_own_questions_and_shows_the_truth(fake: Callable[..., Fake], capsys: Captured) -> None:
    wanted = World(split="test").sample(0, "chart").questions()
    assert 3 < len(wanted) <= FIRST
    saw = fake(wanted[0].answer, "certainly not")
    assert run("ask", "--world", "test:0:chart", "--model", "any") == 0
    assert saw.shown == [[(96, 96)]]
    assert saw.asked == [q.text for q in wanted]
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [wanted[0].text, f"  {wanted[0].answer}  (right)"]
    assert lines[2:4] == [wanted[1].text, f"  certainly not  (wrong: {wanted[1].answer})"]
    assert run("ask", "--world", "test:0:chart", "--model", "any", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [(a["type"], a["question"], a["truth"]) for a in found["answers"]] == [(q.type, q.text, q.answer) for q in wanted]
    assert found["images"] == ["test:0:chart"]
    assert run("ask", "--world", "test:17", "--model", "any", "--json") == 0
    asked = [a["type"] for a in json.loads(capsys.readouterr().out)["answers"]]
    assert len(set(asked)) == len(asked) == FIRST, "one of each type comes before a second one"
    assert run("ask", "--world", "test:0:pair", "--model", "any") == 0
    assert saw.shown[-1] == [(96, 96), (96, 96)]


def test_a_question_about_a_world_scene(fake: Callable[..., Fake], capsys: Captured) -> None:
    known = World(split="test")[17].questions()[0]
    fake(known.answer)
    assert run("ask", "--world", "test:17", known.text, "--model", "any") == 0
    assert capsys.readouterr().out == f"{known.answer}  (right)\n"
    assert run("ask", "--world", "test:17", "Something else?", "--model", "any") == 0
    assert capsys.readouterr().out == f"{known.answer}\n"


# Boxes and pictures


def test_a_box_is_told_and_drawn(fake: Callable[..., Fake], tmp_path: Path, capsys: Captured) -> None:
    Image.new("RGB", (100, 100), (255, 255, 255)).save(tmp_path / "white.png")
    out = tmp_path / "answer.png"
    fake("20 40 59 79", "a dog")
    args = ["ask", str(tmp_path / "white.png"), "Give the box of the dog.", "--model", "any", "--save", str(out)]
    assert run(*args, "--json") == 0
    assert json.loads(capsys.readouterr().out)["box"] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    with Image.open(out) as saved:
        boxed = saved.convert("RGB")
    red = [(x, y) for x in range(boxed.width) for y in range(boxed.height) if boxed.getpixel((x, y)) == (214, 39, 40)]
    xs, ys = [x for x, _ in red], [y for _, y in red]
    assert min(xs) - 12 == pytest.approx(60, abs=3), "twelve pixels of margin, and the image at three times its size"
    assert max(xs) - 12 == pytest.approx(180, abs=3)
    assert max(ys) - 12 == pytest.approx(240, abs=3)
    assert run(*args) == 0, "a second answer takes the place of the first"
    with Image.open(out) as saved:
        assert (214, 39, 40) not in {colour for _, colour in saved.convert("RGB").getcolors(1 << 20) or []}


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_a_picture_of_a_long_answer_in_other_formats(
    fake: Callable[..., Fake], picture: str, tmp_path: Path, suffix: str
) -> None:
    fake("w" * 90 + " and so on" * 30)
    out = tmp_path / f"answer.{suffix}"
    assert run("ask", picture, picture, "What?", "--model", "any", "--save", str(out)) == 0
    with Image.open(out) as saved:
        assert saved.format == {"jpg": "JPEG", "webp": "WEBP"}[suffix]
        assert saved.width >= 2 * 336


# A conversation


def test_a_conversation(
    fake: Callable[..., Fake], picture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    other = tmp_path / "other one.png"
    Image.new("RGB", (20, 10)).save(other)
    saw = fake("a", "b", "c")
    lines = [
        "second?",
        f"/image '{other}'",
        "/image",
        "/what",
        "/image 'x",
        f"/image {tmp_path / 'none.png'}",
        "third?",
        "",
        "never?",
    ]
    type_in(monkeypatch, "\n".join(lines).encode())
    assert run("ask", picture, "first?", "--interactive", "--model", "any") == 0
    captured = capsys.readouterr()
    assert captured.out == "a\nb\nc\n"
    assert saw.asked == ["first?", "second?", "third?"]
    assert saw.shown == [[(112, 112)], [(20, 10)]]
    said = captured.err.splitlines()
    assert len(said) == 4
    assert ["is not understood" in line for line in said] == [True, True, False, False]
    assert "there is no such file" in said[3]


def test_a_conversation_computes_the_prefix_once(folder: str, picture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    prefix = Generator.prefix
    monkeypatch.setattr(Generator, "prefix", lambda self, images: read.append(len(images)) or prefix(self, images))
    type_in(monkeypatch, f"dog\ncat\n{'dog ' * 200}\n/image {picture} {picture}\nred\n".encode())
    assert run("ask", "-i", picture, "--model", folder, "--max-new-tokens", "2") == 0
    assert read == [1, 2]


def test_ctrl_c_ends_a_conversation(
    fake: Callable[..., Fake], picture: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    fake("a")

    def interrupted(self: Any, size: int = -1) -> str:
        raise KeyboardInterrupt

    type_in(monkeypatch, b"")
    monkeypatch.setattr("tessera.cli.talk._typed", interrupted.__get__(object()))
    assert run("ask", "-i", picture, "--model", "any") == 0
    assert capsys.readouterr().err == ""


# Captions


@pytest.mark.parametrize(
    ("style", "prompt"), [("short", "Describe the picture."), ("child", "Describe the picture for a child.")]
)
def test_captions(fake: Callable[..., Fake], picture: str, capsys: Captured, style: str, prompt: str) -> None:
    saw = fake("a dog", "a cat")
    assert run("caption", picture, picture, "--style", style, "--model", "any") == 0
    assert capsys.readouterr().out == f"{picture}: a dog\n{picture}: a cat\n"
    assert saw.asked == [prompt] * 2
    assert run("caption", picture, "--style", style, "--model", "any", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [c["caption"] for c in found["captions"]] == ["a cat"]
    assert run("caption", "--world", "test:3", "--style", style, "--model", "any") == 0
    assert capsys.readouterr().out == f"a cat\ntrue: {World(split='test')[3].captions()[style]}\n"


# As a process


def test_a_process_answers_from_stdin_and_imports_little(folder: str, picture: str, subprocess_env: dict[str, str]) -> None:
    code = (
        "import sys; from tessera.cli.main import run\n"
        f"assert run(['ask', '-', 'Is there a dog?', '--model', {folder!r}, '--max-new-tokens', '3']) == 0\n"
        "print(' '.join(sys.modules))"
    )
    with open(picture, "rb") as stdin:
        done = subprocess.run([sys.executable, "-c", code], stdin=stdin, env=subprocess_env, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    answer, loaded = done.stdout.decode().strip().splitlines()
    assert answer
    heavy = {
        "peft",
        "pyarrow",
        "datasets",
        "tensorboard",
        "transformers.pipelines",
        "tessera.training",
        "tessera.evaluation.harness",
    }
    assert not heavy & set(loaded.split())
