"""LiMBeR: one linear map between a frozen image encoder and a frozen language model, and nothing else is trained.

Source: Merullo et al., "Linearly Mapping from Image to Text Space", 2023, arXiv:2209.15162. The encoder's spatial features become
soft prompts in front of the text through a single linear layer, which learns from captions alone. That this is enough says how
alike the two spaces are; what survives the map says what the encoder knows: one trained with language brings over categories,
one trained without brings over looks.

Deviations: none in the map. Dropout on its output is that of the authors' configurations. Which weights stay is a matter of the
training stage: `TRAINED` names the one socket that moves.

Shapes: [B, N, D] -> [B, N, E], N the places of the encoder's map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tessera.config import config
from tessera.lab.claim import Finding, claim
from tessera.nn import initialise
from tessera.nn.tokens import VisualTokens, from_grid
from tessera.registry import part

if TYPE_CHECKING:
    from tessera.lab.lab import Lab
    from tessera.recipes.recipe import Recipe

TRAINED = {"connector": 1.0}
"""The `train` of a stage: encoder and language model are frozen."""


@part("limber", socket="connectors", catalog=254)
class Limber(nn.Module):
    """[B, N, width] -> [B, N, out_width]."""

    @config
    class Config:
        """dropout: chance that a channel of the output is zeroed in training."""

        dropout: float = 0.1

        def validate_dropout(self) -> None:
            if not 0 <= self.dropout < 1:
                raise ValueError(f"dropout is a chance from 0 to below 1, not {self.dropout}.")

    def __init__(self, config: Config, width: int, out_width: int) -> None:
        super().__init__()
        self.out_width = out_width
        self.project = nn.Linear(width, out_width)
        self.dropout = nn.Dropout(config.dropout)
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normal 0.02, zero bias."""
        initialise.tree(self)

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """[B, N, D] -> [B, N, E]."""
        return tokens.with_features(self.dropout(self.project(tokens.features)))


def tiny() -> Any:
    """A composed model of a few thousand weights with this connector."""
    from tessera.models.configuration import TesseraConfig
    from tessera.models.modeling import TesseraForConditionalGeneration

    encoder = {"kind": "conv_vit", "image_size": 32, "patch_size": 8, "width": 24, "depth": 1, "heads": 2}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64}
    text = {"model_type": "llama", "num_key_value_heads": 2, **sizes}
    parts = {"encoders": [encoder], "connector": {"kind": "limber"}}
    model: Any = TesseraForConditionalGeneration._from_config(TesseraConfig(parts=parts, text_config=text))
    return model


