"""What a data engine is: annotated pictures in, conversations to train on out.

engine = ProVision(ProVision.Config())
write(engine.records(of_samples(world_samples)), "data/provision")
# then a recipe with data="data/provision/train.jsonl"
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from tessera.data.records import Message, Record
from tessera.data.scene_graph import Annotated
from tessera.errors import UserError
from tessera.io import atomic_folder
from tessera.world.rng import Rng
from tessera.world.scene import Question

HELD_BACK = ("test",)
"""Splits that nothing may be trained on."""


def conversation(images: Sequence[Any], question: str, answer: str, **extra: Any) -> Record:
    """The record of one question about images and its answer; `extra`: its other columns."""
    asked: list[dict[str, str]] = [{"type": "image"} for _ in images]
    asked.append({"type": "text", "text": question})
    messages: list[Message] = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return Record(messages, list(images), extra)


@dataclass(frozen=True, slots=True)
class Instruction:
    """A question about pictures with its answer. `question.type` says which program of the engine made it."""

    pictures: tuple[Annotated, ...]
    question: Question

    def record(self) -> Record:
        """The conversation: the pictures, then the question; the answer is the assistant's."""
        images = [p.picture() for p in self.pictures]
        names = "+".join(p.name for p in self.pictures)
        return conversation(images, self.question.text, self.question.answer, id=names, source=self.question.type)


class Engine(ABC):
    """Annotated pictures -> questions and answers to train on."""

    @abstractmethod
    def instructions(self, pictures: Sequence[Annotated]) -> Iterator[Instruction]:
        """Questions about the pictures, one or several at once, for training or for measuring."""

    def records(self, pictures: Sequence[Annotated]) -> Iterator[Record]:
        """The instructions as conversations to train on. Raises `UserError` for a picture of a split that is held back."""
        for picture in pictures:
            if picture.split in HELD_BACK:
                raise UserError(f"picture {picture.name} is of the {picture.split} split, on which nothing is trained.")
        return (instruction.record() for instruction in self.instructions(pictures))


def write(records: Iterable[Record], folder: str | Path) -> Path:
    """Writes `train.jsonl` and the pictures as PNG to `folder`, whole or not at all; returns the path of the former.

    Equal pictures are stored once. Raises `UserError` if there are no records.
    """
    import hashlib

    folder = Path(folder)
    with atomic_folder(folder) as temporary:
        (temporary / "images").mkdir()
        count = 0
        with (temporary / "train.jsonl").open("w", encoding="utf-8") as file:
            for record in records:
                paths = []
                for image in record.images:
                    if not isinstance(image, Image.Image):
                        paths.append(str(image))
                        continue
                    digest = hashlib.sha256(f"{image.mode}{image.size}".encode() + image.tobytes()).hexdigest()[:20]
                    path = f"images/{digest}.png"
                    if not (temporary / path).exists():
                        image.save(temporary / path)
                    paths.append(path)
                row = {"messages": record.messages, "images": paths, **record.extra}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1
        if not count:
            raise UserError("the engine made no records of these pictures, so there is nothing to write.")
    return folder / "train.jsonl"


def write_once(records: Iterable[Record], folder: str | Path) -> Path:
    """Writes the records below `folder` under a name made from their content, if they are not there yet; returns as `write`."""
    import hashlib

    kept = list(records)
    digest = hashlib.sha256()
    for record in kept:
        digest.update(json.dumps(record.messages, sort_keys=True).encode())
        for image in record.images:
            digest.update(image.tobytes() if isinstance(image, Image.Image) else str(image).encode())
    path = Path(folder) / digest.hexdigest()[:20]
    return path / "train.jsonl" if (path / "train.jsonl").is_file() else write(kept, path)


def mix(
    base: Sequence[Record], made: Sequence[Record], share: float, mode: Literal["replace", "add"] = "replace", seed: int = 0
) -> list[Record]:
    """The base data with the engine's, in random order.

    replace: as many records as the base has, `share` of them made; add: the base and `share` times as many made ones. Raises
    `UserError` for a share outside 0..1, or fewer made records than it takes.
    """
    if not 0 <= share <= 1:
        raise UserError(f"the share of made records is from 0 to 1, not {share}.")
    wanted = round(share * len(base))
    if wanted > len(made):
        raise UserError(f"{share:.0%} of {len(base)} records are {wanted}, but the engine made only {len(made)}.")
    rng = Rng("mix", seed)
    kept = rng.pick(base, len(base) - wanted) if mode == "replace" else list(base)
    return rng.shuffled([*kept, *rng.pick(made, wanted)])
