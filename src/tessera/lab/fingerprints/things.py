"""Behaviour of parts without a model around them on fixed samples of the world and scripted answers: engines, benchmarks, probes,
grounding, agents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tessera.lab.behaviour import digest
from tessera.lab.contract.fixture import Fixture

LAYERS = 6
"""Layers of the tiny hosts (`hosts.tiny_configs.LAYERS`), for which host parts give their example options."""
SMALL = {"n": 6, "pictures": 12, "neighbours": 3, "scenes": 3, "per_axis": 2}
"""Sizes that parts are tried with in place of larger ones; an engine's `pictures`, which is small, stays."""


def shrunk(fixture: Fixture) -> dict[str, Any]:
    """Smaller sizes for the part's options, where it has them."""
    if fixture.Config is None:
        return {}
    now = fixture.config()
    return {k: v for k, v in SMALL.items() if isinstance(held := getattr(now, k, None), int) and held > v}


def made(fixture: Fixture) -> Any:
    """The part with small sizes."""
    return fixture.target(fixture.config(**shrunk(fixture))) if fixture.Config is not None else fixture.target()


def engine(fixture: Fixture) -> dict[str, Any]:
    """Questions about eight scenes of the training split: a digest, counts of their programs, and the first of each program."""
    from tessera.data.scene_graph import of_samples
    from tessera.world import World

    world = World(split="train", kinds={"scene": 1.0})
    annotated = of_samples([world.sample(i, "scene") for i in range(8)])
    found = list(fixture.made().instructions(annotated))
    lines = []
    for one in found:
        q = one.question
        lines.append(f"{'+'.join(p.name for p in one.pictures)}|{q.type}|{q.text}|{q.answer}|{sorted(q.choices)}")
    counts = Counter(i.question.type for i in found)
    record = next(iter(fixture.made().records(annotated)), None)
    return {
        "instructions": digest(lines),
        "counts": str(sorted(counts.items())),
        "queries": digest([str(i.question.query) for i in found]),
        "record": "" if record is None else str(record.messages),
    }


def benchmark(fixture: Fixture) -> dict[str, Any]:
    """What is asked about which pictures, and what scripted answers are worth."""
    import numpy as np

    part = made(fixture)
    items = list(part.items())
    asked = [q for item in items for q in item.questions]
    found: dict[str, Any] = {
        "items": digest([f"{item.sample.index}|{q.type}|{q.text}|{q.answer}" for item in items for q in item.questions]),
        "pictures": [float(np.asarray(item.sample.images()[0], dtype=np.float64).mean()) for item in items[:6]],
        "count": [float(len(items)), float(len(asked))],
    }
    first = {q.type: q.answer for q in asked}
    scripts: dict[str, Callable[[int, Any], str]] = {
        "truth": lambda n, q: f" {q.answer.capitalize()}.",
        "yes": lambda n, q: "yes",
        "every third wrong": lambda n, q: "no" if n % 3 == 0 else q.answer,
        "one per type": lambda n, q: first[q.type],
    }
    for how, say in scripts.items():
        number = 0
        said = []
        for item in items:
            said.append([say(number + k, q) for k, q in enumerate(item.questions)])
            number += len(item.questions)
        scores = part.score(items, said)
        values = [x for _, i in sorted(scores.numbers.items()) for x in (i.value, i.low, i.high)]
        found[f"scores, {how}"] = [float(x) for x in values]
        found[f"outcomes, {how}"] = str([list(o) for o in scores.outcomes])
    return found


def probe(fixture: Fixture) -> dict[str, Any]:
    """What the probe finds in a tiny model with random weights."""
    from tessera.lab.protocols.tiny import tiny_model

    smaller = shrunk(fixture)
    if hasattr(fixture.config(), "world"):
        smaller["world"] = {"split": "test", "width": 64, "height": 64}
    result = fixture.target(fixture.config(**smaller)).run(*tiny_model())
    found: dict[str, Any] = {n: [i.value, i.low, i.high] for n, i in sorted(result.numbers.items())}
    found |= {f"profile {n}": [float(x) for x in values] for n, values in sorted(result.profile.items())}
    return found | {"n": [float(result.n)]}


