"""What MoVA promises, measured.

Legend: I images, N places of a cut-out, E experts, Q words of the question.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tessera.lab.claim import Finding, claim
from tessera.nn.tokens import QuestionText, VisualTokens, from_grid

if TYPE_CHECKING:
    from tessera.lab.lab import Lab
    from tessera.parts.experts.mova import AdapterBlock, MoVA

READING = ("reading", "chart")
"""Question types that are about characters; the others are about things."""
IMAGES, TESTED, LABELLED = 320, 160, 160
STEPS, ROUTER_STEPS, BATCH = 300, 200, 16
CUT = 7
"""Side of the cut-outs of the grid that the adapter works on."""
WORDS = 64
"""Channels of the questions' words."""


@claim("it begins as its base, follows its equations, and does not hear who is not named", kind="exact", paper="section 3.3")
def is_its_equation(lab: Lab) -> Finding:
    """Untrained, without downsampling, the base comes out bit for bit; with random weights a block equals a naive reading, head
    by head; noise in place of an expert that is not named changes no bit."""
    from tessera.parts.experts.mova import AdapterBlock, MoVA

    torch.manual_seed(0)
    question = QuestionText(embeddings=torch.randn(3, 5, 12), mask=torch.tensor([[1, 1, 1, 0, 0], [1] * 5, [0] * 5]).bool())
    plain = MoVA(MoVA.Config(heads=2, downsample=False), [16, 8, 12], [(3, 3)] * 3, text_width=12).eval()
    sets = [from_grid(torch.randn(3, 9, width), (3, 3)) for width in (16, 8, 12)]
    noise = [*sets[:2], from_grid(torch.randn(3, 9, 12), (3, 3))]
    with torch.no_grad():
        begins = torch.equal(plain(sets, question).features, sets[0].features)
        for parameter in plain.parameters():
            parameter.normal_()
        named = torch.tensor([[True, False]] * 3)
        deaf = torch.equal(plain(sets, question, named).features, plain(noise, question, named).features)
        block = AdapterBlock(16, [8, 12], 6, 2, 1, (3, 3)).double()
        for parameter in block.parameters():
            parameter.normal_(std=0.5)
        x, values = sets[0].features.double(), [s.features.double() for s in sets[1:]]
        text, named = torch.randn(3, 6).double(), torch.tensor([[True, True], [False, True], [False, False]])
        difference = float((block(x, values, text, named) - _naive(block, x, values, text, named)).abs().max())
    return Finding(
        checks={
            "the untrained adapter gives its base": begins,
            "an expert that is not named changes nothing": deaf,
            "a block equals a naive reading to 1e-9": difference < 1e-9,
        },
        measured={"difference": difference},
        shape="3 images of 3 x 3 places, 16 channels, experts of 8 and 12, float64",
    )


def _naive(block: AdapterBlock, x: Tensor, values: Sequence[Tensor], text: Tensor, named: Tensor) -> Tensor:
    gate: Any = block.gate
    rows = []
    for b in range(len(x)):
        logits = gate(torch.cat([text[b], x[b].mean(0)]))
        open_ = [e for e in range(len(values)) if bool(named[b, e])]
        best = sorted(open_, key=lambda e: -float(logits[e]))[: block.top]
        hidden = x[b]
        for e in best:
            share = logits[e].exp() / sum(logits[i].exp() for i in best)
            cross: Any = block.cross[e]
            hidden = hidden + share * _attend(cross, block.query_norm[e](x[b]), block.value_norm[e](values[e][b]))
        normed = block.norm1(hidden)
        hidden = hidden + _attend(block.attention, normed, normed)
        mlp, normed = block.mlp, block.norm2(hidden)
        gated = mlp.gate(normed)
        rows.append(hidden + mlp.down(mlp.norm(gated * gated.sigmoid() * mlp.up(normed))))
    return torch.stack(rows)


