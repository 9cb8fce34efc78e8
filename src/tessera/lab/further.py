"""Further training of a reference model, by an objective, with a tuning or with parts plugged in, and tempting questions.

    learn(model, processor, fine_tuning, pool, seed=0)
    answers = said(model, processor, pool)     # of every question: is the answer right, is it the tempting one

A tempting answer is a wrong one whose share is measured: yes to what is not there, the answer of a pair's other picture.

Legend: I images of side S, N visual tokens in front of the connector, D channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tessera.data.packing import Item
from tessera.errors import TesseraError
from tessera.lab.around import plugged
from tessera.lab.protocols.base import APART
from tessera.lab.rows import features_of, packed, pixels_of, right_answers
from tessera.training.objective import Loss, Objective, Subject, objective_named, tuning_named
from tessera.world import World
from tessera.world.contrasts import contrasts
from tessera.world.dataset import Sample

CHUNK = 16
"""Images that are read, and rows that are tested, at once."""
FAR = 1_000_000
"""Numbers of samples that a training draws from."""


@dataclass(slots=True)
class FineTuningPool:
    """pixels [I, 3, S, S] float32; seen [I, N, D] float32, what the encoders say; asked: of every image its questions, each
    as ids of the question, of the right answer, and of the tempting one or None."""

    pixels: Tensor
    seen: Tensor
    asked: list[list[tuple[list[int], list[int], list[int] | None]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuning:
    """How a model is fine-tuned.

    objective, tuning  as in a recipe, {"kind": name, **options}; without an objective the pool's answers are learned
    plugs              parts that are plugged in, one entry a step in turn
    world              of the objective's own samples
    """

    steps: int
    batch: int
    rate: float
    world: Mapping[str, Any] = field(default_factory=dict)
    objective: Mapping[str, Any] | None = None
    tuning: Mapping[str, Any] | None = None
    plugs: Sequence[Mapping[str, Mapping[str, Any]]] = ()


class Learner(Subject):
    """A subject whose loss is a number, whether the objective gives it or the model itself."""

    def forward(self, **batch: Any) -> Any:
        """-> something with `loss`."""
        found = super().forward(**batch)
        return SimpleNamespace(loss=found.loss_sum / found.loss_weight) if isinstance(found, Loss) else found


def learn(model: Any, processor: Any, fine_tuning: FineTuning, pool: FineTuningPool | None, seed: int) -> list[float]:
    """Trains the model in place, its encoders as they are; the loss of every step. A tuning stays in the model.

    The seed is that of the data order: the same samples for all objectives, tunings and plugs. Raises `TesseraError` where
    there is neither an objective with its own batches nor a pool.
    """
    from tessera.lab.fit import fit
    from tessera.training.plan import OptimConfig

    objective = None if fine_tuning.objective is None else objective_named(fine_tuning.objective)
    tuning = None if fine_tuning.tuning is None else tuning_named(fine_tuning.tuning)
    collate = _collate(objective, model, processor, fine_tuning)
    if collate is None and pool is None:
        raise TesseraError("further training wants an objective that makes its own batches, or a pool of questions.")

    def batch_of_step(step: int, order: torch.Generator) -> Mapping[str, Tensor]:
        numbers = torch.randint(FAR, (fine_tuning.batch,), generator=order).tolist()
        if collate is not None:
            return collate(numbers)
        assert pool is not None
        return batch(processor, pool, [n % len(pool.asked) for n in numbers], pixels=bool(fine_tuning.plugs))

    @contextmanager
    def around(step: int) -> Iterator[None]:
        with plugged(model, fine_tuning.plugs[step % len(fine_tuning.plugs)] if fine_tuning.plugs else {}):
            yield

    return fit(
        Learner(model, objective, tuning, reference=model),
        batch_of_step,
        fine_tuning.steps,
        seed=seed,
        optim=OptimConfig(kind="adamw", lr=fine_tuning.rate, weight_decay=0.0),
        train=[{"tuning": 1.0} if tuning is not None else {"*": 1.0, "encoders.*": 0.0}],
        around=around,
    )


def _collate(objective: Objective | None, model: Any, processor: Any, fine_tuning: FineTuning) -> Any:
    """What makes the objective's batches, None where the pool does."""
    if objective is None:
        return None
    objective.prepare(model, processor)
    side = int(model.image_size)
    world = World(**{"split": "train", "width": side, "height": side, **fine_tuning.world})
    return objective.collate([world], processor, fine_tuning.batch)


