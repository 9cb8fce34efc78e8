"""A small model is trained to find a thing among few pictures and asked about many: positions far beyond the trained ones.

Every row shows pictures of one thing each and asks for two kinds of things: one that a single picture shows, one that none shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from tessera.data.packing import Item
from tessera.errors import TesseraError
from tessera.lab.around import plugged
from tessera.lab.experiment import Arm, Vary
from tessera.lab.outcomes import Outcomes, per_seed
from tessera.lab.protocols.base import APART, Protocol
from tessera.lab.protocols.short_training import SMALL, TOWER
from tessera.lab.rows import features_of, packed, pixels_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from tessera.lab.behaviour import Numbers
    from tessera.lab.lab import Lab
    from tessera.lab.outcomes import Unit

TESTED = 77
"""Seed of the rows of the test, the same for all arms and seeds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LongInputs(Protocol):
    """asked: name -> how every trained model is asked: `plug` (parts for hosts with options), `long` (about `many` pictures,
    not as few as in training), `mismatched` (it is shown the next row's pictures). tower: whose features are computed once,
    with weights of the reference model `start` ("": random ones); square: side of the square of places that becomes a visual
    token; language: sizes of the language model. pictures, test_pictures: of one thing each, to draw from; few: least and
    most of a row in training; many: of a long row; rows: of a batch; steps, lr, muon_lr: of the training; tested: rows.

    Arms: `Vary(name, train={part: options}, asked=name)`: parts that are plugged in while it learns, and a way of `asked`.
    Metrics: accuracy (all tokens of the answer right under teacher forcing; a half is chance); loss.
    """

    name: ClassVar[str] = "long_inputs"
    version: ClassVar[int] = 1
    unit: ClassVar[Unit] = "seed"
    looks: ClassVar[tuple[int, ...]] = (5, 8, 12)
    arms: ClassVar[tuple[type[Arm], ...]] = (Vary,)

    asked: Mapping[str, Mapping[str, Any]]
    tower: Mapping[str, Any] = field(default_factory=lambda: dict(TOWER))
    start: str = "object-expert"
    square: int = 7
    language: Mapping[str, Any] = field(default_factory=lambda: dict(SMALL))
    pictures: int = 500
    test_pictures: int = 250
    few: tuple[int, int] = (2, 4)
    many: int = 32
    rows: int = 16
    steps: int = 250
    lr: float = 3e-3
    muon_lr: float = 0.02
    tested: int = 96

    def models(self) -> tuple[str, ...]:
        """The one that the tower is of."""
        return (self.start,) if self.start else ()

    def named_parts(self) -> tuple[str, ...]:
        """The tower, what stands behind it, and what is plugged in when it is asked."""
        plugs = [name for asked in self.asked.values() for name in asked.get("plug", {})]
        return tuple(dict.fromkeys([str(self.tower["kind"]), "pixel_shuffle", "linear", "prefix", *plugs]))

    def measure(self, lab: Lab, arm: Arm, look: int, first: int, count: int) -> Outcomes:
        """Seeds first .. first + count - 1; arms that differ in how they are asked share the training of a seed."""
        assert isinstance(arm, Vary)
        train, way = _of(self, arm)
        found = []
        for seed in range(first, first + count):

            def make(seed: int = seed) -> dict[str, dict[str, float]]:
                return trained(lab, self, train, seed, *train_and_test_data(lab, self, seed))

            found.append(lab.kept([self.plain(), train, seed], self.depends(arm), make))
        return per_seed({metric: [f[way][metric] for f in found] for metric in ("accuracy", "loss")})

    @classmethod
    def golden(cls, lab: Lab) -> Numbers:
        """Some steps of a tiny model, with a part that moves positions and without one, asked in every way."""
        from tessera.lab.behaviour import summary

        tower = {"kind": "conv_vit", "image_size": 32, "patch_size": 8, "width": 24, "depth": 1, "heads": 2}
        asked: dict[str, dict[str, Any]] = {"few": {}, "many": {"long": True}, "others": {"mismatched": True}}
        asked["near"] = {"long": True, "plug": {"v2pe": {"strides": (16,)}}}
        sizes = {"layers": 2, "width": 32, "hidden": 48}
        micro = cls(
            asked=asked, tower=tower, start="", square=2, language=sizes, pictures=40, test_pictures=40, few=(1, 2), many=4,
            rows=4, steps=6, tested=8,
        )  # fmt: skip
        train_data, shown = train_and_test_data(lab, micro, 0)
        found: dict[str, list[float] | str] = {"kinds": " ".join(train_data.kinds), "seen": summary(train_data.seen)}
        for label, train in (("whole", {}), ("random strides", {"v2pe": {"strides": (16, 256)}})):
            made = trained(lab, micro, train, 0, train_data, shown)
            found |= {f"{label}: {name}": list(values.values()) for name, values in sorted(made.items())}
        return found


@dataclass(slots=True)
class Pictures:
    """Pictures of one thing each: what the tower sees of them [I, N, D], and the kind of the thing."""

    seen: Tensor
    kinds: list[str]


def _of(protocol: LongInputs, arm: Vary) -> tuple[dict[str, Any], str]:
    """(what is plugged in while it learns, how it is asked). Raises `TesseraError` for unknown settings."""
    settings = dict(arm.settings)
    train, way = dict(settings.pop("train", {})), settings.pop("asked", "")
    if settings or way not in protocol.asked:
        known = ", ".join(protocol.asked)
        raise TesseraError(
            f"arm {arm.name!r}: long_inputs knows train={{...}} and asked=one of {known}; not {dict(arm.settings)}."
        )
    for name, asked in protocol.asked.items():
        if wrong := asked.keys() - {"plug", "long", "mismatched"}:
            raise TesseraError(f"asked {name!r}: long_inputs knows plug, long and mismatched, not {', '.join(sorted(wrong))}.")
    return train, way


