"""What `tessera ask` and `tessera caption` share: what is asked about, and a conversation at the terminal."""

from __future__ import annotations

import io
import re
import shlex
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera.console import err, note
from tessera.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from tessera.generation.session import Said, Session
    from tessera.hosts.part import HostPart
    from tessera.world import Sample
    from tessera.world.scene import Question

NANO = "nano"
STDIN = "-"
FIRST = 6
"""Questions that a world scene is asked when none is given."""
_KNOWS = "nano knows drawn scenes of its own world only; photographs want --model PATH, a transformers checkpoint."
_SIDE = 336
"""Pixels of a world scene in a saved picture."""


@dataclass(slots=True)
class AskedImages:
    """What is asked about: images with their names, and the world's sample if it is one."""

    names: list[str]
    images: list[Image.Image]
    sample: Sample | None = None

    def known(self, question: str) -> Question | None:
        """The sample's own question of this text, whose answer is known."""
        asked = self.sample.questions() if self.sample is not None else []
        return next((q for q in asked if q.text == question.strip()), None)

    def large(self) -> list[Image.Image]:
        """The images as a person wants to see them."""
        return self.sample.images((_SIDE, _SIDE)) if self.sample is not None else self.images


def open_images(paths: Sequence[str]) -> list[Image.Image]:
    """The images of files; `-` is read from stdin. Raises `UserError` for what cannot be read."""
    from tessera.data.images import open_image

    if list(paths).count(STDIN) > 1:
        raise UserError("stdin (-) can be read only once; give the other images as files.")
    return [open_image(io.BytesIO(sys.stdin.buffer.read()) if path == STDIN else path) for path in paths]


def parse_world(text: str) -> tuple[str, int, str | None]:
    """("test", 17, "pair") of "test:17:pair"; the kind may be left out. Raises `UserError` for anything else."""
    found = re.fullmatch(r"(\w+):(\d{1,12})(?::(\w+))?", text.strip())
    if found is None:
        raise UserError(f"--world wants SPLIT:INDEX or SPLIT:INDEX:KIND, for example test:17 or test:17:pair; got {text!r}.")
    from tessera.world import World

    World(split=found[1]).sample(int(found[2]), found[3])  # refuses unknown names before a model is loaded
    return found[1], int(found[2]), found[3]


class Talk:
    """A session with a model; answers stream to stdout unless they are collected for JSON."""

    def __init__(
        self, model: str, max_new_tokens: int, as_json: bool, save: Path | None = None, parts: Sequence[HostPart] = ()
    ) -> None:
        """parts: plugged into the model."""
        from tessera.generation.session import open_session

        begin = time.perf_counter()
        self.session: Session = open_session(model, parts)
        self.load_seconds = round(time.perf_counter() - begin, 3)
        self.model, self.max_new_tokens, self.as_json, self.save = model, max_new_tokens, as_json, save
        self.subject = AskedImages([], [])
        self._told = False

    def scene(self, split: str, index: int, kind: str | None) -> AskedImages:
        """A sample of the world, at the size that the model sees."""
        from tessera.cli.eval import image_size
        from tessera.world import World

        size = image_size(self.session.model, self.session.processor)
        sample = World(split=split, width=size, height=size).sample(index, kind)
        name = ":".join(str(part) for part in (split, index, kind) if part is not None)
        return AskedImages([name], sample.images(), sample)

    def show(self, subject: AskedImages) -> None:
        """What the next questions are about; nano says once what it does not know."""
        if self.model == NANO and subject.sample is None and not self._told:
            note(_KNOWS)
            self._told = True
        self.subject = subject
        self.session.show(subject.images)

    def say(self, question: str) -> dict[str, Any]:
        """Asks, streams the answer to stdout (on a line of its own, with the verdict where the truth is known), saves the picture
        if one is wanted, and gives what JSON tells."""
        from tessera.generation.picture import box_of

        said = self.session.ask(question, self.max_new_tokens, self._write)
        known = self.subject.known(question)
        self._write(f"{'' if known is None else self._verdict(known, said)}\n")
        if self.save is not None:
            save_picture(self.save, self.subject, question, said.text)
        return {
            "question": question,
            "answer": said.text,
            "truth": None if known is None else known.answer,
            "box": box_of(said.text),
            "seconds": round(said.seconds, 4),
            "tokens": said.tokens,
            "probability": said.probability,
            "finished": said.finished,
        }

    def examine(self) -> list[dict[str, Any]]:
        """Asks some of the scene's own questions: the first of every type, then the second of every type."""
        assert self.subject.sample is not None
        seen: Counter[str] = Counter()
        ranked: list[tuple[int, int, Question]] = []
        for place, question in enumerate(self.subject.sample.questions()):
            ranked.append((seen[question.type], place, question))
            seen[question.type] += 1
        answers = []
        for *_, question in sorted(ranked, key=lambda entry: entry[:2])[:FIRST]:
            self._write(f"{question.text}\n  ")
            answers.append(self.say(question.text) | {"type": question.type})
        return answers

    def loop(self, question: str | None) -> None:
        """Asks what is typed until an empty line, the end of the input or Ctrl-C; mistakes are told and forgiven."""
        if sys.stdin.isatty():
            note("Ask about the image. /image PATH shows another; an empty line ends.")
        while True:
            try:
                line = question if question is not None else _typed()
                question = None
                if not line.strip():
                    return
                self._command(line.strip()) if line.lstrip().startswith("/") else self.say(line.strip())
            except UserError as error:
                err().print(f"tessera: {error}", style="red", markup=False)
            except (EOFError, KeyboardInterrupt):
                self._write("\n")
                return

    def _command(self, line: str) -> None:
        try:
            name, *paths = shlex.split(line)
        except ValueError as error:
            raise UserError(f"{line}: {error}.") from error
        if name != "/image" or not paths:
            raise UserError(f"{line} is not understood; /image PATH shows another image, an empty line ends.")
        if STDIN in paths:
            raise UserError("stdin is where the questions come from; give the image as a file.")
        self.show(AskedImages(paths, open_images(paths)))

    def _write(self, text: str) -> None:
        if not self.as_json:
            sys.stdout.write(text)
            sys.stdout.flush()

    @staticmethod
    def _verdict(known: Question, said: Said) -> str:
        from tessera.evaluation.scoring import score

        return "  (right)" if score(known, said.text).right else f"  (wrong: {known.answer})"


def save_picture(path: Path, subject: AskedImages, question: str, answer: str) -> None:
    """Writes the images with question and answer; a box is drawn in."""
    from tessera.generation.picture import picture, picture_format
    from tessera.io import atomic_write

    drawn = picture(subject.large(), question, answer)
    with atomic_write(path) as temporary:
        drawn.save(temporary, format=picture_format(path))


def _typed() -> str:
    """The next line of stdin, with a prompt if a person types it. Raises `EOFError` at the end."""
    if sys.stdin.isatty():
        return input("> ")
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line