def _attend(layer: Any, x: Tensor, value: Tensor) -> Tensor:
    """One image; every pair of channels is turned by hand."""
    size = x.shape[1] // layer.heads
    columns = layer.grid[1]

    def turned(t: Tensor) -> Tensor:
        out = t.clone()
        for n in range(len(t)):
            for pair in range(size // 2):
                axis, k = divmod(pair, size // 4)
                angle = torch.tensor((n // columns, n % columns)[axis] * 10_000.0 ** (-2 * k / (size // 2)), dtype=torch.float32)
                cos, sin = float(angle.cos()), float(angle.sin())
                a, b = t[n, 2 * pair], t[n, 2 * pair + 1]
                out[n, 2 * pair], out[n, 2 * pair + 1] = a * cos - b * sin, b * cos + a * sin
        return out

    heads = []
    for h in range(layer.heads):
        own = slice(h * size, (h + 1) * size)
        q, k, v = layer.query(x)[:, own], layer.key(value)[:, own], layer.value(value)[:, own]
        heads.append((turned(q) @ turned(k).T / math.sqrt(size)).softmax(-1) @ v)
    return layer.out(layer.norm(torch.cat(heads, -1)))


@dataclass(slots=True)
class Asked:
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


@claim("one expert, chosen by the question, is as good as all of them", kind="effect", paper="section 3.2, table 6")
def routes_by_question(lab: Lab) -> Finding:
    """Base: the first layer of the object expert, which sees colours and edges. Experts: the shipped object expert, the shipped
    reading expert, and a tower with random weights, all frozen. The world's own questions, about things or about what is
    written, decide what one linear layer must say at every place of a 7 x 7 cut-out: categories or characters.

    The adapter learns with any experts named; labels come from the loss with each expert alone; the router learns from them;
    then it names one expert of three. Baselines: all experts named, always the best single one. Control: an expert drawn by lot.
    """
    from tessera.lab.lab import mean, spread

    train, test = (_asked(lab, split, n) for split, n in (("train", IMAGES), ("test", TESTED)))
    runs = [_run(train, test, seed) for seed in lab.seeds]
    found = {name: mean([run[name] for run in runs]) for name in runs[0]}
    single = max(found["object expert alone"], found["reading expert alone"])
    return Finding(
        checks={
            "95 % of what all experts give": found["routed"] >= 0.95 * found["all experts"],
            "the needed expert is picked 95 times of 100": found["needed expert picked"] >= 0.95,
            "random routing is 20 points worse": found["random routing"] <= found["routed"] - 0.20,
            "10 points better than always the same expert": found["routed"] >= single + 0.10,
            "things: 95 % of the object expert's": found["routed, things"] >= 0.95 * found["object expert alone, things"],
            "characters: 95 % of the reader's": found["routed, characters"] >= 0.95 * found["reading expert alone, characters"],
        },
        measured={name: found[name] for name in ("routed", "routed, things", "routed, characters", "needed expert picked")},
        baseline={name: value for name, value in found.items() if name.startswith(("all", "no expert")) or "alone" in name},
        control={"random routing": found["random routing"]},
        seeds=lab.seeds,
        spread={name: spread([run[name] for run in runs]) for name in ("routed", "all experts", "random routing")},
        shape=f"{IMAGES} images, {STEPS} steps of {BATCH}, router {ROUTER_STEPS} steps on {LABELLED} labels, 2 blocks",
    )


def _asked(lab: Lab, split: str, count: int) -> Asked:
    """Samples with both kinds of questions in equal shares; the cut-out is where most of what is asked about lies."""
    from tessera.lab.instruments.towers import FirstLayer, categories, look, untrained
    from tessera.models.tokenizer import build_tokenizer
    from tessera.world.vocabulary import words

    towers = [lab.reference(name)[0].encoder for name in ("object-expert", "reading-expert")]
    world = lab.world(split=split, kinds={"scene": 0.5, "text": 0.5}, things=(4, 12))
    samples: list[Any] = []
    texts: list[str] = []
    reading: list[bool] = []
    index = 0
    while len(samples) < count:
        written = len(samples) % 2 == 0
        sample = world.sample(index, "text" if written else "scene")
        fitting = [q.text for q in sample.questions() if (q.type in READING) == written]
        if fitting and (written or sample.frames[0].things):
            samples.append(sample)
            texts.append(sample.rng("asked").choice(fitting))
            reading.append(written)
        index += 1
    seen = look([FirstLayer(towers[0]), *towers, untrained(lab.reference("object-expert")[0].config.encoder)], samples)
    about = torch.tensor(reading)
    wanted = torch.where(seen.character >= 0, seen.character + len(categories()), -100)
    labels = torch.where(about[:, None], wanted, seen.category)
    features, cut = _cut(seen.features, labels)
    tokenizer = build_tokenizer(words())
    ids = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    table = torch.randn(len(tokenizer), WORDS, generator=torch.Generator().manual_seed(0))
    return Asked(features, table[ids["input_ids"]], ids["attention_mask"].bool(), cut, about)


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


def _run(train: Asked, test: Asked, seed: int) -> dict[str, float]:
    """One training of adapter, labels and router; accuracies."""
    from tessera.lab.instruments.towers import categories, characters
    from tessera.parts.experts.mova import MoVA, Router, router_loss, routing_labels

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        widths = [f.shape[-1] for f in train.features]
        experts = len(widths) - 1
        config = MoVA.Config(blocks=2, routing="router", most=1, downsample=False)
        mova = MoVA(config, widths, [(CUT, CUT)] * len(widths), text_width=WORDS)
        head = nn.Linear(mova.width, len(categories()) + characters())

        def loss(rows: Tensor, named: Tensor) -> Tensor:
            """[rows], mean over the labelled places of each image."""
            said = head(mova(train.sets(rows), train.question(rows), named).features)
            each = F.cross_entropy(said.transpose(1, 2), train.labels[rows], ignore_index=-100, reduction="none")
            return each.sum(1) / (train.labels[rows] >= 0).sum(1).clamp_min(1)

        assert mova.router is not None
        router = set(mova.router.parameters())
        learned = [p for p in [*mova.parameters(), *head.parameters()] if p not in router]
        _train(learned, STEPS, lambda: loss(*_lots(train, experts)).mean())
        mova.eval()
        rows = torch.arange(LABELLED)
        with torch.no_grad():
            alone = torch.stack([loss(rows, _only(e, experts, LABELLED)) for e in range(experts)], 1)
            labels = routing_labels(alone, loss(rows, torch.zeros(LABELLED, experts, dtype=torch.bool)), most=1)

        def route(asked: Asked, rows: Tensor) -> Tensor:
            assert mova.router is not None
            return mova.router(asked.question(rows), asked.features[0][rows], (CUT, CUT))

        def router_step() -> Tensor:
            chosen = torch.randint(LABELLED, (BATCH,))
            return router_loss(route(train, chosen), labels[chosen])

        _train([*router], ROUTER_STEPS, router_step)
        every = torch.arange(len(test.labels))
        with torch.no_grad():
            named = Router.choose(route(test, every), 1)
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


def _train(parameters: list[nn.Parameter], steps: int, step: Any) -> None:
    optimiser = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    for _ in range(steps):
        optimiser.zero_grad()
        step().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()


def _lots(asked: Asked, experts: int) -> tuple[Tensor, Tensor]:
    """Images of a step, and which experts are named for each: all for half of them, else any."""
    rows = torch.randint(len(asked.labels), (BATCH,))
    return rows, (torch.rand(BATCH, experts) < 0.5) | (torch.rand(BATCH, 1) < 0.5)


def _only(expert: int, experts: int, rows: int) -> Tensor:
    return F.one_hot(torch.full((rows,), expert), experts).bool()


def _scores(mova: MoVA, head: nn.Linear, asked: Asked, named: Tensor, way: str) -> dict[str, float]:
    """Accuracy over the labelled places of both kinds of questions, their mean first."""
    every = torch.arange(len(asked.labels))
    said = head(mova(asked.sets(every), asked.question(every), named).features).argmax(-1)
    right, known = said == asked.labels, asked.labels >= 0
    about = {"things": ~asked.reading, "characters": asked.reading}
    kinds = {what: float(right[of][known[of]].float().mean()) for what, of in about.items()}
    return {way: sum(kinds.values()) / 2} | {f"{way}, {what}": value for what, value in kinds.items()}


@claim("experts that are not named cost nothing in the adapter", kind="cost", paper="section 3.3")
def skips_experts(lab: Lab) -> Finding:
    """Operations and time of the adapter with one and with all of three experts named, at the reference model's sizes."""
    from tessera.parts.experts.mova import MoVA

    torch.manual_seed(0)
    grid, widths = (14, 14), (192, 192, 128, 192)
    mova = MoVA(MoVA.Config(), widths, [grid] * 4, text_width=224).eval()
    sets = [from_grid(torch.randn(8, 196, width), grid) for width in widths]
    question = QuestionText(embeddings=torch.randn(8, 20, 224), mask=torch.ones(8, 20, dtype=torch.bool))

    def work(named: Tensor) -> VisualTokens:
        with torch.inference_mode():
            return mova(sets, question, named)

    one, every = _only(0, 3, 8), torch.ones(8, 3, dtype=torch.bool)
    operations = lab.flops(lambda: work(every)) / lab.flops(lambda: work(one))
    time = lab.timing(lambda: work(every), lambda: work(one)).median
    return Finding(
        checks={"1.3 times fewer operations": operations >= 1.3, "1.2 times faster": time >= 1.2},
        measured={"operations of all over one": operations, "time of all over one": time},
        shape=f"3 blocks, 8 images of 14 x 14 places, 192 channels, 3 experts, {lab.shape()}",
    )