def batch(
    processor: Any, pool: FineTuningPool, images: Sequence[int], *, pixels: bool = False, shift: int = 0, tempting: bool = False
) -> dict[str, Tensor]:
    """Inputs with labels: one row for each image with all of its questions, behind each other and blind to each other.

    pixels: in place of what the encoders say, for parts that are plugged in; shift: answer about the image so many places further
    on; tempting: behind the right answer to a question the tempting one
    """
    rows: list[list[Item]] = []
    for image in images:
        rows.append([])
        for asked, right, other in pool.asked[image]:
            rows[-1].append((asked, right, None))
            if tempting and other is not None:
                rows[-1].append((asked, other, None))
    shown = [(image + shift) % len(pool.asked) for image in images]
    inputs = packed(processor, rows)
    return inputs | ({"pixel_values": pool.pixels[shown]} if pixels else {"visual_features": pool.seen[shown]})


def said(
    model: Any, processor: Any, pool: FineTuningPool, *, pixels: bool = False, shift: int = 0
) -> list[list[tuple[bool, bool | None]]]:
    """Of every image, of every question: whether the model says the right answer, and whether the tempting one (None: no such).

    Under teacher forcing, every token of the answer and its end: what greedy decoding would say.
    """
    found: list[list[tuple[bool, bool | None]]] = []
    with torch.no_grad():
        for begin in range(0, len(pool.asked), CHUNK):
            images = range(begin, min(begin + CHUNK, len(pool.asked)))
            inputs = batch(processor, pool, images, pixels=pixels, shift=shift, tempting=True)
            labels = inputs.pop("labels")
            inputs.pop("loss_weights")
            right = right_answers(model(**inputs).logits, labels, inputs["segment_ids"])
            for row, image in enumerate(images):
                own, answers = iter(right[row]), []
                for _, _, other in pool.asked[image]:
                    answers.append((next(own), None if other is None else next(own)))
                found.append(answers)
    return found


def pool_of(
    model: Any,
    processor: Any,
    count: int,
    *,
    split: str,
    types: Sequence[str],
    most: int,
    world: Mapping[str, Any],
    seed: int = 0,
) -> FineTuningPool:
    """`count` scenes of a world, the first of the seed's own that have questions of `types`, at most `most` each. Without
    `types`, pairs: both pictures with one contrast that has short answers, of which the other picture's is the tempting one.

    Raises `TesseraError` if there are too few.
    """
    side = int(model.image_size)
    drawn = World(**{"split": split, "width": side, "height": side, **world})
    pictures: list[Any] = []
    asked: list[list[tuple[str, str, str | None]]] = []
    index = 0
    while len(pictures) < count:
        sample = drawn[APART * seed + index]
        index += 1
        found = _questions(sample, types, most) if types else _contrast(sample)
        if found:
            pictures += sample.images()
            asked += found
        if index > 50 * count + 100:
            raise TesseraError(
                f"the first {index} samples give no {count} pictures with questions of the types {', '.join(types)}."
            )

    def ids(text: str, of: Any) -> list[int]:
        return list(of(text))

    answers, questions = processor.answer_ids, processor.question_ids
    spelled = [
        [(ids(q, questions), ids(a, answers), None if t is None else ids(t, answers)) for q, a, t in image] for image in asked
    ]
    read = pixels_of(processor, pictures)
    return FineTuningPool(read, features_of(model, read, CHUNK), spelled)


def _questions(sample: Sample, types: Sequence[str], most: int) -> list[list[tuple[str, str, str | None]]]:
    own = sample.rng("further training").shuffled(sample.questions(tuple(types)))[:most]
    found = [(q.text, q.answer, "yes" if q.type == "existence" and q.answer == "no" else None) for q in own]
    return [found] if found else []


def _contrast(sample: Sample) -> list[list[tuple[str, str, str | None]]]:
    short = [c for c in contrasts(sample) if len(c[1][0].split()) <= 3 and "box" not in c[0]]
    if not short:
        return []
    question, (first, second) = sample.rng("further training").choice(short)
    return [[(question, first, second)], [(question, second, first)]]
