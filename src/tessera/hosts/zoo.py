"""Tiny vision-language models of every family, with random weights, made from their configurations: nothing is downloaded.

They are what `tessera hosts --check` and the tests try parts on: float32, weights large enough that every input leads elsewhere,
and no answer ends by itself. Inputs are made without processors: token ids, and noise for pixels.

Shapes: B rows, S tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tessera.errors import unknown
from tessera.hosts.tiny_configs import BOS, IMAGE, PAD, RECIPES, WORDS, Images, TinyRecipe


@dataclass(frozen=True, slots=True)
class Tiny:
    """A tiny model of a family (`name` in `RECIPES`) in evaluation mode, and inputs for it."""

    name: str
    model: Any

    def inputs(self, images: Images = (1, 1), seed: int = 0) -> dict[str, Any]:
        """See `inputs`."""
        return inputs(self.name, images, seed)


def names() -> list[str]:
    """All tiny models."""
    return list(RECIPES)


def recipe(name: str) -> TinyRecipe:
    """The recipe of a name. Raises `UserError` naming the nearest ones."""
    if name not in RECIPES:
        raise unknown("tiny host", name, RECIPES)
    return RECIPES[name]


def tiny(name: str, seed: int = 0, **changes: Any) -> Tiny:
    """A tiny model; `changes` replace entries of its configuration (dictionaries are merged).

    The same seed gives the same weights. Raises `UserError` for an unknown name, `ModuleNotFoundError` without the package that
    the family's tower needs.
    """
    import transformers
    from transformers import AutoModelForImageTextToText
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    described = recipe(name)
    if described.package is not None:
        __import__(described.package)
    if described.model_type == "tessera_vlm":
        import tessera.models.modeling  # noqa: F401  registers itself with the Auto classes
    values = copy.deepcopy(dict(described.config))
    for key, value in changes.items():
        values[key] = {**values[key], **value} if isinstance(value, Mapping) and isinstance(values.get(key), dict) else value
    state = torch.get_rng_state()
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        torch.manual_seed(seed)
        config = CONFIG_MAPPING[described.model_type](tie_word_embeddings=False, **values)
        model = AutoModelForImageTextToText.from_config(config)
        fill(model, seed)
    finally:
        torch.set_rng_state(state)
        transformers.logging.set_verbosity(level)
    for settings in (getattr(part, "generation_config", None) for part in (model, getattr(model, "language_model", None))):
        if settings is not None:  # answers have the length that is asked for
            settings.eos_token_id, settings.pad_token_id, settings.do_sample = None, PAD, False
    return Tiny(name, model.eval())


def fill(model: nn.Module, seed: int = 0) -> None:
    """Random weights that keep the size of what passes through, with attention that is not flat; norms stay as they are."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, module in model.named_modules():
            sharp = 1.6 if name.rpartition(".")[2] in ("q_proj", "k_proj", "qkv") else 1.0
            dense = isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d))
            for key, parameter in module.named_parameters(recurse=False):
                if dense and key == "weight":
                    scale = sharp * parameter[0].numel() ** -0.5
                elif dense:
                    scale = 0.05
                elif isinstance(module, nn.Embedding):
                    scale = 0.3 if "position" in name else 1.0
                elif key in ("weight", "bias"):
                    continue
                else:
                    scale = 0.3  # class tokens, queries, positions, newlines
                parameter.copy_(torch.randn(parameter.shape, generator=random) * scale)


def inputs(name: str, images: Images = (1, 1), seed: int = 0) -> dict[str, Any]:
    """Prepared inputs for a batch: row i has `images[i]` images; rows differ in length and are padded on the left.

    input_ids, attention_mask [B, S] int64, and what the family's processor adds for the images. `(1, 1)`: two rows with one
    image each; `(2, 1)`: two images in one row; `(0, 0)`: text only. `seed` changes the text. Raises `UserError` for an unknown
    name and `ValueError` for more images in a row than the family takes, or fewer.
    """
    described = recipe(name)
    if not described.fewest_images <= min(images) <= max(images) <= described.most_images:
        raise ValueError(f"{name} takes {described.fewest_images} to {described.most_images} images a row, not {list(images)}.")
    random = torch.Generator().manual_seed(seed + 7)

    def words(count: int) -> list[int]:
        return torch.randint(*WORDS, (count,), generator=random).tolist()

    rows: list[list[int]] = []
    for i, count in enumerate(images):
        tokens = described.tokens if count == 1 or described.tokens_shared is None else described.tokens_shared
        row = [BOS, *words((4, 9)[i % 2])]
        for _ in range(count):
            row += [*described.around[0], *[IMAGE] * tokens, *described.around[1], *words(2)]
        rows.append(row + words((7, 11)[i % 2]))
    longest = max(map(len, rows))
    ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    pixels = described.pixels(images) if sum(images) else {}
    return {"input_ids": ids, "attention_mask": mask, **described.types(ids), **pixels}
