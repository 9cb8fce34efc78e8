"""The evaluation harness: asks a model questions of the world and measures its accuracy per question type."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from typing import Any

from tessera.config import to_dict
from tessera.evaluation import provenance
from tessera.evaluation.answering import Generates, Row, generator, hinted, is_ours
from tessera.evaluation.intervals import mean_of, wilson
from tessera.evaluation.items import EvaluationConfig, Item, draw, fingerprint
from tessera.evaluation.result import Example, Result, Share, TypeResult
from tessera.evaluation.scoring import Score, chance, majority, score
from tessera.world.dataset import VERSION
from tessera.world.questions import TYPES
from tessera.world.rng import Rng
from tessera.world.scene import Question

Progress = Callable[[int, int], None]
"""Called with the questions answered so far and the questions in all."""


def evaluate(
    model: Any,
    processor: Any,
    config: EvaluationConfig | None = None,
    *,
    blind: bool = False,
    progress: Progress | None = None,
    name: str = "",
    answers: Generates | None = None,
) -> Result:
    """Asks `model` the questions that `config` draws and scores what it says.

    blind: the same questions without any image; name: what the result calls the model; answers: something else that answers in
    the model's place (`model` is then only described). The model is in evaluation mode meanwhile.
    Raises `UserError` for a config that cannot be drawn, or a model that cannot be asked.
    """
    config = config or EvaluationConfig()
    begin = time.perf_counter()
    items = draw(config)
    texts = ask(
        model,
        processor,
        items,
        blind=blind,
        batch_size=config.batch_size,
        max_new_tokens=config.max_new_tokens,
        progress=progress,
        answers=answers,
    )
    result = _result(list(zip(items, texts, strict=True)), config)
    result.model = name or type(model).__name__
    result.weights = provenance.weights_hash(model)
    result.parameters = provenance.parameter_count(model)
    result.without_images = blind
    result.seconds = round(time.perf_counter() - begin, 3)
    return result


def ask(
    model: Any,
    processor: Any,
    items: Sequence[Item],
    *,
    blind: bool = False,
    batch_size: int = 16,
    max_new_tokens: int = 24,
    progress: Progress | None = None,
    answers: Generates | None = None,
) -> list[list[str]]:
    """What `model` says to the questions of `items`: one list of texts per item, in order; options as in `evaluate`.

    The one way in which questions reach a model that is measured: `evaluate`, benchmarks and probes all ask through it.
    """
    import torch

    total = sum(len(item.questions) for item in items)
    # Samples with equally many images and questions stand together, so that a batch has little padding.
    order = sorted(range(len(items)), key=lambda i: (len(items[i].sample.frames), len(items[i].questions)))
    said: dict[int, list[str]] = {}
    modes = [(module, module.training) for module in model.modules()]  # one by one: frozen parts may be in evaluation mode
    model.eval()
    try:
        with torch.no_grad():
            asked = answers or generator(model, processor)
            done = 0
            phrase = hinted if answers is None and not is_ours(model) else _plain
            for batch, rows in _rows([items[i] for i in order], order, batch_size, phrase, blind):
                for i, found in zip(batch, asked.answer_batch(rows, max_new_tokens), strict=True):
                    said[i] = [answer.text for answer in found]
                    done += len(found)
                if progress is not None:
                    progress(done, total)
    finally:
        for module, mode in modes:
            module.training = mode
    return [said[i] for i in range(len(items))]


def _rows(
    items: Sequence[Item],
    numbers: Sequence[int],
    size: int,
    phrase: Callable[[Question], str],
    blind: bool,
) -> Iterator[tuple[Sequence[int], list[Row]]]:
    """(numbers, rows) of one batch after the other; the images of the next are drawn while a batch is answered."""

    def make(start: int) -> list[Row]:
        chosen = items[start : start + size]
        return [([] if blind else item.sample.images(), [phrase(q) for q in item.questions]) for item in chosen]

    with ThreadPoolExecutor(1) as pool:
        coming: Future[list[Row]] | None = None
        for start in range(0, len(items), size):
            rows = coming.result() if coming is not None else make(start)
            coming = pool.submit(make, start + size) if start + size < len(items) else None
            yield numbers[start : start + size], rows


def _plain(question: Question) -> str:
    return question.text


def _result(answered: Sequence[tuple[Item, list[str]]], config: EvaluationConfig) -> Result:
    scored = [(item, q, text, score(q, text)) for item, texts in answered for q, text in zip(item.questions, texts, strict=True)]
    types: dict[str, TypeResult] = {}
    examples: list[Example] = []
    for name in TYPES:
        mine = [entry for entry in scored if entry[1].type == name]
        if mine:
            types[name] = _type_result(mine)
            examples += _examples(mine, name, config)
    mean = mean_of([(round(t.accuracy * t.n), t.n) for t in types.values()])
    return Result(
        model="",
        weights="",
        parameters=0,
        without_images=False,
        n=len(scored),
        samples=len(answered),
        accuracy=mean.value,
        low=mean.low,
        high=mean.high,
        chance=_mean(t.chance for t in types.values()),
        majority=_mean(t.majority for t in types.values()),
        types=types,
        examples=examples,
        items=fingerprint(item for item, _ in answered),
        config=to_dict(config),
        world_version=VERSION,
        versions=provenance.versions(),
        machine=provenance.machine(),
    )


_Scored = tuple[Item, Question, str, Score]


def _type_result(entries: Sequence[_Scored]) -> TypeResult:
    questions = [q for _, q, _, _ in entries]
    right = sum(s.right for *_, s in entries)
    sure = wilson(right, len(entries))
    overlaps = [s.iou for *_, s in entries if s.iou is not None]
    by_sample = groupby(entries, key=lambda entry: id(entry[0]))
    return TypeResult(
        n=len(entries),
        accuracy=sure.value,
        low=sure.low,
        high=sure.high,
        chance=_mean(map(chance, questions)),
        majority=majority(questions),
        iou=_mean(overlaps) if overlaps else None,
        forms=_shares(entries, lambda q: q.form),
        ops=_shares(entries, lambda q: str(q.asked("op"))),
        outcomes=" ".join("".join(str(int(s.right)) for *_, s in group) for _, group in by_sample),
    )


def _shares(entries: Sequence[_Scored], key: Callable[[Question], str]) -> dict[str, Share]:
    groups: dict[str, list[bool]] = {}
    for _, q, _, s in entries:
        groups.setdefault(key(q), []).append(s.right)
    return {k: Share(n=len(v), accuracy=sum(v) / len(v)) for k, v in sorted(groups.items())}


def _examples(entries: Sequence[_Scored], name: str, config: EvaluationConfig) -> list[Example]:
    """At most `config.examples` right and as many wrong answers, drawn at random."""
    rng = Rng("examples", config.seed, name)
    chosen = []
    for right in (True, False):
        chosen += rng.pick([e for e in entries if e[3].right == right], config.examples)
    return [
        Example(
            index=item.sample.index,
            kind=item.sample.kind,
            frames=len(item.sample.frames),
            type=q.type,
            form=q.form,
            question=q.text,
            answer=q.answer,
            said=text,
            right=s.right,
            evidence=q.evidence,
        )
        for item, q, text, s in chosen
    ]


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / max(1, len(found))
