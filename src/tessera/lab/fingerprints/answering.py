"""Golden runs of what answers and scores: our own decoder, hosts of several families with and without a part, sampling,
scoring."""

from __future__ import annotations

from typing import Any

from tessera.lab.behaviour import Numbers, summary

FAMILIES = ("llava", "llava_next", "qwen2_5_vl", "gemma3", "internvl", "tessera_vlm", "idefics3", "qwen3_vl")
"""Families of transformers whose tiny models need no other package."""
QUESTIONS = ("Is there a dog?", "How many things are there?", "What colour is the car on the left?")


def generation() -> Numbers:
    """Answers of a tiny composed model by every engine, greedy and drawn; what a session tells agents; choices of tokens."""
    import torch

    from tessera.generation.agent import SessionModel
    from tessera.generation.generate import Generator
    from tessera.generation.host_generate import HostGenerator
    from tessera.generation.sampling import Chooser, Sampling, warpers
    from tessera.generation.session import session_with
    from tessera.lab.contract.fixture import quiet, seeded
    from tessera.lab.protocols.tiny import tiny_model
    from tessera.world import World

    model, processor = tiny_model()
    samples = [World(split="train", width=64, height=64).sample(i, "scene") for i in (1, 2)]
    images = [sample.images() for sample in samples]
    drawn = Sampling(temperature=0.7, top_p=0.9, top_k=20, seed=3)
    found: dict[str, list[float] | str] = {}
    with quiet(), seeded():
        engines: dict[str, Any] = {
            "packed": Generator(model, processor),
            "cached": Generator(model, processor, own_decoder=False),
            "host": HostGenerator(model, processor),
            "host, cached": HostGenerator(model, processor, own_decoder=False),
        }
        for name, engine in engines.items():
            answers = engine.answer_batch([(i, list(QUESTIONS)) for i in images], 6)
            found[f"{name}: texts"] = str([[a.text for a in row] for row in answers])
            found[f"{name}: probabilities"] = [float(getattr(a, "probability", 0.0)) ** 0.25 for row in answers for a in row]
            said = engine.answer(engine.prefix(images[0]), list(QUESTIONS[:2]), 5, drawn)
            found[f"{name}: drawn"] = str([a.text for a in said])
        interface = SessionModel(session_with(model, processor), words=("yes", "no"))
        found["seer"] = [
            interface.yes(images[0], QUESTIONS[0]),
            *interface.losses(images[1], QUESTIONS[2], ["red", "light blue"]),
            *interface.losses([], QUESTIONS[2], ["red"]),
        ]
    logits = torch.randn(3, 12, generator=torch.Generator().manual_seed(1))
    top_k, top_p = (warpers(Sampling(temperature=1.0, **o))(None, logits).isfinite() for o in ({"top_k": 4}, {"top_p": 0.6}))
    found["likeliest"] = [float(x) for x in top_k.float().sum(1)]
    found["nucleus"] = summary(logits.softmax(-1) * top_p)
    for sampling in (Sampling(), drawn, Sampling(temperature=2.5, seed=1)):
        choose = Chooser(sampling, torch.device("cpu"))
        seen = [choose(logits) for _ in range(4)]
        found[f"chosen at {sampling.temperature}"] = str([tokens.tolist() for tokens, _ in seen])
        found[f"sureness at {sampling.temperature}"] = [float(x) for _, sure in seen for x in sure]
    return found


def hosts() -> Numbers:
    """Of tiny models of several families: logits and a generation, plain and with half of the visual tokens dropped at a layer,
    with and without a cache."""
    import torch

    from tessera import registry
    from tessera.config import build
    from tessera.errors import UserError
    from tessera.hosts.check import FamilyFixture
    from tessera.hosts.plug import plug
    from tessera.hosts.tiny_configs import RECIPES
    from tessera.lab.contract.fixture import quiet, seeded

    found: dict[str, list[float] | str] = {}
    target = registry.get("tokens", "uniform").target
    with quiet(), seeded():
        for name in FAMILIES:
            for images in (1, 2):
                fixture = FamilyFixture(name, images)
                if images == 1:
                    found[f"{name}: bare"] = summary(fixture.logits, 6)
                    found[f"{name}: bare, said"] = str(fixture.cached.tokens.tolist())
                for places in ("keep", "reindex"):
                    options = {"keep": [0.5, 0.25], "layers": [1, 3], "positions": places}
                    label = f"{name}, {images} images, {places}"
                    try:
                        with torch.no_grad(), plug(fixture.model, target(build(target.Config, options))) as host:
                            logits = fixture.forward()
                            said = fixture.generate(use_cache=True)
                            stages = [] if host.sequence is None else host.sequence.stages
                            rows = [float(x) for s in stages for row in s.index for x in (len(row), int(row.sum()))]
                    except UserError:
                        found[f"{label}: refused"] = "yes"
                        continue
                    found[f"{label}: logits"] = summary(logits, 6)
                    found[f"{label}: said"] = str(said.tokens.tolist())
                    found[f"{label}: scores"] = summary(said.logits, 4)
                    found[f"{label}: rows"] = rows
            if RECIPES[name].most_images > 1:  # rows that keep different numbers of tokens
                options = {"keep": [0.5, 0.25], "layers": [1, 3]}
                with torch.no_grad(), plug(fixture.model, target(build(target.Config, options))):
                    found[f"{name}, 2 and 1 images: logits"] = summary(fixture.model(**fixture.tiny.inputs((2, 1))).logits, 6)
    return found


