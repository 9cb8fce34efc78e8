"""MoE-LLaVA puts a mixture of experts in the place of every other MLP of the language model.

Source: Lin et al., "MoE-LLaVA: Mixture of Experts for Large Vision-Language Models", 2024, arXiv:2401.15947. Image features stand
among the text as in LLaVA. In three stages the projector learns on captions, then projector and language model on
instructions, then the experts, each of which begins as a copy of the MLP in its place: a linear router sends every
token, of image and text alike, to its two best of four experts, and a balance loss keeps them all in use.

Deviations: the second expert is the second best, not one drawn with noise (which DeepSpeed, the released code's engine, does);
capacity binds in training only, so that an answer does not depend on what else is in the batch; padding takes no expert's place.

Shapes: B rows, T tokens, E channels, N = B T tokens, e experts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from tessera.config import config
from tessera.errors import UserError
from tessera.lab.claim import Finding, claim
from tessera.models.coupling import Coupling, Pass, decoder_layers
from tessera.nn.moe import MixtureOfExperts
from tessera.registry import part

if TYPE_CHECKING:
    from tessera.lab.lab import Lab

PLACES = {
    "sparse": lambda layers: range(0, layers, 2),
    "dense": lambda layers: range(layers),
    "first_half": lambda layers: range(layers // 2),
    "second_half": lambda layers: range(layers // 2, layers),
}
"""Which of the language model's layers get experts."""


@part("moe_llava", socket="couplings", catalog=8)
class MoELLaVA(Coupling):
    """Features among the text's embeddings, experts in the language model's MLPs. A dense language model's weights may be loaded
    into it (`start={"language_model": ...}`): every expert then begins as a copy of its MLP."""

    @config
    class Config:
        """experts of a layer, and how many a token goes to; places: which layers get experts; capacity of an expert in
        training, as a multiple of its even share, None for no bound; balance: weight of the balance loss."""

        experts: int = 4
        per_token: int = 2
        places: Literal["sparse", "dense", "first_half", "second_half"] = "sparse"
        capacity: float | None = 1.5
        balance: float = 0.01

        def validate_routing(self) -> None:
            if not 1 <= self.per_token <= self.experts:
                raise ValueError(f"per_token is a number of experts, from 1 to {self.experts}, not {self.per_token}.")
            if self.capacity is not None and self.capacity <= 0:
                raise ValueError(f"capacity must be positive, or null for no bound, not {self.capacity}.")
            if self.balance < 0:
                raise ValueError(f"balance cannot be negative, as {self.balance} is.")

    def __init__(self, config: Config, width: int, language_model: nn.Module | None = None, **context: Any) -> None:
        super().__init__(config, width, language_model, **context)
        layers = decoder_layers(language_model, "moe_llava")
        self.layers: list[MixtureOfExperts] = []  # a plain list: they belong to the language model
        for index in PLACES[config.places](len(layers)):
            layer: Any = layers[index]
            if not isinstance(getattr(layer, "mlp", None), nn.Module):
                raise UserError(f"coupling 'moe_llava' replaces MLPs; layers of type {type(layer).__name__} have no `mlp`.")
            layer.mlp = MixtureOfExperts(layer.mlp, width, config.experts, config.per_token, config.capacity)
            self.layers.append(layer.mlp)

    def sockets(self) -> dict[str, nn.Module]:
        """The layers of experts: what the third stage trains."""
        return {"coupling": nn.ModuleList(self.layers)}

    def begin(self, now: Pass) -> None:
        """Tells the routers what is padding."""
        for layer in self.layers:
            layer.real, layer.routing = now.present(), None

    def loss(self, now: Pass, last_hidden_state: Tensor) -> Tensor | None:
        """The weighted sum of the layers' balance losses."""
        found = [layer.routing.balance() for layer in self.layers if layer.routing is not None]
        return self.config.balance * sum(found) if found else None


