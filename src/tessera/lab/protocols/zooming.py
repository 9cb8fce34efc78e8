"""Visual search: a thing too small for one view of the whole picture is searched for, and then asked about.

Nothing is trained, so the units are pictures. All arms are asked the same question by the same model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tessera import registry
from tessera.lab.claims import part_module
from tessera.lab.experiment import Arm, Vary
from tessera.lab.outcomes import Outcomes
from tessera.lab.protocols.base import Protocol, chosen

if TYPE_CHECKING:
    from PIL import Image

    from tessera.generation.agent import SessionModel
    from tessera.lab.behaviour import Numbers
    from tessera.lab.lab import Lab
    from tessera.lab.outcomes import Unit
    from tessera.world.scene import Question

SEARCHES = ("search", "random", "glance")


@dataclass(frozen=True, slots=True, kw_only=True)
class Zooming(Protocol):
    """A scene of one thing, as large as the model reads, lies anywhere in an otherwise empty picture of `times` its side: hardly
    ever does it fit into one region of a search, whose borders run through it.

    part: of socket `agents`; model: a reference model; seed: of the scenes.

    Arms: `Vary(name, look=...)`: "search", the part's best-first search, whose confidences the model gives; "random", the same
    search with random confidences; "glance", the picture as a whole. Whether the question can be answered from a region is asked
    as whether the thing is there; whether zooming in might show it, as whether there is an object.
    Metrics: accuracy; calls (of the model, its answer among them); visits (regions that were looked at).
    """

    name: ClassVar[str] = "zooming"
    version: ClassVar[int] = 2
    unit: ClassVar[Unit] = "image"
    looks: ClassVar[tuple[int, ...]] = (40, 100, 200)
    arms: ClassVar[tuple[type[Arm], ...]] = (Vary,)

    part: str = "zoomeye"
    model: str = "nano-glimpses"
    times: int = 8
    seed: int = 0

    def models(self) -> tuple[str, ...]:
        """The model that searches and answers."""
        return (self.model,)

    def measure(self, lab: Lab, arm: Arm, look: int, first: int, count: int) -> Outcomes:
        """Pictures first .. first + count - 1 of those that can be asked about."""
        return self._measured(*lab.reference(self.model), arm, first, count)

    def _measured(self, model: Any, processor: Any, arm: Arm, first: int, count: int) -> Outcomes:
        import random

        import numpy as np

        from tessera.evaluation.scoring import score
        from tessera.generation.agent import SessionModel
        from tessera.generation.session import session_with
        from tessera.lab.glimpses import GROUND

        how, size = chosen(arm, look=SEARCHES)["look"], int(model.image_size)
        module = part_module(registry.get("agents", self.part))
        target = registry.get("agents", self.part).target
        agent = target(target.Config(background=GROUND))
        interface = SessionModel(session_with(model, processor), ("yes", "no"), size=size, max_new_tokens=8)
        rows = []
        for number, (picture, name, question) in enumerate(far_away(size, self.times, self.seed, first + count)[first:]):
            before, visits = interface.calls, 0
            if how == "glance":
                shown = [picture.resize((size, size))]
            else:
                rng = random.Random(first + number)
                confidence = asked(agent, interface, picture, name) if how == "search" else lambda *_, rng=rng: rng.uniform(-1, 1)
                found = agent.search(module.grow(picture.size, size), question.text, name, confidence)
                visits = found.pops
                shown = [view.image for view in agent.look(picture, found.nodes[:1], size)]
            right = score(question, interface.ask(shown, question.text)).right
            rows.append((float(right), interface.calls - before, visits))
        columns = np.asarray(rows, dtype=np.float64).T
        return Outcomes({name: (columns[n], np.ones(count)) for n, name in enumerate(("accuracy", "calls", "visits"))})

    @classmethod
    def golden(cls, lab: Lab) -> Numbers:
        """A tiny random model looks for three things in every way; the pictures and questions."""
        import numpy as np

        from tessera.lab.glimpses import GROUND
        from tessera.lab.protocols.tiny import tiny_model

        found: dict[str, list[float] | str] = {}
        for how in SEARCHES:
            outcomes = cls(times=4)._measured(*tiny_model(), Vary(how, look=how), 0, 3)
            for metric, (totals, _) in outcomes.metrics.items():
                found[f"{how}: {metric}"] = totals.tolist()
        pictures = far_away(32, 4, 0, 4)
        found["confidences"] = _sure(*tiny_model(), *pictures[0][:2])
        found["asked"] = " | ".join(f"{name}: {q.text} {q.answer}" for _, name, q in pictures)
        found["pictures"] = [float(np.asarray(p, dtype=np.float64)[::3, ::5].mean()) for p, _, _ in pictures]
        places = [np.nonzero((np.asarray(p) != np.asarray(GROUND)).any(-1)) for p, _, _ in pictures]
        found["places"] = [float(edge) for across in places for at in across for edge in (at.min(), at.max())]
        return found


def _sure(model: Any, processor: Any, picture: Image.Image, name: str) -> list[float]:
    """What a model gives for the whole picture and one region of it, of every kind."""
    from tessera.generation.agent import SessionModel
    from tessera.generation.session import session_with

    part = registry.get("agents", "zoomeye")
    interface = SessionModel(session_with(model, processor), ("yes", "no"), size=32, max_new_tokens=8)
    root = part_module(part).grow(picture.size, 32)
    confidence = asked(part.target(part.target.Config()), interface, picture, name)
    return [confidence(node, kind, name) for node in (root, root.children[1]) for kind in ("existence", "latent")]


def asked(agent: Any, interface: SessionModel, picture: Image.Image, name: str) -> Callable[[Any, str, str], float]:
    """Confidences 2 p(yes) - 1 of a model, each asked for once: (node, kind, about) -> -1..1."""
    from tessera.lab.glimpses import ANYTHING
    from tessera.world.questions.phrasing import article

    known: dict[tuple[int, str], float] = {}

    def confidence(node: Any, kind: str, about: str) -> float:
        question = ANYTHING if kind == "latent" else f"Is there {article(name)} {name}?"
        if (id(node), question) not in known:
            views = [view.image for view in agent.look(picture, [node], interface.size)]
            known[id(node), question] = 2 * interface.yes(views, question) - 1
        return known[id(node), question]

    return confidence


def far_away(side: int, times: int, seed: int, count: int) -> list[tuple[Image.Image, str, Question]]:
    """(picture, name of its thing, question about the thing's kind or look) of the first `count` scenes that have one, each
    at a whole pixel that any other is as likely as."""
    from PIL import Image

    from tessera.lab.glimpses import GROUND
    from tessera.world import World
    from tessera.world.rng import Rng

    size = max(64, side)  # the world draws nothing smaller
    world = World(split="test", kinds={"scene": 1.0}, things=(1, 1), width=size, height=size, seed=seed)
    found: list[tuple[Image.Image, str, Question]] = []
    index = 0
    while len(found) < count:
        sample = world[index]
        index += 1
        questions = [q for q in sample.questions(("category", "attribute")) if q.form == "open"]
        if questions and len(sample.truth()) == 1:
            rng, room = Rng("far away", seed, index), (times - 1) * side + 1
            picture = Image.new("RGB", (times * side, times * side), GROUND)
            picture.paste(sample.images()[0].resize((side, side)), (rng.below(room), rng.below(room)))
            found.append((picture, sample.truth()[0].name, questions[0]))
    return found