@claim("one linear map, and a training step moves nothing else", kind="exact", paper="section 3")
def moves_the_map_alone(lab: Lab) -> Finding:
    """The map against a product place by place; a step under `TRAINED`: gradients and changed bits are the map's only."""
    from tessera.training.optim import build_optimizer
    from tessera.training.plan import OptimConfig, Stage, multipliers
    from tessera.training.stages import factors, freeze

    torch.manual_seed(0)
    model = tiny()
    connector = model.sockets()["connector"].eval()
    features = torch.randn(2, 16, 24)
    weight, bias = connector.project.weight, connector.project.bias
    by_place = torch.stack([torch.stack([weight @ x + bias for x in row]) for row in features])
    apart = float((connector(from_grid(features, (4, 4))).features - by_place).abs().max().detach())

    sockets = model.sockets()
    plan = multipliers(Stage(train=dict(TRAINED)), sockets)
    rates = factors(sockets, plan, {id(p) for p in model.parameters()})
    freeze(model, sockets, plan, rates)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ids = torch.tensor([[1, *[model.config.image_token_id] * 16, 6, 9, 7, 11, 2]] * 2)
    labels = ids.masked_fill(torch.arange(ids.shape[1]) < 20, -100)
    model(input_ids=ids, pixel_values=torch.randn(2, 3, 32, 32), labels=labels).loss.backward()
    graded = {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    build_optimizer(model, rates, OptimConfig(kind="adamw")).step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    own = {f"model.connector.project.{name}" for name in ("weight", "bias")}
    return Finding(
        checks={
            "equals the product to 1e-6": apart < 1e-6,
            "gradients reach the map only": graded == own,
            "a step changes the map only": moved == own,
        },
        measured={
            "largest difference": apart,
            "share of the weights that train": sum(p.numel() for p in connector.parameters()) / model.num_parameters(),
        },
        shape="conv_vit of width 24, Llama of 2 layers of width 32, float32",
    )


NOUNS = ("category", "at")


def mapping(tower: dict[str, Any], start: dict[str, str]) -> Recipe:
    """Captions through one linear map, from one tower to the reference model's language model, both frozen."""
    from tessera.recipes.recipe import Recipe, recipe
    from tessera.training.options import Questions
    from tessera.training.plan import OptimConfig, Schedule, Stage, TrainConfig
    from tessera.world import WorldConfig

    nano = recipe("nano").model
    parts = {
        "encoders": [tower],
        "tokens": {"kind": "pixel_shuffle", "factor": 2},
        "connector": {"kind": "limber"},
        "coupling": {"kind": "prefix"},
    }
    return Recipe(
        name="limber",
        about="Captions through one linear map between frozen models.",
        model={**nano, "parts": parts},
        start={"language_model": "nano", **start},
        worlds=[WorldConfig(kinds={"scene": 1.0}, things=(1, 3))],
        questions=Questions(text_tokens=64, captions=(0.3, 0.7, 0.0), most=0, several=(0.0, 0.0)),
        training=TrainConfig(
            stages=[Stage(name="map", steps=120, train=dict(TRAINED))],
            schedule=Schedule(warmup=10),
            optim=OptimConfig(lr=3e-3, muon_lr=0.02),
            batch_size=16,
            compile="off",
        ),
    )


@claim("a linear map brings over what the encoder knows", kind="effect", paper="sections 4 and 5, tables 1 and 2")
def brings_over_what_is_known(lab: Lab) -> Finding:
    """Captions train the map; questions, which it was not trained on, test it. Towers: one that was taught the names of things,
    one that was taught characters, and one of random weights."""
    from tessera.lab.lab import mean, spread
    from tessera.recipes.object_expert import ENCODER as OBJECTS
    from tessera.recipes.reading_expert import ENCODER as READING

    towers: dict[str, tuple[dict[str, Any], dict[str, str], tuple[int, ...]]] = {
        "names": (dict(OBJECTS), {"encoders.0": "object-expert"}, lab.seeds),
        "characters": (dict(READING), {"encoders.0": "reading-expert"}, lab.seeds[:1]),
        "random": (dict(OBJECTS), {}, lab.seeds),
    }
    looks: dict[str, list[float]] = {name: [] for name in towers}
    nouns: dict[str, list[float]] = {name: [] for name in towers}
    for name, (tower, start, seeds) in towers.items():
        for seed in seeds:
            model, processor = lab.train(mapping(tower, start), seed=seed)
            found = lab.evaluate(model, processor, types=("attribute", *NOUNS), n=240, world={"things": (1, 3)}).types
            looks[name].append(found["attribute"].accuracy)
            nouns[name].append(mean([found[kind].accuracy for kind in NOUNS]))
    return Finding(
        checks={
            "attributes at 80 % or more": mean(looks["names"]) >= 0.80,
            "25 points above random weights": mean(looks["names"]) - mean(looks["random"]) >= 0.25,
            "nouns: 10 points above the tower that knows characters": mean(nouns["names"]) - mean(nouns["characters"]) >= 0.10,
            "attributes: the two towers within 5 points": abs(mean(looks["names"]) - mean(looks["characters"])) <= 0.05,
        },
        measured={"attributes": mean(looks["names"]), "nouns": mean(nouns["names"])},
        baseline={"attributes, characters": mean(looks["characters"]), "nouns, characters": mean(nouns["characters"])},
        control={"attributes, random": mean(looks["random"]), "nouns, random": mean(nouns["random"])},
        seeds=lab.seeds,
        spread={
            "attributes": spread(looks["names"]),
            "nouns": spread(nouns["names"]),
            "attributes, random": spread(looks["random"]),
        },
        shape="120 steps of 16 captions; 240 questions about scenes of 1 to 3 things; 49 tokens an image; characters: one seed",
        note="The language model, unlike the paper's, has read images before, through another projector and together with both "
        "towers; the map learns from about two thousand captions.",
    )
