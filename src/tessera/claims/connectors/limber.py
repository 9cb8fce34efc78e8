"""LiMBeR: one linear map between a frozen image encoder and a frozen language model, and nothing else is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tessera.lab.experiment import Build, Checked, Exact, Experiment, beats, worse
from tessera.lab.protocols.short_training import TOWER, ShortTraining

if TYPE_CHECKING:
    from tessera.lab.lab import Lab


def _tiny() -> Any:
    """A composed model of a few thousand weights with this connector."""
    from tessera.models.configuration import TesseraConfig
    from tessera.models.modeling import TesseraForConditionalGeneration

    encoder = {"kind": "conv_vit", "image_size": 32, "patch_size": 8, "width": 24, "depth": 1, "heads": 2}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64}
    text = {"model_type": "llama", "num_key_value_heads": 2, **sizes}
    parts = {"encoders": [encoder], "connector": {"kind": "limber"}}
    model: Any = TesseraForConditionalGeneration._from_config(TesseraConfig(parts=parts, text_config=text))
    return model


def map_alone(lab: Lab) -> Checked:
    """The map against a product place by place; a step under `TRAINED`: gradients and changed bits are the map's only."""
    import torch

    from tessera.nn.tokens import from_grid
    from tessera.parts.connectors.limber import TRAINED
    from tessera.training.optim import build_optimizer
    from tessera.training.plan import OptimConfig, Stage, multipliers
    from tessera.training.stages import factors, freeze

    torch.manual_seed(0)
    model = _tiny()
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
    return Checked(
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


CLAIMS = [
    Exact(
        id="map_alone",
        promise="The connector is one linear map, and a training step changes nothing else.",
        paper="section 3",
        run=map_alone,
    ),
    Experiment(
        id="brings_over_what_is_known",
        promise="Between a frozen tower and a frozen language model, accuracy with a trained linear map is higher for a tower "
        "that was trained on object names than for one of random weights.",
        paper="section 4, table 2 (the random NFRN50)",
        protocol=ShortTraining(
            parts={"encoders": [TOWER], "tokens": {"kind": "pixel_shuffle", "factor": 2}, "connector": {"kind": "limber"}},
            start={"encoders.0": "object-expert", "language_model": "nano"},
            train=({"connector": 1.0},),
            types=("attribute", "existence", "category", "position"),
            most=4,
            steps=60,
            tests=("own", "mismatched image"),
        ),
        treatment=Build("knows names"),
        baseline=Build("random weights", {"fresh": ("encoders.0",)}),
        control=Build("mismatched image", {"test": "mismatched image"}),
        primary=beats("baseline"),
        valid_if=(worse("control"),),
        note="The language model, unlike the paper's, has read images before, through another projector.",
    ),
]
