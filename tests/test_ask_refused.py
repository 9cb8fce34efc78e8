"""What `tessera ask` and `tessera caption` refuse: exit code 2, one sentence, nothing on stdout."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

import pytest

from tessera.cli import main
from tessera.cli.ask import split_arguments
from tessera.generation import session
from tessera.models import reference

Captured = pytest.CaptureFixture[str]


def run(*args: str) -> int:
    return main.run(list(args))


def type_in(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


def refused(capsys: Captured, *args: str) -> str:
    capsys.readouterr()
    assert run(*args) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    said = [line for line in captured.err.splitlines() if line.startswith(("tessera: ", '{"error": '))]
    assert len(said) == 1
    assert "Traceback" not in captured.err
    return said[0]


ARGUMENTS: list[tuple[list[str], str]] = [
    ([], "give an image and a question"),
    (["Is there a dog?"], "the image is missing: there is only the question 'Is there a dog?'"),
    (["PICTURE"], "the question is missing"),
    (["PICTURE", "PICTURE"], "the question is missing"),
    (["PICTURE", "typo.png"], "the question is missing: typo.png is an image"),
    (["PICTURE", ""], "the question is empty"),
    (["PICTURE", " \t "], "the question is empty"),
    (["--world", "test:17", " "], "the question is empty"),
    (["--world", "test:17", "PICTURE", "dog?"], "--world stands in place of images: leave out"),
    (["--world", "17"], "for example test:17 or test:17:pair; got '17'"),
    (["--world", "test:-1"], "got 'test:-1'"),
    (["--world", "tset:1"], "unknown split 'tset'. Did you mean 'test'?"),
    (["--world", "test:1:pare"], "unknown kind of sample 'pare'. Did you mean 'pair'?"),
    (["-", "-", "dog?"], "stdin (-) can be read only once"),
    (["-", "--interactive"], "stdin is where the questions come from"),
    (["PICTURE", "-", "dog?", "--interactive"], "stdin is where the questions come from"),
    (["PICTURE", "dog?", "--interactive", "--json"], "--interactive is for people and --json for programs"),
    (["PICTURE", "dog?", "--save", "answer.tiff"], "--save wants a file that ends in .png"),
    (["PICTURE", "dog?", "--max-new-tokens", "0"], "--max-new-tokens"),
    (["missing.png", "dog?"], "missing.png: there is no such file"),
    (["FOLDER", "dog?"], "is a folder; an image file was expected"),
    (["https://example.org/a.png", "dog?"], "nothing is downloaded"),
]


@pytest.mark.parametrize(("args", "says"), ARGUMENTS, ids=[" ".join(a) or "nothing" for a, _ in ARGUMENTS])
def test_arguments_that_make_no_sense(
    args: list[str], says: str, picture: str, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "open_session", lambda *_: pytest.fail("a model was loaded for nothing"))
    places = {"PICTURE": picture, "FOLDER": str(tmp_path)}
    message = refused(capsys, "ask", *[places.get(arg, arg) for arg in args])
    assert says in message


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "the file is empty"),
        (b"hello, world, I am no image at all", "is not an image"),
        (b"%PDF-1.7 ...", "is a PDF document"),
        (None, "damaged, truncated"),
        (b"BIG", "50,000 x 50,000 pixels"),
    ],
)
def test_images_that_cannot_be_read(
    content: bytes | None, says: str, picture: str, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content is None:
        content = Path(picture).read_bytes()[:200]
    if content == b"BIG":
        whole = bytearray(Path(picture).read_bytes())
        whole[16:24] = (50_000).to_bytes(4, "big") * 2
        content = bytes(whole)
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    assert says in refused(capsys, "ask", picture, str(path), "Is there a dog?")
    assert says in refused(capsys, "caption", str(path))
    type_in(monkeypatch, content)
    assert says in refused(capsys, "ask", "-", "Is there a dog?")


def test_what_a_model_cannot_take(folder: str, picture: str, capsys: Captured) -> None:
    model = ["--model", folder]
    long = "dog " * 150
    over = 1 + 5 + 150 + 2 + 1 - 128
    assert f"{over} more than this model's context of 128 leaves room for" in refused(capsys, "ask", picture, long, *model)
    assert "4 images were given; this model takes at most 3" in refused(capsys, "ask", *[picture] * 4, "dog?", *model)
    assert "<image>, which stands for an image" in refused(capsys, "ask", picture, "What is <image>?", *model)
    assert "<image>" in refused(capsys, "ask", "--world", "test:17", "What is <image>?", *model)


@pytest.mark.parametrize("command", ["ask", "caption"])
def test_models_that_cannot_be_loaded(command: str, folder: str, picture: str, tmp_path: Path, capsys: Captured) -> None:
    question = ["Is there a dog?"] if command == "ask" else []

    def said(model: str | Path) -> str:
        return refused(capsys, command, picture, *question, "--model", str(model))

    assert "unknown model 'nanno'. Did you mean 'nano'" in said("nanno")
    assert "there is no model folder" in said(tmp_path / "nothing" / "there")
    assert "is a file; a model is a folder" in said(picture)
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in said(tmp_path / "empty")
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    weights = bare / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert f"is truncated: {len(whole) // 2} of {len(whole)} bytes" in said(bare)
    weights.unlink()
    assert "has no weights" in said(bare)


def test_an_expert_answers_no_questions(picture: str, tmp_path: Path, capsys: Captured) -> None:
    from tessera.models.configuration import TesseraVisionConfig
    from tessera.models.image_processing import TesseraImageProcessor
    from tessera.models.vision import TesseraVisionModel

    encoder = {"kind": "conv_vit", "image_size": 16, "patch_size": 4, "width": 16, "depth": 1, "heads": 2}
    expert = TesseraVisionModel(TesseraVisionConfig(encoder=encoder))
    path = reference.save(expert, TesseraImageProcessor(16), tmp_path / "expert")
    assert "vision expert: it answers no questions" in refused(capsys, "ask", picture, "dog?", "--model", str(path))


def test_an_unknown_style_of_caption(picture: str, capsys: Captured) -> None:
    assert "Did you mean 'dense'?" in refused(capsys, "caption", picture, "--style", "dens")
    assert "give image files or --world" in refused(capsys, "caption")
    assert "give image files or --world" in refused(capsys, "caption", picture, "--world", "test:1")


def test_the_last_argument_is_the_question() -> None:
    assert split_arguments(["a.png", "b", "Is b.png there?"], False, False) == (["a.png", "b"], "Is b.png there?")
    assert split_arguments(["a.png", "b.gif"], False, True) == (["a.png", "b.gif"], None)
    assert split_arguments(["a.png", "dog?"], False, True) == (["a.png"], "dog?")
    assert split_arguments(["data:image/png;base64,x", "x" * 5000], False, False) == (["data:image/png;base64,x"], "x" * 5000)
    assert split_arguments([], True, False) == ([], None)
    assert split_arguments(["dog.png?"], True, True) == ([], "dog.png?")


def test_one_answer_is_drawn_not_many(folder: str, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "answer.png"
    assert "--save draws one answer" in refused(capsys, "ask", "--world", "test:1", "--model", folder, "--save", str(out))
    assert not out.exists()
