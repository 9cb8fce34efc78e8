"""Asking goes through the harness: the same answers as in an evaluation, and shares with intervals by item."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from tessera.evaluation.answering import Answer
from tessera.evaluation.benchmark import Benchmark, Scores, identified, share
from tessera.evaluation.harness import ask, evaluate
from tessera.evaluation.items import EvaluationConfig, Item, draw
from tessera.evaluation.result import words
from tessera.evaluation.scoring import score
from tessera.world import WorldConfig

CONFIG = EvaluationConfig(
    world=WorldConfig(split="val", kinds={"scene": 0.5, "pair": 0.5}, width=64, height=64), types=("existence", "change"), n=20
)


class Knows:
    """Answers by the book; counts pictures."""

    def __init__(self, items: Sequence[Item], wrong: str = "") -> None:
        self.book = {q.text: wrong or q.answer for i in items for q in i.questions}
        self.pictures = 0

    def answer_batch(self, rows: Sequence[Any], max_new_tokens: int) -> list[list[Answer]]:
        self.pictures += sum(len(images) for images, _ in rows)
        return [[Answer(f"{self.book[q]}|{max_new_tokens}") for q in qs] for _, qs in rows]


class Whole(Benchmark):
    """Everything that the config draws; right is what is answered, with the number of tokens behind it."""

    max_new_tokens = 5

    def items(self) -> list[Item]:
        return draw(CONFIG)

    def score(self, items: Sequence[Item], said: Sequence[Sequence[str]]) -> Scores:
        right = [
            [int(t == f"{q.answer}|5") for q, t in zip(i.questions, s, strict=True)] for i, s in zip(items, said, strict=True)
        ]
        return Scores(numbers={"score": share(right)}, n=sum(map(len, right)), items=identified(items), outcomes=right)


def test_asking_keeps_the_order_and_gives_pictures_unless_blind() -> None:
    items, model = draw(CONFIG), torch.nn.Linear(1, 1)
    model.train()
    knows = Knows(items)
    said = ask(model, None, items, answers=knows, batch_size=3, max_new_tokens=7)
    assert said == [[f"{knows.book[q.text]}|7" for q in i.questions] for i in items] and model.training
    assert knows.pictures == sum(len(i.sample.frames) for i in items)
    blind = Knows(items)
    seen: list[tuple[int, int]] = []
    ask(model, None, items, answers=blind, blind=True, progress=lambda done, total: seen.append((done, total)))
    total = sum(len(i.questions) for i in items)
    assert blind.pictures == 0 and seen[-1] == (total, total)
    assert ask(model, None, [], answers=blind) == []


def test_a_benchmark_asks_as_an_evaluation_does() -> None:
    items, model = draw(CONFIG), torch.nn.Linear(1, 1)
    found = Whole().run(model, None, answers=Knows(items))
    assert found.n == sum(len(i.questions) for i in items) and found["score"] > 0
    result = evaluate(model, None, CONFIG, answers=Knows(items, "yes"))
    said = ask(model, None, items, answers=Knows(items, "yes"))
    right = [[score(q, t).right for q, t in zip(i.questions, s, strict=True)] for i, s in zip(items, said, strict=True)]
    total = sum(sum(w) for t in result.types.values() for w in words(t.outcomes))
    assert total == sum(map(sum, right)) and result.items == found.items


def test_shares() -> None:
    found = share([[1, 1, 0], [0], [], [1]])
    assert found.value == pytest.approx(3 / 5) and 0 <= found.low < 0.6 < found.high <= 1
    assert (share([]).low, share([]).high) == (0, 1)
