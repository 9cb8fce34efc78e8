"""Average precision and recall against COCO's definition written out."""

from __future__ import annotations

import pytest

from tessera.errors import UserError
from tessera.evaluation.grounding import Located, average_precision, mean_average_precision, recall
from tessera.world.questions.boxes import box_iou
from tessera.world.rng import Rng

Boxes = list[tuple[str, tuple[float, float, float, float]]]


def lots(seed: int) -> tuple[list[list[Located]], list[Boxes]]:
    """Random truths; finds near some of them, and some that are made up, with distinct scores."""
    rng = Rng("grounding", seed)
    found, truth = [], []
    for _ in range(6):
        things: Boxes = []
        for _ in range(rng.integer(0, 4)):
            x, y = rng.uniform(0, 0.7), rng.uniform(0, 0.7)
            things.append((rng.choice(("dog", "cat")), (x, y, x + 0.2, y + 0.25)))
        finds = []
        for label, (x0, y0, x1, y1) in things * 2:
            d = rng.uniform(-0.09, 0.09)
            finds.append(Located(label if rng.chance(0.9) else "bus", (x0 + d, y0, x1 + d, y1), rng.uniform()))
        found.append(finds)
        truth.append(things)
    return found, truth


def naive(found: list[list[Located]], truth: list[Boxes], iou: float, label: str | None) -> float:
    ranked = sorted(((f, i) for i, fs in enumerate(found) for f in fs if label in (None, f.label)), key=lambda e: -e[0].score)
    taken: set[tuple[int, int]] = set()
    wanted = sum(label in (None, name) for things in truth for name, _ in things)
    points, right = [], 0
    for rank, (f, image) in enumerate(ranked, 1):
        best, at = 0.0, -1
        for k, (name, box) in enumerate(truth[image]):
            if name == f.label and (image, k) not in taken and box_iou(f.box, box) > best:
                best, at = box_iou(f.box, box), k
        if best >= iou:
            taken.add((image, at))
            right += 1
        points.append((right / wanted if wanted else 0, right / rank))
    total = 0.0
    for step in range(101):
        total += max((p for r, p in points if r >= step / 100 - 1e-9), default=0.0)
    return total / 101


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_cocos(seed: int) -> None:
    found, truth = lots(seed)
    by_label = [naive(found, truth, 0.5, label) for label in sorted({n for t in truth for n, _ in t})]
    assert average_precision(found, truth) == pytest.approx(sum(by_label) / len(by_label))
    assert average_precision(found, truth, 0.6, pooled=True) == pytest.approx(naive(found, truth, 0.6, None))
    thresholds = [0.5 + 0.05 * k for k in range(10)]
    pooled = [naive(found, truth, round(t, 2), None) for t in thresholds]
    assert mean_average_precision(found, truth, pooled=True) == pytest.approx(sum(pooled) / 10)


def test_perfect_empty_and_doubled_finds() -> None:
    box = (0.1, 0.1, 0.4, 0.4)
    truth: list[Boxes] = [[("dog", box)], []]
    once, twice = [Located("dog", box, 0.9)], [Located("dog", box, 0.9), Located("dog", box, 0.8)]
    assert average_precision([once, []], truth) == recall([once, []], truth) == 1
    assert average_precision([[], []], truth) == recall([[], []], truth) == 0
    assert average_precision([once], [[]]) == 0
    assert average_precision([[*twice, Located("dog", (0.6, 0.6, 0.9, 0.9), 0.95)], []], truth) == pytest.approx(0.5)
    assert recall([twice, []], truth) == 1


def test_other_images_are_refused() -> None:
    with pytest.raises(UserError, match="1 images"):
        recall([[]], [[], []])
