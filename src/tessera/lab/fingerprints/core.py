"""Golden runs of what protocols use: the world, the trainer, engines that answer, scoring, shared layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tessera.lab.behaviour import Numbers
from tessera.lab.fingerprints.answering import evaluation, generation, hosts
from tessera.lab.fingerprints.layers import layers
from tessera.lab.fingerprints.training import labels, plans, trainer


def world() -> Numbers:
    """Scenes, questions, captions, truth, lists and pictures of every kind and split, at the version of the world;
    corruptions."""
    import hashlib
    from dataclasses import replace

    import numpy as np

    from tessera.world import World
    from tessera.world.contrasts import contrasts
    from tessera.world.corruptions import CORRUPTIONS, corrupt
    from tessera.world.dataset import VERSION
    from tessera.world.lists import lists
    from tessera.world.render import masks

    texts, truths, pictures, outlines = [], [], [], []
    for split in ("train", "test"):
        world = World(split=split)
        for kind in ("scene", "text", "chart", "pair", "clip"):
            for index in (11, 12):
                sample = world.sample(index, kind)
                texts += [f"{q.type}|{q.text}|{q.answer}|{q.choices}|{q.query}" for q in sample.questions()]
                texts += [f"{k}|{v}" for k, v in sorted(sample.captions().items())]
                texts += [f"{k}|{v}" for k, v in sorted(lists(sample).items())] if len(sample.frames) == 1 else []
                truths += [f"{t.name}|{t.box}|{t.visible:.4f}" for t in sample.truth()]
                truths += [str(r) for r in sample.relations()]
                images = sample.images()
                pictures += [float(np.asarray(image, dtype=np.float64).mean()) for image in images]
                pictures += [float((np.asarray(i, dtype=np.float64) ** 2)[::3, ::5].mean()) for i in images]
    few = World(split="train", things=(2, 2))
    for index in range(120):  # of two things both may overlap, which is seldom
        sample = few.sample(index, "scene")
        truths += [f"{t.name}|{t.box}|{t.visible:.4f}" for t in sample.truth()]
        outlines += [] if index % 5 else [float(m.mean()) for m in masks(replace(sample.frames[0], width=64, height=64))]
    pair = World(split="train").sample(4, "pair")
    texts += [str(contrast) for contrast in contrasts(pair)]
    damaged = [corrupt(pair.images()[0], name, strength) for name in CORRUPTIONS for strength in (2, 5)]

    def digest(lines: list[str]) -> str:
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

    arrays = [np.asarray(i, dtype=np.float64) for i in damaged]
    return {
        "version": str(VERSION),
        "questions and captions": digest(texts),
        "truth": digest(truths),
        "pictures": pictures,
        "outlines": outlines,
        "damaged": [x for v in arrays for x in (float(v.mean()), float(v[::3, ::5].std()))],
    }


def verdicts() -> Numbers:
    """What the judge says of fixed outcomes of both units: estimates, intervals, what would have been shown, verdicts."""
    import numpy as np

    from tessera.lab.experiment import Experiment, Paper, Vary, beats, retains, worse
    from tessera.lab.judge import judge
    from tessera.lab.outcomes import Outcomes
    from tessera.lab.protocols.answering import Answering
    from tessera.lab.protocols.further_training import FurtherTraining

    found: dict[str, list[float] | str] = {}
    rng = np.random.default_rng(0)
    for protocol in (Answering(), FurtherTraining(tests={"a": {}})):
        for gain, control in ((0.0, 0.4), (0.12, 0.4), (-0.12, 0.4), (0.12, 0.85)):  # the last control does not fail
            levels = {"treatment": 0.7 + gain, "baseline": 0.7, "control": control}
            shared, counts = rng.normal(0, 0.05, 12), np.full(12, 5.0)
            arms = {n: Outcomes({"accuracy": (5 * (v + shared + rng.normal(0, 0.04, 12)), counts)}) for n, v in levels.items()}
            for name, primary in (("beats", beats("baseline")), ("retains", retains("baseline", Paper(0.95, "a table")))):
                experiment = Experiment(
                    id="golden", promise="", protocol=protocol, treatment=Vary("t"), baseline=Vary("b"), control=Vary("c"),
                    primary=primary, valid_if=(worse("control"),),
                )  # fmt: skip
                judged = judge(experiment, arms, 1)
                one = judged.primary
                assert one is not None
                label = f"{protocol.unit}, {gain:+g}, control {control:g}, {name}"
                found[label] = [one.value, one.low, one.high, one.margin, one.level, one.detectable]
                found[f"{label}: verdict"] = judged.verdict
    return found


CORE: Mapping[str, Callable[[], Numbers]] = {
    "world": world,
    "trainer": trainer,
    "plans": plans,
    "labels": labels,
    "generation": generation,
    "hosts": hosts,
    "evaluation": evaluation,
    "layers": layers,
    "judge": verdicts,
}
