"""eP-ALM injects one visual token per layer into the last layers of a frozen language model.

Source: Shukor, Dancette and Cord, "eP-ALM: Efficient Perceptual Augmentation of Language Models", 2023, arXiv:2303.11403. What
the last k layers of a frozen encoder say of the whole image goes through one linear projection. From one layer of the
language model on, a single visual token stands in the text; in front of every later layer it is replaced by the next, deeper
level, so that the text grows by one token however many levels there are. Besides, a few soft prompt tokens are trained; all
else is frozen.

Deviations: the token stands at the image's place, with its position, where the released code puts it in front of the text
without one; until its first layer nothing sees it, which is the same as its not being there. It sees only what stands before it:
the released code lets it see the whole text, the answer included, and behind the last injection the text sees it.
A level is the mean over the encoder's patches, normalised, where a class token would be. Every image brings its own prompt
tokens. Several encoders' levels are concatenated, the deepest with the deepest.

Shapes: B rows, T tokens, M images, k levels, D channels of all encoders, E of the language model, L its layers.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from tessera.config import config
from tessera.errors import UserError
from tessera.models.coupling import Coupling, Pass, decoder_layers, hidden_of, require, with_hidden
from tessera.nn import initialise
from tessera.nn.tokens import VisualTokens
from tessera.registry import part

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tessera.models.contracts import Encoder


@part("ep_alm", socket="couplings", catalog=119)
class EPALM(Coupling):
    """One linear projection, k levels, one visual token; sees the towers."""

    sees = "towers"
    masks = True

    @config
    class Config:
        """levels k, from the encoder's last; the visual token is there from layer `start` on and injected in front of layers
        start to end - 1 (None: the last 2/5 of the language model, but for its last layer); shared: one projection for all
        levels; prompt: soft prompt tokens; prompt_mlp: they go through a small MLP."""

        levels: int = 6
        start: int | None = None
        end: int | None = None
        shared: bool = True
        prompt: int = 1
        prompt_mlp: bool = False

        def validate_sizes(self) -> None:
            if self.levels < 1 or self.prompt < 0:
                raise ValueError(f"there is at least 1 level and no negative prompt, not {self.levels} and {self.prompt}.")

    def __init__(
        self,
        config: Config,
        width: int,
        language_model: nn.Module | None = None,
        encoders: Sequence[Encoder] = (),
        **context: Any,
    ) -> None:
        super().__init__(config, width, language_model, encoders, **context)
        layers = decoder_layers(language_model, "ep_alm")
        depths = [encoder.level_count for encoder in encoders]
        if not depths or min(depths) < config.levels:
            raise UserError(f"coupling 'ep_alm': {config.levels} levels are wanted, the encoders have {depths}.")
        self.start = (3 * len(layers)) // 5 if config.start is None else config.start
        self.end = max(len(layers) - 1, self.start + 1) if config.end is None else config.end
        if not 0 <= self.start < self.end <= len(layers):
            raise UserError(
                f"coupling 'ep_alm' injects in front of layers start to end - 1, of {len(layers)}; start is {self.start}, "
                f"end {self.end}."
            )
        if self.end - self.start < config.levels:
            raise UserError(
                f"coupling 'ep_alm': {config.levels} levels need as many layers; between start {self.start} and end {self.end} "
                f"are {self.end - self.start}. Take fewer levels or an earlier start."
            )
        self.count = config.levels
        channels = sum(encoder.width for encoder in encoders)
        self.projection = nn.ModuleList(nn.Linear(channels, width) for _ in range(1 if config.shared else config.levels))
        self.prompt = nn.Embedding(config.prompt, width) if config.prompt else None
        mlp = config.prompt and config.prompt_mlp
        self.prompt_mlp = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width)) if mlp else None
        for index, layer in enumerate(layers):
            layer.register_forward_pre_hook(partial(self._inject, index), with_kwargs=True)
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normal 0.02 for layers, normal 0.02 for the prompt."""
        initialise.tree(self)
        if self.prompt is not None:
            init.normal_(self.prompt.weight, std=0.02)

    def level_at(self, layer: int) -> int | None:
        """Which level is injected in front of a layer, 0 being the shallowest; None: the token stays as it is."""
        if not self.start <= layer < self.end:
            return None
        return min((layer - self.start) // ((self.end - self.start) // self.count), self.count - 1)

    def encode(self, pixel_values: Tensor, encoders: Sequence[Encoder]) -> VisualTokens:
        """[M, 3, S, S] -> what the last k layers say of the whole image, [M, k, D], from shallow to deep."""
        found = []
        for encoder in encoders:
            pixels = pixel_values.to(next(encoder.parameters()).dtype)
            size = encoder.image_size
            if pixels.shape[-2:] != (size, size):
                pixels = F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
            levels = encoder.levels(pixels)[-self.count :]
            found.append(torch.stack([level.mean(1) for level in levels], dim=1))
        features = torch.cat([F.layer_norm(x, x.shape[-1:]) for x in found], dim=-1)
        places = torch.full((*features.shape[:2], 2), 0.5, device=features.device)
        return VisualTokens(features=features, positions=places, mask=torch.ones_like(places[..., 0], dtype=torch.bool))

    def receive(self, features: Tensor) -> Tensor:
        """[M, k, D] -> [M, k, E]."""
        if len(self.projection) == 1:
            return self.projection[0](features)
        return torch.stack([project(features[:, i]) for i, project in enumerate(self.projection)], dim=1)

    def placeholders(self, count: int) -> int:
        """The prompt tokens, and one for all levels."""
        return self.config.prompt + 1

    def forward(self, embeddings: Tensor, placeholders: Tensor, features: Tensor) -> Tensor:
        """Writes the prompt into the first placeholders [B, T] of every image. Raises `UserError` where their number is wrong."""
        each = self.config.prompt + 1
        require(placeholders, len(features), each)
        if self.prompt is None:
            return embeddings
        prompt = self.prompt.weight if self.prompt_mlp is None else self.prompt_mlp(self.prompt.weight)
        row = torch.cat([prompt, prompt.new_zeros(1, prompt.shape[1])]).to(embeddings.dtype)
        return embeddings.masked_scatter(placeholders[..., None], row.repeat(len(features), 1))

    def begin(self, now: Pass) -> None:
        """Finds the visual tokens: the last placeholder of every image."""
        each = self.config.prompt + 1
        visual = now.placeholders & (now.placeholders.cumsum(1) % each == 0)
        now.notes["visual"] = visual
        known = torch.zeros_like(visual[:, :1]).expand(-1, now.cached) if now.memory is None else now.memory[:, : now.cached]
        now.memory = torch.cat([known, visual], dim=1)

    def _inject(self, index: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.now is None:
            return None
        if index < self.start:
            return args, {**kwargs, "attention_mask": without(kwargs.get("attention_mask"), self.now.memory, self.now.cached)}
        level = self.level_at(index)
        if level is None or self.now.features is None:
            return None
        hidden = hidden_of(args, kwargs)
        visual = self.now.notes["visual"][..., None]
        return with_hidden(args, kwargs, hidden.masked_scatter(visual, self.now.features[:, level].to(hidden.dtype)))


def without(mask: Tensor | None, hidden: Tensor, cached: int) -> Tensor:
    """A mask [B, 1, T, K], boolean or additive, in which keys `hidden` [B, K] are seen by nobody but themselves."""
    if mask is None or mask.ndim != 4:
        raise UserError("coupling 'ep_alm' needs a language model whose layers take a 4-D attention_mask by name.")
    queries, keys = mask.shape[-2:]
    itself = torch.arange(cached, cached + queries, device=mask.device)[:, None] == torch.arange(keys, device=mask.device)
    gone = hidden[:, None, None, :keys] & ~itself
    return mask & ~gone if mask.dtype == torch.bool else mask.masked_fill(gone, torch.finfo(mask.dtype).min)


TINY = {"kind": "ep_alm", "levels": 2, "start": 1, "end": 3, "prompt": 2}
