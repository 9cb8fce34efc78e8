"""MoE-LLaVA: experts copied from a trained model, two per token, are more accurate than a dense layer of equal cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tessera.lab.experiment import Build, Checked, Exact, Experiment, beats, worse
from tessera.lab.protocols.short_training import TOWER, ShortTraining

if TYPE_CHECKING:
    from tessera.lab.lab import Lab


def upcycled_equals_dense(lab: Lab) -> Checked:
    """A dense language model's weights loaded into one with experts; and by how much logits differ once the experts do."""
    import torch

    from tessera.lab.composed import pictures, prefix, tiny

    dense, sparse = tiny({"kind": "prefix"}), tiny({"kind": "moe_llava"}, seed=1)
    for name, socket in sparse.sockets().items():
        if name != "coupling":  # its layers are the language model's
            socket.load_state_dict(dense.sockets()[name].state_dict())
    ids, images = torch.tensor([[*prefix(dense, 2), 6, 20, 7]]), pictures(2)
    with torch.no_grad():
        wanted = dense(ids, images).logits
        apart = float((sparse(ids, images).logits - wanted).abs().max())
        for expert in sparse.model.coupling.layers[0].experts[1:]:
            expert.down_proj.weight.neg_()
        changed = float((sparse(ids, images).logits - wanted).abs().max())
    return Checked(
        checks={"logits within 1e-5": apart <= 1e-5, "experts that differ change them": changed > 1e-3},
        measured={"logits differ by": apart, "with other experts by": changed},
        shape="4 layers of width 32, experts in 2, float32, random weights",
    )


def equals_mixtral(lab: Lab) -> Checked:
    """Two of four experts against transformers' Mixtral on the same weights; the balance loss against a loop over tokens, and at
    an even load, where it is 1; an expert that more tokens want than it has room for."""
    import torch
    from transformers import MixtralConfig
    from transformers.models.llama.modeling_llama import LlamaConfig, LlamaMLP
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    from tessera.nn.moe import MixtureOfExperts, route

    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = MixtralConfig(**sizes, num_local_experts=4, num_experts_per_tok=2)
    config._experts_implementation = "eager"
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        theirs = MixtralSparseMoeBlock(config).eval()
        mine = MixtureOfExperts(LlamaMLP(LlamaConfig(**sizes)), 16, 4, 2).eval()
        for parameter in theirs.parameters():
            parameter.normal_(std=0.3)
        x, logits = torch.randn(3, 7, 16), torch.randn(50, 4)
        mine.router.weight.copy_(theirs.gate.weight)
        expert: Any
        for i, expert in enumerate(mine.experts):
            gate, up = theirs.experts.gate_up_proj[i].chunk(2)
            expert.gate_proj.weight.copy_(gate)
            expert.up_proj.weight.copy_(up)
            expert.down_proj.weight.copy_(theirs.experts.down_proj[i])
        wanted = theirs(x)
        apart = float((mine(x) - (wanted[0] if isinstance(wanted, tuple) else wanted)).abs().max())
    shares = logits.softmax(-1)
    looped = sum(4 * float((shares.argmax(-1) == i).float().mean()) * float(shares[:, i].mean()) for i in range(4))
    balance = float(route(logits, 2, None).balance())
    even = float(route(torch.eye(4) * 50, 2, None).balance())
    full = route(torch.tensor([[5.0, 1.0, 0.0, -1.0]]).expand(8, 4), 2, 1.0)
    return Checked(
        checks={
            "outputs within 1e-6": apart <= 1e-6,
            "balance loss within 1e-6": abs(balance - looped) <= 1e-6,
            "1 at an even load": abs(even - 1) <= 1e-6,
            "an expert takes its capacity and no more": full.weights.gt(0).sum(0).tolist() == [4, 4],
        },
        measured={"outputs differ by": apart, "balance losses differ by": abs(balance - looped), "balance at an even load": even},
        shape="21 tokens of width 16, 4 experts, float32, random weights",
    )


def arithmetic_of_two(lab: Lab) -> Checked:
    """Counted operations of a prefill with 2, 4 and 8 experts of which a token asks two: only the router grows."""
    import torch

    from tessera.lab.composed import tiny

    ids = torch.tensor([[1, *range(20, 63)]])
    flops, weights = dict[int, int](), dict[int, int]()
    for experts in (2, 4, 8):
        model = tiny({"kind": "moe_llava", "experts": experts})
        flops[experts] = lab.flops(lambda m=model: m(ids))  # type: ignore[misc]
        weights[experts] = sum(p.numel() for p in model.model.language_model.parameters())
    column = 2 * 2 * ids.shape[1] * 32  # a multiplication and an addition, in two layers
    return Checked(
        checks={
            "4 experts: the operations of 2 and those of the router": flops[4] - flops[2] == 2 * column,
            "8 experts: the operations of 2 and those of the router": flops[8] - flops[2] == 6 * column,
            "weights grow": weights[2] < weights[4] < weights[8],
        },
        measured={
            "operations with 8 experts over those with 2": flops[8] / flops[2],
            "weights with 8 experts over those with 2": weights[8] / weights[2],
        },
        shape="44 tokens of text, 4 layers of width 32, experts in 2",
    )


EXPERTS: dict[str, Any] = {"kind": "moe_llava", "experts": 4, "per_token": 2}
BOTH: dict[str, Any] = {**EXPERTS, "experts": 2}
THIRD: dict[str, Any] = {"train": ({"coupling": 1.0},)}
"""The paper's third stage trains the experts alone."""

CLAIMS = [
    Exact(
        id="upcycled_equals_dense",
        promise="Right after copying, the mixture answers as the dense model that it was made from, within 1e-5.",
        paper="section 3.2",
        run=upcycled_equals_dense,
    ),
    Exact(
        id="equals_mixtral",
        promise="The mixture equals Mixtral's, and the balance loss its equation, within 1e-6.",
        paper="section 3.2, equations 4 to 6",
        run=equals_mixtral,
    ),
    Exact(
        id="arithmetic_of_two",
        promise="More experts cost memory, not operations: beyond the router's columns the operations are those of two experts.",
        paper="section 4.2, table 3",
        run=arithmetic_of_two,
    ),
    Experiment(
        id="ahead_of_dense",
        promise="At equal operations, accuracy with two of four experts per token, copied from a trained model, is higher than "
        "with two experts that process every token.",
        paper="section 4.3, table 7",
        protocol=ShortTraining(
            parts={
                "encoders": [TOWER],
                "tokens": {"kind": "pixel_shuffle", "factor": 2},
                "connector": {"kind": "linear"},
                "coupling": {"kind": "prefix"},
            },
            language={"layers": 4, "width": 96, "hidden": 264},
            before=100,
            steps=60,
            tests=("own", "shuffled routers", "mismatched image"),
        ),
        treatment=Build("two of four", THIRD, coupling=EXPERTS),
        baseline=Build("both of two", THIRD, coupling=BOTH),
        control=Build("two of four, shuffled routers", {**THIRD, "test": "shuffled routers"}, coupling=EXPERTS),
        others={
            "dense": Build("dense", {"train": ({"language_model": 1.0},)}),
            "mismatched image": Build("mismatched image", {**THIRD, "test": "mismatched image"}, coupling=EXPERTS),
        },
        primary=beats("baseline"),
        valid_if=(worse("control"),),
        secondary=(beats("dense"), beats("mismatched image")),
        note="The experts begin from a model that has learned for 100 steps. The dense one, which is trained on as a whole, has "
        "half of the operations in its MLPs.",
    ),
]