def built(lab: Lab, protocol: LongInputs, seed: int) -> tuple[Any, Any]:
    """A composed model with random weights of the seed's behind the tower, and its processor."""
    import torch

    from tessera.recipes.nano import language
    from tessera.recipes.recipe import Recipe
    from tessera.training.plan import TrainConfig
    from tessera.training.run import build

    sizes = {key: protocol.language[key] for key in ("layers", "width", "hidden")}
    parts = {
        "encoders": [dict(protocol.tower)],
        "tokens": {"kind": "pixel_shuffle", "factor": protocol.square},
        "connector": {"kind": "linear"},
        "coupling": {"kind": "prefix"},
    }
    made = {"parts": parts, "text_config": language(**sizes)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, processor = build(Recipe(name="long", about="An experiment's.", model=made, training=TrainConfig(device="cpu")))
    if protocol.start:
        model.sockets()["encoders.0"].load_state_dict(lab.reference(protocol.start)[0].encoder.state_dict())
    return model.eval(), processor


def train_and_test_data(lab: Lab, protocol: LongInputs, seed: int) -> tuple[Pictures, Pictures]:
    """Pictures to learn with and to be asked about, a seed's own."""
    model, processor = built(lab, protocol, 0)
    return (
        pictures(model, processor, "train", protocol.pictures, seed),
        pictures(model, processor, "test", protocol.test_pictures, seed),
    )


def pictures(model: Any, processor: Any, split: str, count: int, seed: int = 0) -> Pictures:
    """`count` scenes of a split, a seed's own, with one thing each."""
    from tessera.world import World

    side = int(model.image_size)
    world = World(split=split, kinds={"scene": 1.0}, things=(1, 1))
    samples = [world[APART * seed + index] for index in range(count)]
    seen = pixels_of(processor, [sample.drawings(size=(side, side))[0].image for sample in samples])
    return Pictures(features_of(model, seen), [sample.truth()[0].category for sample in samples])


def batch(
    pool: Pictures, processor: Any, rows: int, shown: int, draw: torch.Generator, mismatched: bool = False
) -> dict[str, Tensor]:
    """Rows of `shown` pictures, one of which, at a random place, shows the first kind asked for; none shows the second."""
    import torch

    from tessera.world.questions.phrasing import article

    def one(values: list[Any]) -> Any:
        return values[int(torch.randint(len(values), (1,), generator=draw))]

    kinds, chosen, items = sorted(set(pool.kinds)), list[int](), list[list[Item]]()
    for _ in range(rows):
        there = one(kinds)
        absent = one([kind for kind in kinds if kind != there])
        others = [i for i, kind in enumerate(pool.kinds) if kind not in (there, absent)]
        row = [one(others) for _ in range(shown)]
        row[int(torch.randint(shown, (1,), generator=draw))] = one([i for i, kind in enumerate(pool.kinds) if kind == there])
        chosen += row
        asked = [(f"Is there {article(kind)} {kind}?", answer) for kind, answer in ((there, "yes"), (absent, "no"))]
        items.append([(list(processor.question_ids(text)), list(processor.answer_ids(said)), None) for text, said in asked])
    inputs = packed(processor, items, shown)
    inputs["visual_features"] = pool.seen[chosen[shown:] + chosen[:shown] if mismatched else chosen]
    return inputs


def trained(
    lab: Lab, protocol: LongInputs, train: Mapping[str, Any], seed: int, train_data: Pictures, shown: Pictures
) -> dict[str, dict[str, float]]:
    """Accuracy and loss in each way of being asked after one training."""
    import torch

    from tessera.lab.fit import fit
    from tessera.lab.scenes import answers
    from tessera.training.plan import OptimConfig

    model, processor = built(lab, protocol, seed)
    least, most = protocol.few

    def batch_of_step(step: int, order: torch.Generator) -> Mapping[str, Tensor]:
        return batch(train_data, processor, protocol.rows, least + step % (most - least + 1), order)

    @contextmanager
    def around(step: int) -> Iterator[None]:
        with torch.random.fork_rng(devices=[]), plugged(model, train):
            torch.manual_seed(1_000_000 * seed + step)  # what a part draws does not depend on what was drawn before
            yield

    optim = OptimConfig(lr=protocol.lr, muon_lr=protocol.muon_lr)
    fit(model, batch_of_step, protocol.steps, seed=seed, optim=optim, train=[{"*": 1.0, "encoders.*": 0.0}], around=around)
    found = {}
    for name, asked in protocol.asked.items():
        losses, draw, right, total = list[float](), torch.Generator().manual_seed(TESTED), 0, 0
        count = protocol.many if asked.get("long") else most
        for begin in range(0, protocol.tested, protocol.rows):
            rows = min(protocol.rows, protocol.tested - begin)
            inputs = batch(shown, processor, rows, count, draw, bool(asked.get("mismatched")))
            with torch.no_grad(), plugged(model, asked.get("plug", {})):
                losses.append(float(model(**inputs).loss))
                correct = answers(model, inputs, inputs.pop("labels"))
            right, total = right + sum(correct), total + len(correct)
        found[name] = {"accuracy": right / total, "loss": sum(losses) / len(losses)}
    return found