def grounding(fixture: Fixture) -> dict[str, Any]:
    """What is found in the answers of a scripted model whose every token is surer than the one before."""
    from tessera.lab.protocols.tiny import tiny_model
    from tessera.world import World

    _, processor = tiny_model()
    samples = [World(split="train").sample(i, "scene") for i in (3, 4)]
    part = fixture.made()
    images = [s.images()[0] for s in samples]
    spelled = "dog 10 20 30 40, cat 05 06 50 60, dog 12 20 31 42"
    found = part.locate(Scripted(processor.tokenizer, spelled), processor, images, [[], ["dog", "cat"]])
    return {
        "labels": str([[f.label for f in finds] for finds in found]),
        "boxes": [x for finds in found for f in finds for x in (*f.box, f.score)],
    }


class Scripted:
    """A model whose `generate` always writes one text, token k with logit 1 + k / 4 above the others'."""

    device = "cpu"

    def __init__(self, tokenizer: Any, text: str) -> None:
        self.ids, self.size = tokenizer(text, add_special_tokens=False)["input_ids"], len(tokenizer)

    def generate(self, *, input_ids: Any, **_: Any) -> Any:
        """Sequences and logits, as transformers gives them."""
        from types import SimpleNamespace

        import torch

        rows = len(input_ids)
        new = torch.tensor([self.ids]).expand(rows, -1)
        logits = []
        for step, token in enumerate(self.ids):
            row = torch.zeros(rows, self.size)
            row[:, token] = 8 + step / 4
            logits.append(row)
        return SimpleNamespace(sequences=torch.cat([input_ids, new], 1), logits=tuple(logits))


class ScriptedModel:
    """A `ModelInterface` that answers by the size and the mean of pictures and the length of what is asked."""

    size = 64

    def __init__(self) -> None:
        self.prompts: list[str] = []

    def _number(self, images: Sequence[Any], text: str) -> float:
        import numpy as np

        seen = [float(np.asarray(i.convert("L"), dtype=np.float64)[::4, ::4].std()) / 40 for i in images]
        self.prompts.append(f"{[i.size for i in images]}|{text}")
        return (sum(seen) + 0.137 * len(text)) % 1.0

    def ask(self, images: Sequence[Any], question: str) -> str:
        """A sentence that names what every agent may ask for."""
        self._number(images, question)
        return "So I need the information about the following objects: dog and all cups."

    def yes(self, images: Sequence[Any], question: str) -> float:
        """In [0, 1]."""
        return self._number(images, question)

    def losses(self, images: Sequence[Any], question: str, answers: Sequence[str]) -> list[float]:
        """One for each answer."""
        return [self._number(images, question + answer) for answer in answers]


def agent(fixture: Fixture) -> dict[str, Any]:
    """What an agent asks a scripted model, what it was told in the end, and where it looked."""
    from tessera.world import World

    found: dict[str, Any] = {}
    for at, (width, height) in enumerate(((256, 256), (400, 220))):
        picture = World(split="train", width=width, height=height).sample(5 + at, "scene").images()[0]
        for cues in (None, ["dog"], ["all cups", "fire engine"]):
            interface = ScriptedModel()
            told = fixture.made().answer(interface, picture, "What colour is the dog?", ["red", "light blue", "green"], cues)
            name = f"{width} x {height}, {cues}"
            found[f"{name}: asked"] = digest(interface.prompts)
            found[f"{name}: told"] = str((told.text, told.cues, told.pops, told.asked, len(interface.prompts)))
            found[f"{name}: boxes"] = [float(x) for box in told.boxes for x in box]
    return found


BEHAVIOURS: Mapping[str, Callable[[Fixture], dict[str, Any]]] = {
    "engines": engine,
    "benchmarks": benchmark,
    "probes": probe,
    "grounding": grounding,
    "agents": agent,
}
