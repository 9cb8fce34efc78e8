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

import torch
from torch import nn
from transformers import initialization as init

from tessera.config import config
from tessera.errors import UserError
from tessera.models.contracts import Connector
from tessera.nn import initialise
from tessera.nn.qformer import QFormer, gather
from tessera.nn.tokens import QuestionText, VisualTokens
from tessera.registry import part


@part("qformer", socket="connectors", catalog=358)
class InstructQFormer(Connector):
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
        super().__init__(config, width, out_width)
        self.reads_question = config.reads_question
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


TINY = {"queries": 6, "width": 48, "depth": 4, "heads": 4}
