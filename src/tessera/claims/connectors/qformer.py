"""InstructBLIP's Q-Former: queries that read the question extract what it asks about."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tessera.lab.experiment import Build, Checked, Exact, Experiment, beats, worse
from tessera.lab.protocols.short_training import TOWER, ShortTraining

if TYPE_CHECKING:
    from tessera.lab.lab import Lab


def equals_transformers(lab: Lab) -> Checked:
    """Both on one random image memory and one padded question; BLIP-2's form without a question too; other questions, other
    outputs."""
    import torch
    from torch import nn
    from transformers import InstructBlipQFormerConfig, InstructBlipQFormerModel

    from tessera.parts.connectors.qformer import InstructQFormer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 96}
        theirs: Any = InstructBlipQFormerModel(
            InstructBlipQFormerConfig(**sizes, vocab_size=50, encoder_hidden_size=40, max_position_embeddings=16)
        ).eval()
        for parameter in theirs.parameters():
            nn.init.normal_(parameter, std=0.3)
        settings: dict[str, Any] = {"queries": 6, "width": 48, "depth": 4, "heads": 4, "mlp_ratio": 2, "positions": 16}
        ours = InstructQFormer(InstructQFormer.Config(**settings), 40, 20).eval()
        memory, queries = torch.randn(3, 9, 40), torch.randn(3, 6, 48)
        ids = torch.randint(0, 50, (3, 7))
    _copy(ours.qformer, theirs)
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
    return Checked(
        checks={
            "with a question to 1e-5": apart < 1e-5,
            "without one to 1e-5": without < 1e-5,
            "another question changes the queries' outputs": moved > 1e-3,
        },
        measured={"with a question": apart, "without one": without, "swapped questions": moved},
        shape="4 layers of width 48, 6 queries, questions of 4 to 7 tokens, float32, random weights",
    )


def _copy(core: Any, theirs: Any) -> None:
    """Weights of transformers' `InstructBlipQFormerModel`; its word table is no part of ours."""

    def attention(to: Any, of: Any) -> None:
        for name in ("query", "key", "value"):
            getattr(to, name).load_state_dict(getattr(of.attention, name).state_dict())
        to.out.load_state_dict(of.output.dense.state_dict())
        to.norm.load_state_dict(of.output.LayerNorm.state_dict())

    def feed_forward(to: Any, up: Any, down: Any) -> None:
        to.up.load_state_dict(up.dense.state_dict())
        to.down.load_state_dict(down.dense.state_dict())
        to.norm.load_state_dict(down.LayerNorm.state_dict())

    core.positions.load_state_dict(theirs.embeddings.position_embeddings.state_dict())
    core.norm.load_state_dict(theirs.embeddings.layernorm.state_dict())
    for layer, other in zip(core.layers, theirs.encoder.layer, strict=True):
        attention(layer.attention, other.attention)
        if layer.cross is not None:
            attention(layer.cross, other.crossattention)
        feed_forward(layer.of_queries, other.intermediate_query, other.output_query)
        if layer.of_text is not None:
            feed_forward(layer.of_text, other.intermediate, other.output)


QUERIES: dict[str, Any] = {
    "kind": "qformer", "queries": 4, "width": 128, "depth": 2, "heads": 4, "mlp_ratio": 2, "places": True,
    "reads_question": False,
}  # fmt: skip
READING = {**QUERIES, "reads_question": True}

CLAIMS = [
    Exact(
        id="equals_transformers",
        promise="The Q-Former's outputs equal those of InstructBLIP's in transformers on the same weights, within 1e-5.",
        paper="section 2.3",
        run=equals_transformers,
    ),
    Experiment(
        id="reads_the_question",
        promise="With four queries, accuracy is higher when the queries read the question than when they do not.",
        paper="section 3.4, table 2",
        protocol=ShortTraining(
            parts={"encoders": [TOWER], "tokens": {"kind": "pixel_shuffle", "factor": 2}, "connector": QUERIES},
            things=(2, 4),
            alone=True,
            most=4,
            images=6,
            tests=("own", "shuffled question", "no image"),
        ),
        treatment=Build("reads the question", connector=READING),
        baseline=Build("does not read it"),
        control=Build("reads another row's question", {"test": "shuffled question"}, connector=READING),
        others={"no image": Build("no image", {"test": "no image"}, connector=READING)},
        primary=beats("baseline"),
        valid_if=(worse("control"),),
        secondary=(beats("no image"),),
        note="The queries begin with random weights, where the paper's come from two stages of pre-training.",
    ),
]
