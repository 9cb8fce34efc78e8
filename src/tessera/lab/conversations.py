"""Further training of a finished model on given conversations, several about a picture in one row.

    pool = conversations(model, processor, [(picture, [("Is there a dog?", "yes")]), ...])
    model, processor = trained_on(lab, "nano", pool, seed=0, steps=30, images=4)
    share = accuracy(model, processor, pool, "own", alone=False)          # of `scenes`

What the encoders see is computed once; they stay as they are, so one pool serves all seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from PIL import Image

    from tessera.lab.lab import Lab
    from tessera.lab.scenes import Scenes

About: TypeAlias = "tuple[Image.Image, Sequence[tuple[str, str]]]"
"""A picture, and questions about it with their answers."""
RATE, MUON_RATE = 1e-3, 0.01
"""Peak rates: less than those that reference models are made with."""


def conversations(model: Any, processor: Any, asked: Sequence[About]) -> Scenes:
    """Training or test data of a model, with its encoders' features. Pictures without questions are left out."""
    import torch

    from tessera.lab.scenes import Scenes, key_of, seen_by

    made = Scenes(torch.empty(0), key_of(model), [], [])
    kept = [(picture, turns) for picture, turns in asked if turns]
    for number, (_, turns) in enumerate(kept):
        made.asked.append((number, list(range(len(made.questions), len(made.questions) + len(turns)))))
        made.questions += [(list(processor.question_ids(q)), list(processor.answer_ids(a))) for q, a in turns]
    made.seen = seen_by(model, processor, [picture for picture, _ in kept])
    return made


def trained_on(lab: Lab, name: str, pool: Scenes, *, seed: int, steps: int, images: int, image: str = "own") -> tuple[Any, Any]:
    """A copy of a reference model after `steps` more steps on `images` pictures each, drawn by the seed, with all that is asked
    about them; image: own, mismatched or none. In float32, encoders as they are."""
    from tessera.lab.fit import fit
    from tessera.lab.scenes import batch
    from tessera.training.plan import OptimConfig

    model, processor = lab.reference(name, copy=True)

    def batch_of_step(step: int, order: Any) -> dict[str, Any]:
        import torch

        chosen = torch.randint(len(pool.asked), (images,), generator=order).tolist()
        return batch(pool, processor, [pool.asked[i] for i in chosen], alone=False, image=image)

    rates = OptimConfig(lr=RATE, muon_lr=MUON_RATE)
    fit(model, batch_of_step, steps, seed=seed, optim=rates, train=[{"*": 1.0, "encoders.*": 0.0}])
    return model, processor