@claim("right after copying, the mixture answers as the dense model it was made from", kind="exact", paper="section 3.2")
def upcycled_equals_dense(lab: Lab) -> Finding:
    """A dense language model's weights loaded into one with experts: logits, with and without a cache, packed and single; and by
    how much they differ once the experts do."""
    import torch

    from tessera.lab.instruments.couplings import consistent, pictures, prefix, tiny

    dense, sparse = tiny({"kind": "prefix"}), tiny({"kind": "moe_llava"}, seed=1)
    for name, socket in sparse.sockets().items():
        if name != "coupling":  # its layers are the language model's
            socket.load_state_dict(dense.sockets()[name].state_dict())
    ids = torch.tensor([[*prefix(dense, 2), 6, 20, 7]])
    with torch.no_grad():
        apart = float((sparse(ids, pictures(2)).logits - dense(ids, pictures(2)).logits).abs().max())
        for expert in sparse.model.coupling.layers[0].experts[1:]:
            expert.down_proj.weight.neg_()
        changed = float((sparse(ids, pictures(2)).logits - dense(ids, pictures(2)).logits).abs().max())
    together = consistent(sparse)
    return Finding(
        checks={
            "logits within 1e-5": apart <= 1e-5,
            "experts that differ change them": changed > 1e-3,
            "packing, batching and caching change nothing": max(together.values()) <= 1e-5,
        },
        measured={"logits differ by": apart, **together},
        control={"with other experts by": changed},
        shape="4 layers of width 32, experts in 2, float32, random weights",
    )


@claim("the mixture is Mixtral's, the balance loss that of the paper", kind="exact", paper="section 3.2, equations 4 to 6")
def equals_mixtral(lab: Lab) -> Finding:
    """Two of four experts against transformers' Mixtral on the same weights; the balance loss against a loop over tokens, and at
    an even load, where it is 1."""
    import torch
    from transformers import MixtralConfig
    from transformers.models.llama.modeling_llama import LlamaConfig, LlamaMLP
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    from tessera.nn.moe import route

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = MixtralConfig(**sizes, num_local_experts=4, num_experts_per_tok=2)
    config._experts_implementation = "eager"
    theirs = MixtralSparseMoeBlock(config).eval()
    mine = MixtureOfExperts(LlamaMLP(LlamaConfig(**sizes)), 16, 4, 2).eval()
    x = torch.randn(3, 7, 16)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.3)
        mine.router.weight.copy_(theirs.gate.weight)
        expert: Any
        for i, expert in enumerate(mine.experts):
            gate, up = theirs.experts.gate_up_proj[i].chunk(2)
            expert.gate_proj.weight.copy_(gate)
            expert.up_proj.weight.copy_(up)
            expert.down_proj.weight.copy_(theirs.experts.down_proj[i])
        wanted = theirs(x)
        apart = float((mine(x) - (wanted[0] if isinstance(wanted, tuple) else wanted)).abs().max())
        logits = torch.randn(50, 4)
        shares = logits.softmax(-1)
        looped = sum(4 * float((shares.argmax(-1) == i).float().mean()) * float(shares[:, i].mean()) for i in range(4))
        balance = float(route(logits, 2, None).balance())
        even = float(route(torch.eye(4) * 50, 2, None).balance())
        full = route(torch.tensor([[5.0, 1.0, 0.0, -1.0]]).expand(8, 4), 2, 1.0)
    return Finding(
        checks={
            "outputs within 1e-6": apart <= 1e-6,
            "balance loss within 1e-6": abs(balance - looped) <= 1e-6,
            "1 at an even load": abs(even - 1) <= 1e-6,
            "an expert takes its capacity and no more": full.weights.gt(0).sum(0).tolist() == [4, 4],
        },
        measured={"outputs differ by": apart, "balance losses differ by": abs(balance - looped), "balance at an even load": even},
        shape="21 tokens of width 16, 4 experts, float32",
    )


