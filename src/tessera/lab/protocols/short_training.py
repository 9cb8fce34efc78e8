"""A small composed model is trained in seconds on questions about a small pool of scenes and tested on other scenes.

What its towers say is computed once; all other parts learn from a start that the arms of a seed share, on the same batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from tessera.errors import TesseraError
from tessera.lab.experiment import Arm, Build
from tessera.lab.outcomes import Outcomes, per_seed
from tessera.lab.protocols.base import Protocol

if TYPE_CHECKING:
    from tessera.lab.behaviour import Numbers
    from tessera.lab.lab import Lab
    from tessera.lab.outcomes import Unit
    from tessera.lab.scenes import Scenes

TOWER: dict[str, Any] = {"kind": "conv_vit", "image_size": 112, "patch_size": 8, "width": 192, "depth": 6, "heads": 3}
"""The object expert's."""
SMALL: dict[str, Any] = {"layers": 2, "width": 128, "hidden": 352}
"""Sizes of a language model that learns in seconds."""
TESTS = ("own", "shuffled question", "shuffled routers", "mismatched image", "no image")
"""How a trained model is asked: as in training; its connector reads the question of another row; its routers name, for each
expert, the next one; it is shown the next scene; it is shown none."""


BEFORE = 10_000
"""Added to the seed of the data order of what comes before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortTraining(Protocol):
    """parts: of the model, by socket; language: sizes of its language model, unless it begins as a reference model's; start:
    socket -> reference model whose weights it begins with, where the model has such a socket; before: steps in which `parts` are
    trained first, whose weights all arms of a seed go on from (experts all take those of the dense MLP); train: one mapping
    socket -> multiplier for each stage, which share the steps.
    types, things: of the questions and scenes; scenes, test_scenes: how many; most: questions of a scene; alone: one question a
    row for all arms (for parts that read the question), in place of all questions about an image behind one another. images: of a
    batch; lr, muon_lr: peak rates. tests: of `TESTS`, those that some arm asks for.

    Arms: `Build(name, settings, **sockets)`; a socket that is None is left out. Settings of an arm: test; train in place of the
    protocol's; fresh, sockets that begin with random weights in spite of `start`; coarse, side of the squares of the towers'
    raster in which every place says what the middle says, in training and test.
    Metrics: accuracy (all tokens of the answer right under teacher forcing, its end included); loss (mean of the last tenth).
    """

    name: ClassVar[str] = "short_training"
    version: ClassVar[int] = 1
    unit: ClassVar[Unit] = "seed"
    looks: ClassVar[tuple[int, ...]] = (5, 8, 12)
    arms: ClassVar[tuple[type[Arm], ...]] = (Build,)

    parts: Mapping[str, Any]
    language: Mapping[str, Any] = field(default_factory=lambda: dict(SMALL))
    start: Mapping[str, str] = field(default_factory=lambda: {"encoders.0": "object-expert"})
    train: tuple[Mapping[str, float], ...] = ({"*": 1.0, "encoders.*": 0.0},)
    types: tuple[str, ...] = ("category", "attribute", "existence")
    things: tuple[int, int] = (1, 3)
    scenes: int = 600
    test_scenes: int = 120
    most: int = 6
    alone: bool = False
    before: int = 0
    steps: int = 200
    images: int = 8
    lr: float = 3e-3
    muon_lr: float = 0.02
    tests: tuple[str, ...] = ("own",)

    def models(self) -> tuple[str, ...]:
        """Those that it starts with."""
        return tuple(dict.fromkeys(self.start.values()))

    def measure(self, lab: Lab, arm: Arm, look: int, first: int, count: int) -> Outcomes:
        """Seeds first .. first + count - 1. Arms that differ in their test alone share one training of a seed."""
        assert isinstance(arm, Build)
        test, training = split(self, arm)
        found = []
        for seed in range(first, first + count):

            def make(seed: int = seed) -> dict[str, float]:
                return trained(lab, self, arm, seed, *train_and_test_data(lab, self, arm, seed))

            found.append(lab.kept([self.plain(), training, seed], self.depends(arm), make))
        return per_seed({"accuracy": [f[test] for f in found], "loss": [f["loss"] for f in found]})

    @classmethod
    def golden(cls, lab: Lab) -> Numbers:
        """Some steps of tiny models: packed and one by one, one and two stages, every test."""
        from tessera.lab.behaviour import summary

        tower = {"kind": "conv_vit", "image_size": 32, "patch_size": 8, "width": 24, "depth": 1, "heads": 2}
        reading = {"kind": "qformer", "queries": 2, "width": 16, "depth": 1, "heads": 2, "mlp_ratio": 1}
        sizes = {"layers": 2, "width": 32, "hidden": 48}
        common: dict[str, Any] = {"parts": {"encoders": [tower]}, "start": {}, "language": sizes, "steps": 24, "images": 4}
        common |= {"scenes": 12, "test_scenes": 6, "most": 3, "types": ("existence",)}
        plain = cls(**common, tests=("own", "mismatched image", "no image"))
        alone = cls(**common, alone=True, tests=("own", "shuffled question"))
        staged = cls(**common, train=({"connector": 1.0}, {"*": 1.0, "encoders.*": 0.0}))
        mixture = {"kind": "moe_llava", "experts": 3, "per_token": 2}
        dense = {**common["parts"], "connector": {"kind": "linear"}, "coupling": {"kind": "prefix"}}
        copied = cls(**{**common, "parts": dense, "steps": 12}, before=12, tests=("own", "shuffled routers"))
        arms: Any = (
            ("packed", plain, Build("linear", connector={"kind": "linear"})),
            ("alone", alone, Build("q", connector=reading)),
        )
        found: dict[str, list[float] | str] = {}
        arms = (*arms, ("staged", staged, Build("mlp", connector={"kind": "mlp"})))
        arms = (*arms, ("copied", copied, Build("mixture", {"train": [{"coupling": 1.0}]}, coupling=mixture)))
        for label, protocol, arm in arms:
            train_data, asked = train_and_test_data(lab, protocol, arm, 0)
            made = trained(lab, protocol, arm, 0, train_data, asked)
            found |= {f"{label}: {name}": [value] for name, value in sorted(made.items())}
            found[f"{label}: pool"] = [float(len(train_data.questions)), *summary(train_data.seen)]
        return found


def split(protocol: ShortTraining, arm: Build) -> tuple[str, dict[str, Any]]:
    """(how the arm is tested, what of it shapes the training, as plain data). Raises `TesseraError` for unknown settings."""
    settings = dict(arm.settings)
    test = settings.pop("test", "own")
    if wrong := set(protocol.tests) - set(TESTS):
        raise TesseraError(f"short_training knows the tests {', '.join(TESTS)}, not {', '.join(sorted(wrong))}.")
    if test not in protocol.tests:
        raise TesseraError(f"arm {arm.name!r} is tested by {test!r}, the protocol by {', '.join(protocol.tests)}.")
    if wrong := settings.keys() - {"train", "fresh", "coarse"}:
        raise TesseraError(
            f"arm {arm.name!r}: short_training knows test, train, fresh and coarse, not {', '.join(sorted(wrong))}."
        )
    plain = Build("", settings, **arm.sockets).plain()
    return test, plain


def train_and_test_data(lab: Lab, protocol: ShortTraining, arm: Build, seed: int) -> tuple[Scenes, Scenes]:
    """Training and test data, with what the arm's towers see (the towers are the same for all seeds)."""
    from tessera.lab.scenes import coarse, scenes

    model, processor = built(lab, protocol, arm, 0)

    def of(split: str, count: int) -> Scenes:
        kinds, most = protocol.types, protocol.most
        found = scenes(model, processor, count, split=split, types=kinds, things=protocol.things, most=most, seed=seed)
        if "coarse" in arm.settings:
            found.seen = coarse(found.seen, int(arm.settings["coarse"]))
        return found

    return of("train", protocol.scenes), of("test", protocol.test_scenes)


