"""A reference model is trained further: by an objective, with a tuning, with parts plugged in; then it is asked of new pictures.

Everything but the encoders trains (with a tuning nothing but the tuning), in float32. With its 196 visual tokens an image the
reference model takes 0.3 to 0.6 s of one core for each image and step, so the trainings are short: 10 to 40 s for an arm and a
seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from tessera.errors import TesseraError
from tessera.lab.arms import plain_data
from tessera.lab.experiment import Arm, Vary
from tessera.lab.outcomes import Outcomes, per_seed
from tessera.lab.protocols.base import Protocol

if TYPE_CHECKING:
    from tessera.lab.behaviour import Numbers
    from tessera.lab.further import FineTuning, FineTuningPool
    from tessera.lab.lab import Lab
    from tessera.lab.outcomes import Unit

SCENES: Mapping[str, Any] = {"kinds": {"scene": 1.0}, "things": (1, 5)}
TESTS = ("types", "world", "pictures", "most", "image", "plug")
TRAINING_SETTINGS = ("objective", "tuning", "plugs", "steps")


@dataclass(frozen=True, slots=True, kw_only=True)
class FurtherTraining(Protocol):
    """model: a reference model, at whose weights every arm and seed starts; world: options of `WorldConfig` for training; steps,
    of `batch` images, at the peak rate of AdamW; types, scenes, most: of the training questions of arms without an objective, how
    many scenes they are about, and how many of one scene.

    tests: name -> types (none: contrasts of pairs, `world.contrasts`), world, pictures, most (questions of one), image ("own" or
    "mismatched"), plug ({part: options} plugged in meanwhile). Every trained model takes all of them, about scenes of its seed.
    scales: names of tests about the same questions.

    Arms: `Vary(name, uses=..., objective={"kind": ...}, tuning={"kind": ...}, plugs=[{part: options}, ...], steps=0, test=...)`:
    plugs are taken in turn, one a step; steps=0 is the model as it is; test names the one whose metrics bear no name.
    Metrics, of each test "<test>: <metric>": accuracy (all tokens of the answer right under teacher forcing, its end included);
    tempted (share of wrong answers of one kind: yes where nothing is, or what is right for the other picture of the pair); both
    right (share of pairs). best scale: share of questions that one of `scales` answers rightly; fixed scale: the best one's
    accuracy; loss: mean of the last quarter.
    """

    name: ClassVar[str] = "further_training"
    version: ClassVar[int] = 1
    unit: ClassVar[Unit] = "seed"
    looks: ClassVar[tuple[int, ...]] = (5, 8, 12)
    arms: ClassVar[tuple[type[Arm], ...]] = (Vary,)

    model: str = "nano"
    world: Mapping[str, Any] = field(default_factory=lambda: dict(SCENES))
    steps: int = 16
    batch: int = 4
    rate: float = 5e-4
    types: tuple[str, ...] = ()
    scenes: int = 200
    most: int = 6
    tests: Mapping[str, Mapping[str, Any]]
    scales: tuple[str, ...] = ()

    def models(self) -> tuple[str, ...]:
        """The one that it starts with."""
        return (self.model,)

    def named_parts(self) -> tuple[str, ...]:
        """Those that are plugged in for tests."""
        return tested(self)

    def measure(self, lab: Lab, arm: Arm, look: int, first: int, count: int) -> Outcomes:
        """Seeds first .. first + count - 1. Arms that differ in their test alone share one training of a seed."""
        assert isinstance(arm, Vary)
        test, training = split(self, arm)
        found = []
        for seed in range(first, first + count):

            def make(seed: int = seed) -> dict[str, float]:
                data = train_and_test_data(self, *lab.reference(self.model), seed)
                return trained(self, *lab.reference(self.model, copy=True), fine_tuning(self, arm), seed, *data)

            found.append(lab.kept([self.plain(), training, seed], self.depends(arm), make))
        own = {key: key.partition(": ")[2] for key in found[0] if key.startswith(f"{test}: ")}
        rows = [row | {short: row[key] for key, short in own.items()} for row in found]
        return per_seed({metric: [row[metric] for row in rows] for metric in rows[0]})

    @classmethod
    def golden(cls, lab: Lab) -> Numbers:
        """Two steps of a tiny random model by each kind of fine-tuning, and what it then answers."""
        return _golden(cls)


def split(protocol: FurtherTraining, arm: Vary) -> tuple[str, dict[str, Any]]:
    """(the arm's test, what of it shapes the training, as plain data). Raises `TesseraError` for unknown settings."""
    if not protocol.tests:
        raise TesseraError("further_training wants at least one test.")
    for name, options in protocol.tests.items():
        if wrong := options.keys() - set(TESTS):
            raise TesseraError(f"test {name!r} of further_training knows {', '.join(TESTS)}, not {', '.join(sorted(wrong))}.")
    settings = dict(arm.settings)
    test = settings.pop("test", next(iter(protocol.tests)))
    if test not in protocol.tests:
        raise TesseraError(f"arm {arm.name!r} is tested by {test!r}, the protocol by {', '.join(protocol.tests)}.")
    if wrong := settings.keys() - set(TRAINING_SETTINGS):
        known = ", ".join((*TRAINING_SETTINGS, "test"))
        raise TesseraError(f"arm {arm.name!r}: further_training knows {known}, not {', '.join(sorted(wrong))}.")
    return test, plain_data({"steps": protocol.steps, **settings})


def tested(protocol: FurtherTraining) -> tuple[str, ...]:
    """Names of the parts that are plugged in for tests."""
    return tuple(dict.fromkeys(part for options in protocol.tests.values() for part in options.get("plug", {})))


def fine_tuning(protocol: FurtherTraining, arm: Vary) -> FineTuning:
    """How the arm's model is fine-tuned."""
    from tessera.lab.further import FineTuning

    _, training = split(protocol, arm)
    return FineTuning(**{"batch": protocol.batch, "rate": protocol.rate, "world": protocol.world, **training})


def train_and_test_data(
    protocol: FurtherTraining, model: Any, processor: Any, seed: int
) -> tuple[FineTuningPool | None, dict[str, FineTuningPool]]:
    """(the questions that arms without an objective learn from, None without types; those of every test), with what the encoders
    see: they are the same in all arms, and other ones for every seed."""
    from tessera.lab.further import pool_of

    train_data, tests = None, dict[str, Any]()
    if protocol.types:
        train_data = pool_of(
            model,
            processor,
            protocol.scenes,
            split="train",
            types=protocol.types,
            most=protocol.most,
            world=protocol.world,
            seed=seed,
        )
    same: dict[str, Any] = {}
    for name, options in protocol.tests.items():
        asked: dict[str, Any] = {"types": (), "world": SCENES, "pictures": 100, "most": 4} | {
            key: value for key, value in options.items() if key not in ("image", "plug")
        }
        count = asked.pop("pictures")
        key = repr((count, sorted(asked.items())))
        if key not in same:
            same[key] = pool_of(model, processor, count, split="test", seed=seed, **asked)
        tests[name] = same[key]
    return train_data, tests


def trained(
    protocol: FurtherTraining,
    model: Any,
    processor: Any,
    how: FineTuning,
    seed: int,
    train_data: FineTuningPool | None,
    tests: Mapping[str, FineTuningPool],
) -> dict[str, float]:
    """The metrics of every test, of the model after its training with a seed."""
    from tessera.lab.around import plugged
    from tessera.lab.further import learn, said

    losses = learn(model, processor, how, train_data, seed) if how.steps else []
    found: dict[str, float] = {}
    scales: list[list[bool]] = []
    for name, pool in tests.items():
        options = protocol.tests[name]
        with plugged(model, options.get("plug", {})):
            shift = 1 if options.get("image", "own") == "mismatched" else 0
            answers = said(model, processor, pool, pixels="plug" in options, shift=shift)
        right = [[ok for ok, _ in image] for image in answers]
        tempting = [told for image in answers for _, told in image if told is not None]
        every = [ok for image in right for ok in image]
        found[f"{name}: accuracy"] = sum(every) / len(every)
        if tempting:
            found[f"{name}: tempted"] = sum(tempting) / len(tempting)
        if not options.get("types"):
            pairs = [all(first) and all(second) for first, second in zip(right[::2], right[1::2], strict=True)]
            found[f"{name}: both right"] = sum(pairs) / len(pairs)
        if name in protocol.scales:
            scales.append(every)
    if scales:
        found["best scale"] = sum(any(one) for one in zip(*scales, strict=True)) / len(scales[0])
        found["fixed scale"] = max(sum(row) / len(row) for row in scales)
    if losses:
        last = losses[-max(1, len(losses) // 4) :]
        found["loss"] = sum(last) / len(last)
    return found


def _golden(cls: type[FurtherTraining]) -> Numbers:
    import copy

    from tessera.hosts.zoo import fill
    from tessera.lab.behaviour import summary
    from tessera.lab.contract.fixture import quiet, seeded
    from tessera.lab.contract.training import SIDE, subject
    from tessera.lab.further import batch

    small: dict[str, Any] = {"kinds": {"scene": 1.0}, "things": (1, 3), "width": SIDE, "height": SIDE}
    pairs: dict[str, Any] = {"kinds": {"pair": 1.0}, "width": SIDE, "height": SIDE}
    asked: dict[str, Any] = {"types": ("existence",), "world": small, "pictures": 4, "most": 2}
    plug = {"random": {"keep": (0.5,)}}
    tests = {
        "own": asked,
        "mismatched": {**asked, "image": "mismatched"},
        "thinned": {**asked, "plug": plug},
        "pairs": {"world": pairs, "pictures": 4},
    }
    protocol = cls(
        world=small, steps=30, batch=2, rate=1e-2, types=("existence",), scenes=4, most=2, tests=tests, scales=("own", "thinned")
    )
    arms = (
        Vary("as it is", steps=0),
        Vary("answers"),
        Vary("plugged", plugs=({}, plug)),
        Vary("preference", steps=2, objective={"kind": "povid", "questions": 1}),
        Vary("tuning", steps=4, tuning={"kind": "arcana", "rank_visual": 2, "rank_text": 2, "dropout": 0.0}),
    )
    found: dict[str, list[float] | str] = {}
    with quiet(), seeded():
        start, processor = copy.deepcopy(subject("nano")[0]), subject("nano")[1]
        fill(start, 0)
        train_data, pools = train_and_test_data(protocol, start.eval(), processor, 0)
        assert train_data is not None
        for name, pool in (("training", train_data), *pools.items()):
            found[f"pool {name}"] = [float(sum(map(len, pool.asked))), *summary(pool.pixels), *summary(pool.seen)]
            found[f"asked {name}"] = str(pool.asked)
        shown = batch(processor, pools["own"], [0, 3], shift=1, tempting=True)
        found["mismatched"] = [*shown["input_ids"].flatten().tolist(), *summary(shown["visual_features"])]
        for arm in arms:
            tuned_alone = "tuning" in arm.settings  # which is plugged in itself, and takes no other parts beside it
            asked_of = replace(protocol, tests={"pairs": tests["pairs"]}, scales=()) if tuned_alone else protocol
            made = trained(
                asked_of,
                copy.deepcopy(start),
                processor,
                fine_tuning(protocol, arm),
                0,
                train_data,
                {name: pools[name] for name in asked_of.tests},
            )
            found |= {f"{arm.label}: {name}": [value] for name, value in sorted(made.items())}
    return found
