"""InstructBLIP's Q-Former: a few learned queries read the question, look at the image, and go to the language model.

Source: Dai et al., "InstructBLIP: Towards General-purpose Vision-Language Models with Instruction Tuning", 2023,
arXiv:2305.06500; the Q-Former itself: Li et al., "BLIP-2", 2023, arXiv:2301.12597. The queries share self-attention with the
tokens of the question and cross-attend to the visual tokens in every second layer, so that what they carry over depends on what
is asked; one linear layer takes their outputs to the language model's width. `reads_question=False` is BLIP-2's.

Deviations: the question comes as the language model's input embeddings, brought to the Q-Former's width by a linear layer, where
the paper has a word table of its own beside the language model's (the same text, two vocabularies). No dropout. Weights start at
random, not from BERT and BLIP-2's two pre-training stages. The last layer's feed-forward of the text, whose output nobody reads,
is left out. `places` adds the visual tokens' positions to the keys, since towers of convolutions say little of them.

Shapes: B images, K queries, N visual tokens of D channels, Q tokens of the question, E channels of the language model, W of the
Q-Former: [B, N, D], question [B, Q, E] -> [B, K, E].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import initialization as init

from tessera.config import config
from tessera.errors import UserError
from tessera.lab.claim import Finding, claim
from tessera.nn import initialise
from tessera.nn.qformer import QFormer, gather
from tessera.nn.tokens import QuestionText, VisualTokens
from tessera.registry import part

if TYPE_CHECKING:
    from tessera.lab.lab import Lab


@part("qformer", socket="connectors", catalog=358)
class InstructQFormer(nn.Module):
    """[B, N, width] and a question [B, Q, out_width] -> [B, queries, out_width]."""

    @config
    class Config:
        """queries K; width W, depth layers, heads, MLP width as a multiple of W; every: which layers see the image (the first
        and each `every`-th after it); reads_question; positions: longest question in tokens; places: whether the visual tokens'
        positions are added to what the queries see."""

        queries: int = 32
        width: int = 768
        depth: int = 12
        heads: int = 12
        mlp_ratio: int = 4
        every: int = 2
        reads_question: bool = True
        positions: int = 512
        places: bool = False

        def validate_sizes(self) -> None:
            sizes = (self.queries, self.width, self.depth, self.heads, self.mlp_ratio, self.every, self.positions)
            if min(sizes) < 1:
                raise ValueError(f"queries, width, depth, heads, mlp_ratio, every and positions are at least 1, not {sizes}.")
            if self.width % self.heads:
                raise ValueError(f"width {self.width} cannot be divided among {self.heads} heads.")

    def __init__(self, config: Config, width: int, out_width: int) -> None:
        super().__init__()
        self.out_width = out_width
        self.wants: tuple[str, ...] = ("question",) if config.reads_question else ()
        inner, self.longest = config.width, config.positions
        self.queries = nn.Parameter(torch.empty(1, config.queries, inner))
        self.text = nn.Linear(out_width, inner) if config.reads_question else None
        self.place = nn.Linear(2, width) if config.places else None
        self.qformer = QFormer(
            inner,
            config.depth,
            config.heads,
            config.mlp_ratio * inner,
            width,
            every=config.every,
            reads=config.reads_question,
            positions=config.positions,
        )
        self.project = nn.Linear(inner, out_width)
        self.init_weights()

    @staticmethod
    def token_count(config: Config, count: int) -> int:
        """N tokens become K."""
        return config.queries

    def init_weights(self) -> None:
        """Truncated normal 0.02, zero bias; queries normal 0.02."""
        initialise.tree(self)
        init.normal_(self.queries, std=0.02)

    def forward(self, tokens: VisualTokens, question: QuestionText | None = None) -> VisualTokens:
        """[B, N, D] -> [B, K, E], tokens without places. Raises `UserError` without a question, unless none is read, or with one
        that is too long."""
        text = mask = None
        if self.text is not None:
            if question is None:
                raise UserError(
                    "connectors 'qformer' reads the question to see the image: give input_ids with the images (a question's "
                    "embeddings), or build it with reads_question=False."
                )
            words, mask = gather(question.embeddings, question.mask)
            if words.shape[1] > self.longest:
                found = words.shape[1]
                raise UserError(f"the question has {found} tokens, connectors 'qformer' reads {self.longest}: shorten it.")
            text = self.text(words)
        memory = tokens.features
        if self.place is not None:
            memory = memory + self.place(tokens.positions.to(memory.dtype) * 2 - 1)
        batch = memory.shape[0]
        found = self.project(self.qformer(self.queries.expand(batch, -1, -1), memory, tokens.mask, text, mask))
        count = found.shape[1]
        return VisualTokens(
            features=found,
            positions=tokens.positions.new_full((batch, count, 2), 0.5),
            mask=torch.ones(batch, count, dtype=torch.bool, device=found.device),
        )


def copied(ours: InstructQFormer, theirs: Any) -> None:
    """Weights of transformers' `InstructBlipQFormerModel` into ours; its word table and the projections around it are no part."""

    def linear(to: nn.Linear, of: nn.Linear) -> None:
        to.load_state_dict(of.state_dict())

    def attention(to: Any, of: Any) -> None:
        for name in ("query", "key", "value"):
            linear(getattr(to, name), getattr(of.attention, name))
        linear(to.out, of.output.dense)
        to.norm.load_state_dict(of.output.LayerNorm.state_dict())

    def feed_forward(to: Any, up: Any, down: Any) -> None:
        linear(to.up, up.dense)
        linear(to.down, down.dense)
        to.norm.load_state_dict(down.LayerNorm.state_dict())

    core = ours.qformer
    if core.positions is not None:
        core.positions.load_state_dict(theirs.embeddings.position_embeddings.state_dict())
    core.norm.load_state_dict(theirs.embeddings.layernorm.state_dict())
    for layer, other in zip(core.layers, theirs.encoder.layer, strict=True):
        made: Any = layer
        attention(made.attention, other.attention)
        if made.cross is not None:
            attention(made.cross, other.crossattention)
        feed_forward(made.of_queries, other.intermediate_query, other.output_query)
        if made.of_text is not None:
            feed_forward(made.of_text, other.intermediate, other.output)


