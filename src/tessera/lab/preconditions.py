"""Properties of a reference model that methods act on: redundancy of visual tokens, language prior, calibration, division of
labour between its encoders.

    found = measure(model, processor, questions=800)
    write_json(folder / "preconditions.json", found)

A method that prunes tokens, cures a language prior or routes experts has nothing to do where these are absent. The numbers are
measured once for each shipped model and printed in its card.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tessera.evaluation.harness import ask
from tessera.evaluation.items import EvaluationConfig, Item, draw
from tessera.evaluation.scoring import score
from tessera.generation.host_generate import HostGenerator
from tessera.hosts.part import HostPart, LayerView
from tessera.hosts.plug import attach, part_named
from tessera.hosts.values import Selection
from tessera.world import WorldConfig

if TYPE_CHECKING:
    from tessera.world.scene import Question

SHARES = (1.0, 0.5, 0.25, 0.1)
"""Shares of the visual tokens that are kept."""
SCENES = ("existence", "count", "relation", "position", "size", "attribute", "category", "at")
"""Question types about single scenes that need the picture."""
BINS = 10
"""Of the calibration error, equally wide in probability."""


class Oracle(HostPart):
    """Keeps the visual tokens that stand first in an order that was read from the scene: what no method can know."""

    claims = ("visual tokens",)

    def __init__(self, order: Sequence[int], share: float) -> None:
        """order: all visual tokens of the only image, the best first; share: of them that go on."""
        super().__init__(None)
        self.kept = torch.zeros(len(order), dtype=torch.bool)
        self.kept[list(order[: max(1, round(share * len(order)))])] = True

    def select(self, view: LayerView) -> Selection | None:
        """In front of the first layer; every row shows the same image."""
        if view.layer or not bool(view.visual.any()):
            return None
        number = (view.visual.cumsum(1) - 1).clamp(min=0)
        return Selection(keep=~view.visual | self.kept[number.clamp(max=len(self.kept) - 1)])


def by_things(item: Item, side: int) -> list[int]:
    """The squares of a raster of side * side over the sample's only frame: the best of every visible thing, the second of every
    thing and so on, a thing's own by how much of them its box covers; then, at random, those that no thing covers."""
    edges, own = np.linspace(0.0, 1.0, side + 1), []
    for thing in item.sample.truth():
        if thing.visible <= 0:
            continue
        left, top, right, bottom = thing.box
        x = np.clip(np.minimum(edges[1:], right) - np.maximum(edges[:-1], left), 0, None)
        y = np.clip(np.minimum(edges[1:], bottom) - np.maximum(edges[:-1], top), 0, None)
        covers = (y[:, None] * x[None, :]).flatten()
        own.append([int(n) for n in np.argsort(-covers, kind="stable") if covers[n] > 0])
    turns = [n for turn in zip_longest(*own) for n in turn if n is not None]
    rest = torch.randperm(side * side, generator=torch.Generator().manual_seed(item.sample.index)).tolist()
    return list(dict.fromkeys([*turns, *rest]))


def items_of(model: Any, types: Sequence[str], questions: int) -> list[Item]:
    """Questions of the test split about pictures of the model's size, every type equally often."""
    side = int(model.image_size)
    world = WorldConfig(split="test", width=side, height=side)
    return draw(EvaluationConfig(world=world, types=tuple(types), n=questions, seed=1))


def accuracy(items: Sequence[Item], said: Sequence[Sequence[str]]) -> float:
    """Share of right answers."""
    right = [
        score(q, text).right
        for item, texts in zip(items, said, strict=True)
        for q, text in zip(item.questions, texts, strict=True)
    ]
    return sum(right) / len(right)


def measure(model: Any, processor: Any, questions: int = 800) -> dict[str, Any]:
    """All preconditions as plain data; shares and accuracies in 0 to 1."""
    scenes = items_of(model, SCENES, questions)
    return {
        "questions": sum(len(item.questions) for item in scenes),
        "redundancy": redundancy(model, processor, scenes),
        "prior": prior(model, processor, scenes),
        "calibration": calibration(model, processor, scenes),
        "encoders": encoders(model, processor, questions),
    }