def trained(lab: Lab, protocol: ShortTraining, arm: Build, seed: int, train_data: Scenes, asked: Scenes) -> dict[str, float]:
    """Accuracy in each of the protocol's tests, and the loss, of the arm's model trained with a seed."""
    import torch

    from tessera.lab.fit import fit
    from tessera.lab.scenes import accuracy, batch, remembered
    from tessera.training.plan import OptimConfig

    model, processor = built(lab, protocol, arm, seed)
    alone = protocol.alone or model.reads_question

    def batch_of_step(step: int, order: torch.Generator) -> Mapping[str, torch.Tensor]:
        chosen = torch.randint(len(train_data.asked), (protocol.images,), generator=order).tolist()
        return batch(train_data, processor, [train_data.asked[i] for i in chosen], alone=alone)

    optim = OptimConfig(lr=protocol.lr, muon_lr=protocol.muon_lr)
    if protocol.before:
        base, _ = built(lab, protocol, Build("protocol"), seed)
        fit(base, batch_of_step, protocol.before, seed=BEFORE + seed, optim=optim, train=protocol.train)
        _take_over(base, model, [key for key in protocol.parts if key == "coupling" and key in arm.sockets])
    train = arm.settings.get("train", protocol.train)
    teacher = model.sockets().get("teacher")
    with nullcontext() if teacher is None else remembered(teacher, train_data.memory):
        losses = fit(model, batch_of_step, protocol.steps, seed=seed, optim=optim, train=train)
    tests = [name for name in protocol.tests if able(model, name)]
    last = losses[-max(1, len(losses) // 10) :]
    return {name: accuracy(model, processor, asked, name, alone) for name in tests} | {"loss": sum(last) / len(last)}


def built(lab: Lab, protocol: ShortTraining, arm: Build, seed: int) -> tuple[Any, Any]:
    """The arm's model before its training and its processor. Whatever it has in common with the protocol's own model begins
    alike, and what `start` names begins with a reference model's weights."""
    import torch

    parts, text = {**protocol.parts, **arm.sockets}, _text(lab, protocol)
    state = torch.get_rng_state()
    try:
        model, processor = _composed(parts, text, seed)
        own: Any = _composed(protocol.parts, text, seed)[0] if parts != protocol.parts else None
    finally:
        torch.set_rng_state(state)
    if own is not None:
        _share(own, model, [key for key in parts if _kind(parts[key]) != _kind(protocol.parts.get(key))])
    fresh = set(arm.settings.get("fresh", ()))
    if wrong := fresh - protocol.start.keys():
        raise TesseraError(f"arm {arm.name!r}: {', '.join(sorted(wrong))} begins with random weights anyway.")
    sockets = model.sockets()
    for socket, source in protocol.start.items():
        if socket in sockets and socket not in fresh:
            other, _ = lab.reference(source)
            sockets[socket].load_state_dict(
                (other.encoder if hasattr(other, "encoder") else other.sockets()[socket]).state_dict()
            )
    return model.eval(), processor


def _text(lab: Lab, protocol: ShortTraining) -> dict[str, Any]:
    """Configuration of the language model: that of the reference model that it begins as, or one of the protocol's sizes."""
    from tessera.recipes.nano import language

    if "language_model" in protocol.start:
        made: dict[str, Any] = lab.reference(protocol.start["language_model"])[0].config.text_config.to_dict()
        return made
    sizes = {key: protocol.language[key] for key in ("layers", "width", "hidden")}
    text: dict[str, Any] = language(**sizes)
    return text


def _composed(parts: Mapping[str, Any], text: Mapping[str, Any], seed: int) -> tuple[Any, Any]:
    """A composed model with random weights of the seed's, with the plain attention."""
    import torch

    from tessera.recipes.recipe import Recipe
    from tessera.training.plan import TrainConfig
    from tessera.training.run import build

    given = {key: value for key, value in parts.items() if value is not None}
    torch.manual_seed(seed)
    made = {"parts": given, "text_config": dict(text)}
    return build(Recipe(name="short", about="An experiment's.", model=made, training=TrainConfig(device="cpu")))


def able(model: Any, test: str) -> bool:
    """Whether there is something to shuffle."""
    from tessera.nn.moe import MixtureOfExperts

    if test == "shuffled routers":
        return any(isinstance(module, MixtureOfExperts) for module in model.modules())
    return test != "shuffled question" or bool(model.reads_question)


def _take_over(base: Any, model: Any, others: list[str]) -> None:
    """Weights of the sockets of `base`, but for `others`, which hold another part."""
    sockets = model.sockets()
    for name, socket in base.sockets().items():
        if name in sockets and name not in others:
            sockets[name].load_state_dict(socket.state_dict())


def _share(own: Any, model: Any, different: list[str]) -> None:
    """Copies parameters of the same name and shape, but for those of sockets that hold another part."""
    import torch

    weights = dict(own.named_parameters())
    skipped = tuple(f"model.{key}." for key in different)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            source = weights.get(name)
            if source is not None and source.shape == parameter.shape and not name.startswith(skipped):
                parameter.copy_(source)


def _kind(spec: Any) -> Any:
    """The kind of a part, or the kinds of a list of parts."""
    if isinstance(spec, Mapping):
        return spec.get("kind")
    return [_kind(one) for one in spec] if isinstance(spec, (list, tuple)) else spec
