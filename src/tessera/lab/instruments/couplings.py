"""What claims about couplings have in common: a tiny model to be exact about, and short trainings that start from the reference.

model = tiny({"kind": "flamingo", "latents": 4})
checks = consistent(model)
trained = lab.train(bridged({"kind": "flamingo"}, {"connector": 1.0, "coupling": 1.0}, steps=100), seed=0)
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from tessera.evaluation.answering import Generates, HasText, Row
    from tessera.lab.lab import Lab
    from tessera.recipes.recipe import Recipe

ENCODER = {"kind": "conv_vit", "image_size": 32, "patch_size": 8, "width": 24, "depth": 3, "heads": 2}
IMAGE = 4
"""Id of the placeholder in the tiny model's text."""
TYPES = ("attribute", "existence", "category", "position")
SCENES: dict[str, Any] = {"kinds": {"scene": 1.0}, "things": (1, 3)}
"""Easy questions about few things: what a coupling can learn in a minute or two."""


def tiny(coupling: Mapping[str, Any], *, layers: int = 4, seed: int = 0, **parts: Any) -> Any:
    """A composed model with random weights: images of 32 pixels, a language model of `layers` x 32, 64 words.

    An encoder stands in front unless the coupling reads pixels.
    """
    import torch

    from tessera.models import parts as specs
    from tessera.models.configuration import TesseraConfig
    from tessera.models.modeling import TesseraForConditionalGeneration

    if specs.sees(coupling, "coupling") != "pixels":
        parts = {"encoders": [dict(ENCODER)], **parts}
    text = {
        "model_type": "qwen3", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": layers,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256,
        "tie_word_embeddings": True, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = TesseraConfig(parts={"coupling": dict(coupling), **parts}, text_config=text, image_token_id=IMAGE)
        return TesseraForConditionalGeneration._from_config(config, attn_implementation="eager").eval()


def pictures(count: int, seed: int = 1) -> Tensor:
    """Noise [count, 3, 32, 32]."""
    import torch

    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def prefix(model: Any, images: int) -> list[int]:
    """Token ids of `<bos>` and the placeholders of some images."""
    return [1, *([5, *[IMAGE] * model.tokens_per_image] * images)]


def consistent(model: Any) -> dict[str, float]:
    """By how much results differ that must be alike: packed questions and single ones (the loss), a left-padded batch and single
    rows, a continued cache and none (logits), several beams with and without cache (tokens)."""
    import torch

    from tessera.data.packing import collate, pack, unpack

    asked = [([6, 20, 21, 7], [30, 2], None), ([6, 22, 7], [31, 32, 2], None), ([6, 23, 24, 25, 7], [33, 2], None)]
    row = pack(prefix(model, 2), asked, 250)
    images = pictures(3)
    with torch.no_grad():
        together = model(**collate([row], images[:2])).loss_sum
        alone = sum(model(**collate([single], images[:2])).loss_sum for single in unpack(row))
        ids = [*prefix(model, 2), 6, 20, 21, 7]
        short = [*prefix(model, 1), 6, 22, 7]
        blank = len(ids) - len(short)
        batch = torch.tensor([ids, [0] * blank + short])
        mask = torch.tensor([[1] * len(ids), [0] * blank + [1] * len(short)])
        whole = model(batch, images, attention_mask=mask).logits
        first, second = model(batch[:1], images[:2]).logits, model(batch[1:, blank:], images[2:]).logits
        begun = model(batch[:, :-3], images, attention_mask=mask[:, :-3], use_cache=True)
        rest = model(batch[:, -3:], past_key_values=begun.past_key_values, attention_mask=mask).logits
        options: dict[str, Any] = {"pixel_values": images, "attention_mask": mask, "max_new_tokens": 4, "do_sample": False}
        beams = [model.generate(batch, num_beams=2, use_cache=cache, **options) for cache in (True, False)]
    return {
        "packed loss differs by": float((together - alone).abs()),
        "batched logits differ by": float(torch.cat([(whole[0] - first[0]), (whole[1, blank:] - second[0])]).abs().max()),
        "cached logits differ by": float((rest - whole[:, -3:]).abs().max()),
        "cached tokens that differ": float((beams[0] != beams[1]).sum()) if beams[0].shape == beams[1].shape else float("inf"),
    }


def nano_model(coupling: Mapping[str, Any], **parts: Any) -> dict[str, Any]:
    """The reference model's configuration with another coupling, and what stands in front of it replaced by `parts` (a part that
    is None is left out)."""
    from tessera.recipes.recipe import recipe

    model = copy.deepcopy(recipe("nano").model)
    model["parts"].update(parts, coupling=dict(coupling))
    model["parts"] = {key: value for key, value in model["parts"].items() if value is not None}
    return model


def bridged(
    coupling: Mapping[str, Any],
    train: Mapping[str, float] | Sequence[Mapping[str, float]],
    *,
    steps: int,
    start: Mapping[str, str],
    lr: float = 3e-3,
    parts: Mapping[str, Any] | None = None,
) -> Recipe:
    """A short training on easy questions; `train`: what trains, in each of the stages, which share the steps."""
    from tessera.recipes.recipe import Recipe
    from tessera.training.options import Questions
    from tessera.training.plan import OptimConfig, Schedule, Stage, TrainConfig
    from tessera.world import WorldConfig

    plans = [train] if isinstance(train, Mapping) else list(train)
    return Recipe(
        name=f"coupling-{coupling['kind']}",
        about="A claim's training.",
        model=nano_model(coupling, **(parts or {})),
        start=dict(start),
        worlds=[WorldConfig(**SCENES)],
        questions=Questions(text_tokens=64, captions=(0.0, 0.0, 0.0), several=(0.0, 0.0), weights=dict.fromkeys(TYPES, 8.0)),
        training=TrainConfig(
            stages=[Stage(name=f"stage {i + 1}", steps=steps // len(plans), train=dict(p)) for i, p in enumerate(plans)],
            schedule=Schedule(warmup=20),
            optim=OptimConfig(lr=lr, muon_lr=0.02),
            batch_size=24,
            compile="off",
            save_every=0,
        ),
    )


class OtherPictures:
    """A model that is shown, with every question, the picture of another sample: a control for what it sees."""

    def __init__(self, model: Any, processor: Any) -> None:
        from tessera.evaluation.answering import generator

        self.answers: Generates = generator(model, processor)

    def answer_batch(self, rows: Sequence[Row], max_new_tokens: int) -> Sequence[Sequence[HasText]]:
        """See `tessera.evaluation.answering.Generates`."""
        shown = [images for images, _ in rows]
        moved = [*shown[1:], *shown[:1]]
        return self.answers.answer_batch([(m, asked) for m, (_, asked) in zip(moved, rows, strict=True)], max_new_tokens)


def accuracy(lab: Lab, pair: tuple[Any, Any], *, n: int = 240, others: bool = False, **options: Any) -> float:
    """Share of right answers to `n` easy questions of the test split; others: shown the pictures of other samples."""
    model, processor = pair
    if others:
        options |= {"answers": OtherPictures(model, processor), "answers_key": "other pictures"}
    return lab.evaluate(model, processor, types=TYPES, n=n, world=SCENES, **options).accuracy