@claim("experts made from a trained model get ahead of training it on", kind="effect", paper="section 4.3, table 7")
def ahead_of_dense(lab: Lab) -> Finding:
    """The third stage, which trains the experts alone, from the reference model, against the dense model whose language model is
    trained on for as long. Controls: routers that send every token to other experts than they learned to, and a mixture whose
    language model and projector never had the first two stages."""
    from tessera.lab.instruments.couplings import accuracy, bridged
    from tessera.lab.lab import mean, spread

    towers = {"encoders.0": "object-expert", "encoders.1": "reading-expert"}
    start = {**towers, "connector": "nano", "language_model": "nano"}
    stage = bridged({"kind": "moe_llava"}, {"coupling": 1.0}, steps=60, start=start, lr=1e-3)
    dense = bridged({"kind": "prefix"}, {"language_model": 1.0}, steps=60, start=start, lr=1e-3)
    bare = bridged({"kind": "moe_llava"}, {"*": 1.0, "encoders.*": 0.0}, steps=60, start=towers)
    trained = [lab.train(stage, seed=seed) for seed in lab.seeds]
    sparse = [accuracy(lab, pair) for pair in trained]
    on = [accuracy(lab, lab.train(dense, seed=seed)) for seed in lab.seeds]
    astray = [accuracy(lab, (shuffled(model), processor)) for model, processor in trained]
    unstaged = accuracy(lab, lab.train(bare, seed=0))
    loads = [load for pair in trained for load in loads_of(*pair)]
    return Finding(
        checks={
            "at least the dense model": mean(sparse) >= mean(on),
            "a point ahead of the dense model": mean(sparse) - mean(on) >= 0.01,
            "every expert takes 10 to 50 % of the tokens": min(loads) >= 0.1 and max(loads) <= 0.5,
            "shuffled routers are a point behind": mean(sparse) - mean(astray) >= 0.01,
            "without the first stages it is worse": mean(sparse) > unstaged,
        },
        measured={"accuracy": mean(sparse), "least load": min(loads), "greatest load": max(loads)},
        baseline={"accuracy of the dense model": mean(on)},
        control={"accuracy with shuffled routers": mean(astray), "accuracy without the first stages": unstaged},
        seeds=lab.seeds,
        spread={"accuracy": spread(sparse), "dense": spread(on), "shuffled": spread(astray)},
        shape="60 steps of 24 samples; 240 questions of 4 types about 1 to 3 things",
        note="Where it fails: after so few steps the experts are still much the same, so it hardly matters which one is asked.",
    )


@claim("more experts cost memory, not arithmetic", kind="cost", paper="section 4.2, table 3")
def constant_arithmetic(lab: Lab) -> Finding:
    """FLOPs of a prefill and parameters with 2, 4 and 8 experts of which a token goes to two; sizes of the reference model."""
    import torch

    from tessera.lab.instruments.couplings import nano_model
    from tessera.models.configuration import TesseraConfig
    from tessera.models.modeling import TesseraForConditionalGeneration

    def cost(spec: dict[str, Any]) -> tuple[int, int]:
        model = nano_model(spec)
        model["text_config"]["vocab_size"] = 512
        built = TesseraForConditionalGeneration._from_config(TesseraConfig(**model), attn_implementation="eager").eval()
        ids = torch.tensor([[1, 5, *range(20, 84)]])
        count = sum(p.numel() for p in built.model.language_model.parameters())
        return lab.flops(lambda: built(ids, logits_to_keep=1)), count

    (dense, plain), (two, _) = cost({"kind": "prefix"}), cost({"kind": "moe_llava", "experts": 2})
    (four, large), (eight, larger) = (cost({"kind": "moe_llava", "experts": n}) for n in (4, 8))
    return Finding(
        checks={
            "FLOPs with 8 experts within 2 % of those with 2": eight / two <= 1.02,
            "less than twice the dense model's FLOPs": four / dense < 2,
            "parameters grow": plain < large < larger,
        },
        measured={
            "FLOPs over dense, 4 experts": four / dense,
            "FLOPs over dense, 8 experts": eight / dense,
            "parameters over dense, 4 experts": large / plain,
            "parameters over dense, 8 experts": larger / plain,
        },
        baseline={"FLOPs": dense, "parameters": plain},
        shape="language model 8 x 224, experts in every other layer, 66 tokens of text",
    )


def shuffled(model: Any) -> Any:
    """A copy whose routers name, for each expert, the next one."""
    import copy

    astray = copy.deepcopy(model)
    for layer in astray.model.coupling.layers:
        weight = layer.router.weight
        weight.data = weight.data.roll(1, 0)
    return astray


def loads_of(model: Any, processor: Any) -> list[float]:
    """Share of the tokens that every expert of every layer takes, on 16 test scenes with a question each."""
    import torch

    from tessera.lab.instruments.couplings import SCENES
    from tessera.world import World

    world = World(split="test", width=model.image_size, height=model.image_size, **SCENES)
    samples = [world[i] for i in range(16)]
    texts = [processor.prompt(sample.questions()[0].text) for sample in samples]
    inputs = processor(images=[s.images() for s in samples], text=texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        model(**inputs, logits_to_keep=1)
    return [float(share) for layer in model.model.coupling.layers for share in layer.routing.load()]
