"""EVE has no vision encoder: a light patch embedding hands pixels to the language model, which learns to see under supervision.

Source: Diao et al., "Unveiling Encoder-Free Vision-Language Models", 2024, arXiv:2406.11832. A convolution cuts the image into
patches; attention within every 2 x 2 window makes one token of four; a class token attends to all of them; a learned
token ends every row; an MLP leads to the language model's width. In training a patch-aligning layer reads the language model's
hidden states of the image tokens at every 4th layer, and a loss draws them to the features of a frozen vision encoder. Three
stages: patch embedding and aligning layer in front of a frozen language model, everything, instructions.

Deviations: square images of one size, so no fourth channel says where the image ends. Where the teacher's raster is finer than
the tokens', its features are averaged (the released teacher's never is). The teacher is frozen for good; a model without it
takes the weights of one that had it. The loss is the same in all stages, as in the released scripts.

Shapes: M images, S pixels of a side, g x g windows, n = g (g + 1) + 1 tokens, D channels of the patch embedding, E of the
language model, C of the teacher, L layers of the language model.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from tessera.config import config
from tessera.models import parts as part_specs
from tessera.models.coupling import Coupling, Pass, decoder_layers, hidden_of
from tessera.nn import initialise
from tessera.nn.tokens import VisualTokens, grid_positions
from tessera.nn.vit import Backend
from tessera.parts.couplings.eve.layers import PatchAligning, PatchEmbedding
from tessera.registry import part

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tessera.models.contracts import Encoder


@part("eve", socket="couplings", catalog=127)
class EVE(Coupling):
    """Pixels to the language model without an encoder; a teacher in training only."""

    sees = "pixels"

    @config
    class Config:
        """image_size and patch_size in pixels; window: patches per side of a token; width D; heads; teacher: a part of socket
        `encoders`, whose weights `start={"teacher": ...}` takes, or None; align: weight of its loss; every: layers between
        two that are aligned."""

        image_size: int = 112
        patch_size: int = 8
        window: int = 2
        width: int = 256
        heads: int = 8
        teacher: dict[str, Any] | None = None
        align: float = 1.0
        every: int = 4

        def validate_geometry(self) -> None:
            if min(self.image_size, self.patch_size, self.window, self.heads, self.every) < 1:
                raise ValueError("image_size, patch_size, window, heads and every must be at least 1.")
            if self.image_size % (self.patch_size * self.window):
                raise ValueError(
                    f"image_size {self.image_size} is not a multiple of patch_size times window, {self.patch_size * self.window}."
                )
            if self.width % self.heads:
                raise ValueError(f"width {self.width} cannot be divided among {self.heads} heads.")
            if self.align < 0:
                raise ValueError(f"align cannot be negative, as {self.align} is.")

    def __init__(
        self,
        config: Config,
        width: int,
        language_model: nn.Module | None = None,
        encoders: Sequence[Encoder] = (),
        backend: Backend | None = None,
    ) -> None:
        super().__init__(config, width, language_model, encoders, backend)
        self.image_size = config.image_size
        self.side = config.image_size // (config.patch_size * config.window)
        self.count = self.side * (self.side + 1) + 1
        self.embedding = PatchEmbedding(config.width, config.patch_size, config.window, config.heads)
        self.projection = nn.Sequential(nn.Linear(config.width, width), nn.GELU(), nn.Linear(width, width))
        self.teacher: Any = None
        if config.teacher is not None:
            self.teacher = part_specs.create("encoders", config.teacher, "parts.coupling.teacher", backend=backend)
            self.teacher.requires_grad_(False)
            layers = decoder_layers(language_model, "eve")
            self.depth = len(layers)
            self.aligned = range(self.depth, -1, -config.every)
            heads = heads_for(self.teacher.width, config.heads)
            self.aligning = PatchAligning(width, self.teacher.width, len(self.aligned), heads)
            for index in self.aligned[1:]:
                layers[index].register_forward_pre_hook(partial(self._remember, index), with_kwargs=True)
        self.register_load_state_dict_pre_hook(_forget_teacher)
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normal 0.02, learned tokens standard normal; the teacher as its part says."""
        for module in (self.embedding, self.projection, *([self.aligning] if self.teacher is not None else [])):
            initialise.tree(module)
        init.normal_(self.embedding.class_token)
        init.normal_(self.embedding.row_end)

    def sockets(self) -> dict[str, nn.Module]:
        """The coupling, and its teacher if it has one."""
        return {"coupling": self} | ({} if self.teacher is None else {"teacher": self.teacher})

    def encode(self, pixel_values: Tensor, encoders: Sequence[Encoder]) -> VisualTokens:
        """[M, 3, S, S] -> [M, n, D]."""
        size = self.image_size
        if pixel_values.shape[-2:] != (size, size):
            pixel_values = F.interpolate(pixel_values, size=(size, size), mode="bilinear", antialias=True)
        features = self.embedding(pixel_values.to(self.embedding.patches.weight.dtype))
        cells = grid_positions(self.side, self.side, features.device).unflatten(0, (self.side, self.side))
        ends = torch.stack([torch.ones_like(cells[:, -1:, 0]), cells[:, -1:, 1]], dim=-1)
        places = torch.cat([cells.new_full((1, 2), 0.5), torch.cat([cells, ends], dim=1).flatten(0, 1)])
        there = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
        return VisualTokens(features=features, positions=places.expand(len(features), -1, 2), mask=there)

    def receive(self, features: Tensor) -> Tensor:
        """[M, n, D] -> [M, n, E]."""
        return self.projection(features)

    def _remember(self, index: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.now is not None and self.training and self.now.pixels is not None:
            self.now.notes[index] = hidden_of(args, kwargs)

    def loss(self, now: Pass, last_hidden_state: Tensor) -> Tensor | None:
        """1 - cosine between aligned hidden states and the teacher's features, mean over the cells of the coarser raster."""
        if self.teacher is None or now.pixels is None or not self.config.align:
            return None
        hidden = [last_hidden_state, *(now.notes[index] for index in self.aligned[1:])]
        cells = [self._cells(level[now.placeholders]) for level in hidden]
        side = min(self.side, self.teacher.grid[0])
        made = self.aligning([pooled(level, side) for level in cells])
        with torch.no_grad():
            shown = now.pixels
            if shown.shape[-1] != self.teacher.image_size:
                shown = F.interpolate(shown, size=(self.teacher.image_size,) * 2, mode="bilinear", antialias=True)
            wanted = pooled(self.teacher(shown).unflatten(1, self.teacher.grid), side)
        return self.config.align * (1 - F.cosine_similarity(made.float(), wanted.float(), dim=-1).mean())

    def _cells(self, tokens: Tensor) -> Tensor:
        """Image tokens of the whole batch [M n, E] -> [M, g, g, E], without class token and row ends."""
        rows = tokens.unflatten(0, (-1, self.count))[:, 1:]
        return rows.unflatten(1, (self.side, self.side + 1))[:, :, :-1]


def pooled(cells: Tensor, side: int) -> Tensor:
    """[M, g, g, C] -> means over a raster of side x side, [M, side^2, C]."""
    return F.adaptive_avg_pool2d(cells.permute(0, 3, 1, 2), side).flatten(2).transpose(1, 2)


def heads_for(width: int, wanted: int) -> int:
    """The largest number of heads up to `wanted` that divides the width."""
    return next(heads for heads in range(wanted, 0, -1) if width % heads == 0)


def _forget_teacher(module: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Lets a coupling without a teacher take the weights of one that had it."""
    if module.teacher is None:
        for name in [n for n in state if n.startswith((f"{prefix}teacher.", f"{prefix}aligning."))]:
            del state[name]


TINY: dict[str, Any] = {
    "kind": "eve", "image_size": 32, "patch_size": 4, "width": 16, "heads": 2, "every": 2,
    "teacher": {"kind": "conv_vit", "image_size": 32, "patch_size": 8, "width": 24, "depth": 1, "heads": 2},
}  # fmt: skip