def redundancy(model: Any, processor: Any, items: Sequence[Item]) -> dict[str, dict[str, float]]:
    """Accuracy with a share of the visual tokens, by random choice and by `Oracle`: {"random": {"0.25": ...}, "oracle": ...}."""
    answers, side = HostGenerator(model, processor), round(model.tokens_per_image**0.5)
    found: dict[str, dict[str, float]] = {"random": {}, "oracle": {}}
    for share in SHARES:
        with attach(model).plug(part_named("random", {"keep": (share,)})):
            found["random"][f"{share:g}"] = accuracy(items, ask(model, processor, items, answers=answers, batch_size=32))
        said = []
        for item in items:
            with attach(model).plug(Oracle(by_things(item, side), share)):
                said += ask(model, processor, [item], answers=HostGenerator(model, processor))
        found["oracle"][f"{share:g}"] = accuracy(items, said)
    return found


def prior(model: Any, processor: Any, items: Sequence[Item]) -> dict[str, float]:
    """What the model says without the image, and how often it says yes, of questions of which half are right with yes."""
    closed = [(item, q, n) for item in items for n, q in enumerate(item.questions) if q.form == "yesno"]
    found = {}
    for name, blind in (("seeing", False), ("without the image", True)):
        said = ask(model, processor, items, blind=blind, answers=HostGenerator(model, processor), batch_size=32)
        by_item = {id(item): texts for item, texts in zip(items, said, strict=True)}
        yes = [by_item[id(item)][n].strip().lower().startswith("yes") for item, _, n in closed]
        found[f"accuracy, {name}"] = accuracy(items, said)
        found[f"yes rate, {name}"] = sum(yes) / max(1, len(yes))
    found["yes is right"] = sum(q.answer == "yes" for _, q, _ in closed) / max(1, len(closed))
    return found


def calibration(model: Any, processor: Any, items: Sequence[Item]) -> dict[str, float]:
    """Mean probability of the answers, accuracy, and the expected calibration error over `BINS` bins of probability (Guo et al.,
    2017, arXiv:1706.04599, equation 3)."""
    sure, right = [], []
    with torch.no_grad():
        for item in items:
            rows = [(item.sample.images(), [q.text for q in item.questions])]
            for question, answer in zip(item.questions, HostGenerator(model, processor).answer_batch(rows, 24)[0], strict=True):
                sure.append(answer.probability)
                right.append(float(score(question, answer.text).right))
    p, hit = np.asarray(sure), np.asarray(right)
    place = np.minimum((p * BINS).astype(int), BINS - 1)
    error = sum(
        abs(p[place == b].mean() - hit[place == b].mean()) * (place == b).mean() for b in range(BINS) if (place == b).any()
    )
    return {"probability": float(p.mean()), "accuracy": float(hit.mean()), "expected calibration error": float(error)}


def encoders(model: Any, processor: Any, questions: int) -> dict[str, dict[str, float]]:
    """Accuracy of every question type with all encoders, and with the features of one of them replaced by their mean over places:
    what only that one tells."""
    from tessera.world.questions import TYPES

    items = items_of(model, tuple(TYPES), questions)
    names = [name for name in model.sockets() if name.startswith("encoders.")]
    found: dict[str, dict[str, float]] = {}
    for name in ("", *names):
        with _blurred(model.sockets()[name]) if name else _as_it_is():
            said = ask(model, processor, items, answers=HostGenerator(model, processor), batch_size=16)
        found[f"without {name}" if name else "all"] = _by_type(items, said)
    return found


def _by_type(items: Sequence[Item], said: Sequence[Sequence[str]]) -> dict[str, float]:
    hits: dict[str, list[bool]] = {}

    def note(question: Question, text: str) -> None:
        hits.setdefault(question.type, []).append(score(question, text).right)

    for item, texts in zip(items, said, strict=True):
        for question, text in zip(item.questions, texts, strict=True):
            note(question, text)
    return {kind: sum(right) / len(right) for kind, right in sorted(hits.items())}


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


@contextmanager
def _blurred(encoder: Any) -> Iterator[None]:
    """The encoder says the same of every place: its features' mean over the tokens [B, N, D]."""

    def hook(module: Any, args: Any, output: Any) -> Any:
        def flat(x: Any) -> Any:
            if isinstance(x, Tensor) and x.ndim == 3:
                return x.mean(1, keepdim=True).expand_as(x)
            return type(x)(map(flat, x)) if isinstance(x, (tuple, list)) else x

        return flat(output)

    handle = encoder.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
