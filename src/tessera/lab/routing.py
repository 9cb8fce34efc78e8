"""Training of a MoVA on cut-outs of images with frozen experts, and of its router. Imports torch; the
protocol `expert_routing` imports it inside functions.

Legend: I images, N places of a cut-out, E experts, Q words of the question.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tessera.lab.fit import descend
from tessera.lab.protocols.base import APART
from tessera.nn.tokens import QuestionText, VisualTokens, from_grid

READING = ("reading", "chart")
"""Question types that are about characters; the others are about things."""
BATCH, CUT, WORDS = 16, 7, 64
"""Images of a step; side of the cut-outs of the grid; channels of the questions' words."""
RATE = 2e-3
"""Peak learning rate."""


class FirstLayer:
    """The first layer of a tower: it sees colours and edges, and names nothing."""

    def __init__(self, tower: Any) -> None:
        self.tower, self.image_size, self.grid = tower, tower.image_size, tower.grid

    def __call__(self, pixel_values: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, N, D]."""
        found: Tensor = self.tower.levels(pixel_values)[0]
        return found


@dataclass(slots=True)
class CutoutQuestions:
    """Questions about cut-outs of images.

    features  base and experts, [I, N, D] each
    words     [I, Q, WORDS], there [I, Q] bool
    labels    [I, N] int64, what is asked for at each place: a category, or, behind those, a character; -100 elsewhere
    reading   [I] bool, whether characters are asked for
    """

    features: list[Tensor]
    words: Tensor
    there: Tensor
    labels: Tensor
    reading: Tensor

    def sets(self, rows: Tensor) -> list[VisualTokens]:
        """What the part is given."""
        return [from_grid(f[rows], (CUT, CUT)) for f in self.features]

    def question(self, rows: Tensor) -> QuestionText:
        """What the part is asked."""
        return QuestionText(embeddings=self.words[rows], mask=self.there[rows])


def asked_about(towers: Sequence[Any], split: str, count: int, seed: int) -> CutoutQuestions:
    """Samples with both kinds of questions in equal shares; the cut-out is where most of what is asked about lies."""
    from tessera.lab.places import categories, look
    from tessera.models.tokenizer import build_tokenizer
    from tessera.world import World
    from tessera.world.vocabulary import words

    world = World(split=split, kinds={"scene": 0.5, "text": 0.5}, things=(4, 12))
    samples: list[Any] = []
    texts: list[str] = []
    reading: list[bool] = []
    index = APART * seed
    while len(samples) < count:
        written = len(samples) % 2 == 0
        sample = world.sample(index, "text" if written else "scene")
        fitting = [q.text for q in sample.questions() if (q.type in READING) == written]
        if fitting and (written or sample.frames[0].things):
            samples.append(sample)
            texts.append(sample.rng("asked").choice(fitting))
            reading.append(written)
        index += 1
    seen = look(towers, samples)
    about = torch.tensor(reading)
    wanted = torch.where(seen.character >= 0, seen.character + len(categories()), -100)
    labels = torch.where(about[:, None], wanted, seen.category)
    features, cut = _cut(seen.features, labels)
    tokenizer = build_tokenizer(words())
    ids = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    table = torch.randn(len(tokenizer), WORDS, generator=torch.Generator().manual_seed(0))
    return CutoutQuestions(features, table[ids["input_ids"]], ids["attention_mask"].bool(), cut, about)


def _cut(features: Sequence[Tensor], labels: Tensor) -> tuple[list[Tensor], Tensor]:
    """The CUT x CUT places of each image with the most labels."""
    side = math.isqrt(labels.shape[1])
    known = F.avg_pool2d((labels >= 0).float().view(-1, 1, side, side), CUT, stride=1).flatten(1)
    best = known.argmax(1)
    step = side - CUT + 1
    rows = (best // step)[:, None] + torch.arange(CUT)
    columns = (best % step)[:, None] + torch.arange(CUT)
    places = (rows[:, :, None] * side + columns[:, None]).flatten(1)
    return [f.gather(1, places[..., None].expand(-1, -1, f.shape[-1])) for f in features], labels.gather(1, places)


def trained(train: CutoutQuestions, test: CutoutQuestions, seed: int, steps: int, router_steps: int) -> dict[str, float]:
    """One training of adapter, labels and router; accuracies."""
    from tessera import registry
    from tessera.lab.claims import part_module
    from tessera.lab.places import categories, characters

    part: Any = part_module(registry.get("experts", "mova"))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        widths = [f.shape[-1] for f in train.features]
        experts = len(widths) - 1
        config = part.MoVA.Config(blocks=2, routing="router", most=1, downsample=False)
        mova: Any = part.MoVA(config, widths, [(CUT, CUT)] * len(widths), text_width=WORDS)
        head = nn.Linear(mova.width, len(categories()) + characters())

        def loss(rows: Tensor, named: Tensor) -> Tensor:
            """[rows], mean over the labelled places of each image."""
            said = head(mova(train.sets(rows), train.question(rows), named).features)
            each = F.cross_entropy(said.transpose(1, 2), train.labels[rows], ignore_index=-100, reduction="none")
            return each.sum(1) / (train.labels[rows] >= 0).sum(1).clamp_min(1)

        assert mova.router is not None
        router = set(mova.router.parameters())
        learned = [p for p in [*mova.parameters(), *head.parameters()] if p not in router]
        descend(learned, lambda order: loss(*_draws(train, experts, order)).mean(), steps, lr=RATE, seed=seed)
        mova.eval()
        rows = torch.arange(len(train.labels))
        with torch.no_grad():
            alone = torch.stack([loss(rows, _only(e, experts, len(train.labels))) for e in range(experts)], 1)
            labels = part.routing_labels(alone, loss(rows, torch.zeros(len(train.labels), experts, dtype=torch.bool)), most=1)

        def route(asked: CutoutQuestions, rows: Tensor) -> Tensor:
            assert mova.router is not None
            return mova.router(asked.question(rows), asked.features[0][rows], (CUT, CUT))

        def router_step(order: torch.Generator) -> Tensor:
            chosen = torch.randint(len(train.labels), (BATCH,), generator=order)
            found: Tensor = part.router_loss(route(train, chosen), labels[chosen])
            return found

        descend(router, router_step, router_steps, lr=RATE, seed=seed)
        every = torch.arange(len(test.labels))
        with torch.no_grad():
            named = part.Router.choose(route(test, every), 1)
            chance = F.one_hot(torch.randint(experts, (len(every),)), experts).bool()
            ways = {
                "routed": named,
                "all experts": torch.ones_like(named),
                "no expert": torch.zeros_like(named),
                "random routing": chance,
                "object expert alone": _only(0, experts, len(every)),
                "reading expert alone": _only(1, experts, len(every)),
            }
            scores = {way: v for way, chosen in ways.items() for way, v in _scores(mova, head, test, chosen, way).items()}
        picked = (named.float().argmax(1) == test.reading.long()) & named.any(1)
        scores["needed expert picked"] = float(picked.float().mean())
        return scores


def _draws(asked: CutoutQuestions, experts: int, order: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images of a step, and which experts are named for each: all for half of them, else any."""
    rows = torch.randint(len(asked.labels), (BATCH,), generator=order)
    every = torch.rand(BATCH, 1, generator=order) < 0.5
    return rows, (torch.rand(BATCH, experts, generator=order) < 0.5) | every


def _only(expert: int, experts: int, rows: int) -> Tensor:
    return F.one_hot(torch.full((rows,), expert), experts).bool()


def _scores(mova: Any, head: nn.Linear, asked: CutoutQuestions, named: Tensor, way: str) -> dict[str, float]:
    """Accuracy over the labelled places of both kinds of questions, their mean first."""
    every = torch.arange(len(asked.labels))
    said = head(mova(asked.sets(every), asked.question(every), named).features).argmax(-1)
    right, known = said == asked.labels, asked.labels >= 0
    about = {"things": ~asked.reading, "characters": asked.reading}
    kinds = {what: float(right[of][known[of]].float().mean()) for what, of in about.items()}
    return {way: sum(kinds.values()) / 2} | {f"{way}, {what}": value for what, value in kinds.items()}


def untrained(tower: Any, seed: int = 0) -> Any:
    """The tower with other weights, all drawn anew: normal with the deviation that each had, in evaluation mode."""
    import copy

    made = copy.deepcopy(tower)
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            drawn = torch.randn(parameter.shape, generator=chance) * parameter.std(correction=0) + parameter.mean()
            parameter.copy_(drawn)
    return made.eval()