@claim("equals InstructBLIP's Q-Former of transformers on copied weights", kind="exact", paper="section 2.3")
def equals_transformers(lab: Lab) -> Finding:
    """Both on one random image memory and one padded question; BLIP-2's form without a question too; other questions, other
    outputs."""
    from transformers import InstructBlipQFormerConfig, InstructBlipQFormerModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 96}
    theirs = InstructBlipQFormerModel(
        InstructBlipQFormerConfig(**sizes, vocab_size=50, encoder_hidden_size=40, max_position_embeddings=16)
    ).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    settings: dict[str, Any] = {"queries": 6, "width": 48, "depth": 4, "heads": 4, "mlp_ratio": 2, "positions": 16}
    ours = InstructQFormer(InstructQFormer.Config(**settings), 40, 20).eval()
    copied(ours, theirs)
    memory, queries = torch.randn(3, 9, 40), torch.randn(3, 6, 48)
    ids = torch.randint(0, 50, (3, 7))
    real = torch.arange(7) < torch.tensor([7, 4, 5])[:, None]
    words = theirs.embeddings.word_embeddings
    with torch.no_grad():
        whole = torch.cat([torch.ones(3, 6, dtype=torch.bool), real], dim=1)
        seen = theirs(input_ids=ids, attention_mask=whole, query_embeds=queries, encoder_hidden_states=memory)
        mine = ours.qformer(queries, memory, None, words(ids), real)
        alone = theirs(input_ids=None, query_embeds=queries, encoder_hidden_states=memory).last_hidden_state
        plain = ours.qformer(queries, memory)
        swapped = ours.qformer(queries, memory, None, words(ids.roll(1, 0)), real.roll(1, 0))
    apart = float((seen.last_hidden_state[:, :6] - mine).abs().max())
    without = float((alone - plain).abs().max())
    moved = float((swapped - mine).abs().amax((1, 2)).min())
    return Finding(
        checks={
            "with a question to 1e-5": apart < 1e-5,
            "without one to 1e-5": without < 1e-5,
            "another question changes the queries' outputs": moved > 1e-3,
        },
        measured={"with a question": apart, "without one": without, "swapped questions": moved},
        shape="4 layers of width 48, 6 queries, questions of 4 to 7 tokens, float32, random weights",
    )


