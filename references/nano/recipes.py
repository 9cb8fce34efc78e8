"""recipes.py STEP RUNS: the steps by which the shipped nano was trained, in folder RUNS; `widen.py` stands between the first two.

    python references/nano/recipes.py first runs        49 visual tokens, from the two experts
    python references/nano/widen.py runs/first/model runs/wide
    python references/nano/recipes.py second runs       196 tokens, from runs/wide
    python references/nano/recipes.py third runs        more of what was learned late, from runs/second/model

No visual tokens are dropped in training. Bfloat16 autocast and compilation in the last two steps.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from tessera.recipes import nano
from tessera.recipes.recipe import Recipe
from tessera.training.plan import OptimConfig, Schedule, Stage, TrainConfig
from tessera.training.run import run
from tessera.world import WorldConfig

SECOND = {
    "count": 3.0, "reading": 3.0, "distance": 3.0, "chart": 3.0, "odd": 4.0, "size": 1.5, "total": 1.5, "multihop": 1.5,
    "attribute": 1.5, "category": 1.5,
}  # fmt: skip
THIRD = {
    "count": 6.0, "total": 2.0, "reading": 2.0, "distance": 5.0, "chart": 5.0, "odd": 6.0, "size": 2.0, "multihop": 2.0,
    "attribute": 1.0, "category": 1.0, "change": 1.5, "order": 3.0,
}  # fmt: skip
OPTIM = OptimConfig(lr=2e-3, muon_lr=0.014)


def first(runs: Path) -> Recipe:
    """49 tokens, heads of 56: 9,600 steps of 24 samples by the curriculum of the recipe `nano`."""
    made = nano.nano()
    described = nano.model()
    described["parts"]["tokens"] = {"kind": "pixel_shuffle", "factor": 2}
    return replace(made, model=described)


def second(runs: Path) -> Recipe:
    """196 tokens, heads of 64: 2,900 steps of 16 samples."""
    made = nano.nano()
    placing = made.lessons["places"]
    asked = replace(made.questions, text_tokens=208, naming=0.1, looks=0.3, several=(0.16, 0.12), weights=dict(SECOND), lists=0.3)
    return replace(
        made,
        start={"*": str(runs / "wide")},
        lessons={"places": replace(placing, questions=replace(placing.questions, naming=0.1))},
        questions=asked,
        worlds=[WorldConfig(kinds={"scene": 0.60, "text": 0.20, "chart": 0.20}, seed=1)],
        training=TrainConfig(
            stages=[
                Stage(name="places", steps=150, train=dict(nano.TRAINED), schedule=Schedule(kind="constant", warmup=20)),
                Stage(
                    name="again",
                    steps=2750,
                    train=dict(nano.TRAINED),
                    schedule=Schedule(kind="wsd", warmup=30, final=0.02, decay=0.5),
                ),
            ],
            optim=OPTIM,
            batch_size=16,
            precision="bf16",
            compile="on",
            save_every=100,
        ),
    )


def third(runs: Path) -> Recipe:
    """2,600 further steps of 16 samples."""
    made = second(runs)
    return replace(
        made,
        start={"*": str(runs / "second" / "model")},
        lessons={},
        questions=replace(made.questions, several=(0.18, 0.20), weights=dict(THIRD), naming=0.05, lists=0.2),
        worlds=[replace(world, seed=2) for world in made.worlds],
        training=replace(
            made.training,
            stages=[
                Stage(
                    name="more",
                    steps=2600,
                    train=dict(nano.TRAINED),
                    schedule=Schedule(kind="wsd", warmup=50, final=0.02, decay=0.6),
                ),
            ],
        ),
    )


if __name__ == "__main__":
    step, folder = sys.argv[1], Path(sys.argv[2])
    run({"first": first, "second": second, "third": third}[step](folder), folder / step)