def evaluation() -> Numbers:
    """Scores of fixed answers, what guessing gives, intervals, precision of boxes."""
    from tessera.evaluation.grounding import Located, average_precision, mean_average_precision, recall
    from tessera.evaluation.intervals import mean_of, paired_bootstrap, wilson
    from tessera.evaluation.items import EvaluationConfig, draw, fingerprint
    from tessera.evaluation.scoring import chance, majority, normalise, score
    from tessera.world import World
    from tessera.world.dataset import WorldConfig

    world = World(split="train")
    asked = [q for kind in ("scene", "text", "chart", "pair", "clip") for i in (1, 2) for q in world.sample(i, kind).questions()]
    first = {q.type: q.answer for q in asked}
    found: dict[str, list[float] | str] = {}
    scripts: dict[str, Any] = {
        "truth": lambda q: q.answer,
        "article": lambda q: f"The {q.answer}.",
        "capitals": lambda q: q.answer.upper(),
        "first of type": lambda q: first[q.type],
        "box": lambda q: "20 20 70 80",
        "more": lambda q: f"{q.answer} or not",
    }
    for name, say in scripts.items():
        scores = [score(q, say(q)) for q in asked]
        found[f"right, {name}"] = "".join(str(int(s.right)) for s in scores)
        found[f"overlap, {name}"] = [s.iou for s in scores if s.iou is not None]
    found["chance"] = [chance(q) for q in asked]
    found["majority"] = [majority(asked), majority(asked[::3])]
    found["normalised"] = str([normalise(t) for t in (" A Dog.", "the  red car", "an", "No..", "a", "The")])
    few = [wilson(3, 10), wilson(0, 8), wilson(8, 8), wilson(0, 0), mean_of([(3, 10), (0, 4), (5, 5)])]
    few.append(paired_bootstrap([[1, 0, 1], [1], [0, 1]] * 4, [[0, 0, 1], [1], [1, 0]] * 4))
    found["intervals"] = [x for i in few for x in (i.value, i.low, i.high)]
    truth = [[("dog", (0.1, 0.1, 0.4, 0.5)), ("cat", (0.5, 0.5, 0.9, 0.9))], [("dog", (0.2, 0.2, 0.6, 0.6))]]
    finds = [
        [
            Located("dog", (0.1, 0.1, 0.38, 0.5), 0.9),
            Located("dog", (0.12, 0.1, 0.4, 0.5), 0.8),
            Located("cat", (0.4, 0.5, 0.9, 0.9), 0.3),
        ],
        [Located("dog", (0.3, 0.3, 0.6, 0.6), 0.7), Located("cat", (0.1, 0.1, 0.2, 0.2), 0.95)],
    ]
    found["boxes"] = [
        average_precision(finds, truth),
        average_precision(finds, truth, 0.75),
        average_precision(finds, truth, pooled=True),
        mean_average_precision(finds, truth),
        recall(finds, truth),
        recall(finds, truth, 0.8),
    ]
    configs = [EvaluationConfig(world=WorldConfig(split="test", width=64, height=64), n=30, seed=seed) for seed in (0, 1)]
    found["drawn"] = str([fingerprint(draw(config)) for config in configs])
    return found | _asked(configs[0])


class Echo:
    """Answers with how many images there are, how bright the first is, and what is asked; or one and the same."""

    def __init__(self, always: str = "") -> None:
        self.always = always

    def answer_batch(self, rows: Any, max_new_tokens: int) -> Any:
        """See `Generates`."""
        from types import SimpleNamespace

        import numpy as np

        def text(images: Any, question: str) -> str:
            if self.always:
                return self.always
            bright = float(np.asarray(images[0], dtype=np.float64).mean()) if images else 0.0
            return f"{len(rows)} {len(images)} {bright:.0f} {question[:24]} {max_new_tokens}"

        return [[SimpleNamespace(text=text(images, question)) for question in questions] for images, questions in rows]


def _asked(config: Any) -> dict[str, list[float] | str]:
    """What reaches a model that is measured, and what is made of its answers."""
    from dataclasses import replace

    from tessera.evaluation.harness import ask, evaluate
    from tessera.evaluation.items import draw
    from tessera.lab.contract.fixture import quiet
    from tessera.lab.protocols.tiny import tiny_model

    model, processor = tiny_model()
    items = draw(config)[:7]
    with quiet():
        texts = {blind: ask(model, processor, items, blind=blind, batch_size=3, answers=Echo()) for blind in (False, True)}
        result = evaluate(model, processor, replace(config, n=60), answers=Echo("yes"))
    types = {name: (t.accuracy, t.n) for name, t in sorted(result.types.items()) if t.accuracy}
    return {
        "asked": str(texts[False]),
        "asked blind": str(texts[True]),
        "evaluated": str((result.accuracy, result.low, result.high, result.chance, result.n, types)),
    }