TYPES = ("category", "attribute", "existence")


@claim("queries that read the question bring over what is asked", kind="effect", paper="section 3.4, table 2")
def reads_the_question(lab: Lab) -> Finding:
    """Small models with four queries that read the question or do not; and the former with another row's question there."""
    from tessera.lab.instruments.small import TOWER, accuracy, exercise, taught
    from tessera.lab.lab import mean, spread

    front: dict[str, Any] = {"encoders": [dict(TOWER)], "tokens": {"kind": "pixel_shuffle", "factor": 2}}
    queries = {"kind": "qformer", "queries": 4, "width": 128, "depth": 2, "heads": 4, "mlp_ratio": 2, "places": True}
    lesson = exercise(front, 2500, split="train", types=TYPES, things=(2, 4))
    test = exercise(front, 250, split="test", types=TYPES, things=(2, 4))
    reading, blindly, misled = list[float](), list[float](), list[float]()
    for seed in lab.seeds:
        made = taught({**front, "connector": queries}, lesson, seed=seed, steps=500, images=8)
        reading.append(accuracy(*made, test))
        misled.append(accuracy(*made, test, wrong_question=True))
        other = taught({**front, "connector": {**queries, "reads_question": False}}, lesson, seed=seed, steps=500, images=8)
        blindly.append(accuracy(*other, test))
    return Finding(
        checks={
            "5 points above queries that do not read it": mean(reading) - mean(blindly) >= 0.05,
            "at every seed": all(a > b for a, b in zip(reading, blindly, strict=True)),
            "another row's question costs 5 points": mean(reading) - mean(misled) >= 0.05,
        },
        measured={"accuracy": mean(reading)},
        baseline={"accuracy without the question": mean(blindly)},
        control={"accuracy with another's question": mean(misled)},
        seeds=lab.seeds,
        spread={
            "accuracy": spread(reading),
            "accuracy without the question": spread(blindly),
            "accuracy with another's question": spread(misled),
        },
        shape=f"4 queries; 500 steps of 8 scenes, {len(lesson.rows)} questions about 2500; {len(test.rows)} test questions; "
        "language model of 2 layers of width 128",
        note="Queries start from nothing here, where the paper's come from two stages of pre-training; in a few hundred steps "
        "they may not have learned to look.",
    )


@claim("32 tokens whatever the image, and a faster prefill", kind="cost", paper="section 2.3")
def saves(lab: Lab) -> Finding:
    """Connector and prefill together, against an MLP on all patches; a Q-Former of 4 layers of width 512."""
    from tessera.lab.instruments.small import reading

    found = reading(lab, {"kind": "qformer", "width": 512, "depth": 4, "heads": 8})
    return Finding(
        checks={
            "32 tokens of 576": found.tokens == 32,
            "fewer FLOPs": found.flops > 1,
            "faster in every round": found.time.low > 1,
        },
        measured={"tokens": float(found.tokens), "FLOPs, times fewer": found.flops, "times faster": found.time.median},
        baseline={"tokens": 576.0},
        shape=found.shape,
    )


TINY = {"queries": 6, "width": 48, "depth": 4, "heads": 4}
