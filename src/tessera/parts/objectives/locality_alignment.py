"""Locality alignment: every patch embedding learns to carry what its own patch contributes (MaskEmbed).

Source: Covert, Sun, Zou, Hashimoto, "Locality Alignment Improves Vision-Language Models", 2024, arXiv:2410.11087. A pretrained
encoder is its own teacher. The teacher, frozen and without its last blocks, sees images with masked pixels; the student sees the
whole image once, its patch embeddings are masked alike, and a small transformer has to reconstruct from them what the teacher
said. It can only do so where an embedding says what its patch shows. No labels are needed, and the decoder is left behind.

Deviations: the encoder keeps its last norm instead of starting it anew, because it goes back into its model as it is, while the
zero-initialised head belongs to the objective (the released code leaves it in the encoder). Masked pixels are zero, the mid
grey of our normalisation. Our encoders give no class token. Teacher outputs are scaled to unit variance around their mean, as
the released code does with a calibration run, here over the first batch's worth of images at `prepare`. The decoder's MLPs use
the tanh form of GELU, as those of `conv_vit` do, whatever the encoder; the released decoder follows the encoder in its
activation (exact GELU is timm's default, quick GELU CLIP's), norm, kind of MLP, number of heads, and norms of queries and keys.
Where the patches do not fill the image (27 of 14 pixels in 384), the rest is hidden under every mask, as in the released code.

Shapes: B images, N patches, D width of the encoder, W of the decoder, R masks per image (1 to 3): masks [B, R, N].
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tessera.config import config
from tessera.data.dense import to_pixels
from tessera.errors import TesseraError, UserError
from tessera.nn import initialise
from tessera.nn.vit import FeedForward, SelfAttention, eager_backend
from tessera.registry import part
from tessera.training.objective import Collate, Frozen, Loss, Objective
from tessera.training.stages import sockets_of

if TYPE_CHECKING:
    from tessera.models.contracts import Encoder
    from tessera.world import World


def draw_masks(seed: Sequence[int], patches: int, opposite: bool = True, whole: bool = True) -> np.ndarray:
    """Masks of one image, float32 [R, N] of 0 (hidden) and 1: a random one whose number of ones is uniform over 0..N, its
    complement if `opposite`, and all ones if `whole`."""
    values = np.random.default_rng(list(seed)).uniform(size=patches + 1)
    drawn = (values[1:] > values[0]).astype(np.float32)
    masks = [drawn, *([1 - drawn] if opposite else []), *([np.ones_like(drawn)] if whole else [])]
    return np.stack(masks)


def mask_pixels(pixels: Tensor, mask: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """Pixels [B, 3, H, W] with what mask [B, N] hides set to zero: N = rows x columns patches of `patch` x `patch` pixels.

    Patches begin at the upper left corner. Rows and columns of pixels that are left over belong to none and are always hidden.
    Raises `TesseraError` where the grid does not fit into the pixels.
    """
    height, width = pixels.shape[-2:]
    rows, columns = grid
    if rows * patch > height or columns * patch > width:
        raise TesseraError(f"{rows} x {columns} patches of {patch} pixels do not fit into {height} x {width} pixels.")
    shown = mask.view(-1, 1, rows, columns).repeat_interleave(patch, 2).repeat_interleave(patch, 3)
    return pixels * F.pad(shown, (0, width - columns * patch, 0, height - rows * patch))


def patch_side(encoder: Encoder) -> int:
    """Side in pixels of an encoder's patches: its `patch_size` where it has one, else its image divided by its grid."""
    return encoder.image_size // encoder.grid[0] if encoder.patch_size is None else encoder.patch_size


class DecoderBlock(nn.Module):
    """Pre-norm transformer block whose two branches are scaled by learned vectors that start near zero. [B, N, W] -> same."""

    def __init__(self, width: int, heads: int, scale: float) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), SelfAttention(width, heads, eager_backend())
        self.norm2, self.mlp = nn.LayerNorm(width), FeedForward(width, 4 * width)
        self.scale1, self.scale2 = (nn.Parameter(torch.full((width,), scale)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale1 * self.attention(self.norm1(x))
        return x + self.scale2 * self.mlp(self.norm2(x))


class Decoder(nn.Module):
    """Masked patch embeddings -> the teacher's tokens: embeddings [B R, N, W], mask [B R, N] -> [B R, N, D]."""

    def __init__(self, patches: int, width: int, heads: int, depth: int, out_width: int, scale: float) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(patches, width) * 0.02)
        self.blocks = nn.Sequential(*(DecoderBlock(width, heads, scale) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, out_width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.out(self.norm(self.blocks(x * mask[..., None] + self.position)))


def encoder_of(model: Any, number: int) -> Any:
    """The encoder of a dual encoder or a vision expert, or encoder `number` of a composed model. Raises `UserError`."""
    own = getattr(model, "encoder", None)
    if own is not None:
        return own
    found = sockets_of(model).get(f"encoders.{number}")
    if found is None:
        raise UserError(f"{type(model).__name__} has no encoder {number} that could be aligned.")
    return found


def without_last(encoder: nn.Module, blocks: int) -> nn.Module:
    """A copy of an encoder without its last blocks; what follows them stays. Raises `UserError` if it has no more than these."""
    twin = copy.deepcopy(encoder)
    lists = [m for m in twin.modules() if isinstance(m, nn.ModuleList)]
    longest = max(lists, key=len, default=nn.ModuleList())
    if len(longest) <= blocks:
        raise UserError(f"the teacher is to skip {blocks} blocks, but {type(encoder).__name__} has {len(longest)}.")
    if blocks:
        del longest[-blocks:]
    return twin


@part("locality_alignment", socket="objectives", catalog=101)
class LocalityAlignment(Objective):
    """Reconstruction of a masked teacher's tokens from masked patch embeddings."""

    decoder: Decoder
    head: nn.Linear
    teacher: Frozen
    mean: Tensor
    deviation: Tensor

    @config
    class Config:
        """encoder: which one of a composed model; skip: last blocks that the teacher lacks; depth, width (0: the encoder's),
        heads of the decoder; scale: start of its branches; opposite, whole: whether the complementary and the full mask are used
        besides the random one; loss: over all tokens; shuffled: whether the teacher sees another mask than the student, a control
        that rewards no locality."""

        encoder: int = 0
        skip: int = 1
        depth: int = 2
        width: int = 0
        heads: int = 4
        scale: float = 1e-6
        opposite: bool = True
        whole: bool = True
        loss: Literal["mse", "cosine"] = "mse"
        shuffled: bool = False

        def validate_sizes(self) -> None:
            if self.skip < 0 or self.depth < 1 or self.width < 0 or self.heads < 1 or self.width % self.heads:
                raise ValueError("skip is not negative, depth and heads are positive, width (0: the encoder's) divides by heads.")

    def prepare(self, model: nn.Module, processor: Any) -> None:
        """Makes teacher, head and decoder for the model's encoder."""
        c, encoder = self.config, encoder_of(model, self.config.encoder)
        width, patches = c.width or int(encoder.width), encoder.grid[0] * encoder.grid[1]
        if width % c.heads:
            raise UserError(f"a decoder of width {width} cannot have {c.heads} heads; set heads or width.")
        self.teacher = Frozen(without_last(encoder, c.skip))
        self.head = nn.Linear(int(encoder.width), width)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.decoder = Decoder(patches, width, c.heads, c.depth, int(encoder.width), c.scale)
        for block in self.decoder.blocks:
            initialise.tree(block)
        for name, value in zip(("mean", "deviation"), self._calibrated(encoder), strict=True):
            self.register_buffer(name, value)

    def _calibrated(self, encoder: Any) -> tuple[Tensor, Tensor]:
        """Mean [D] and overall deviation of the teacher's tokens, over masked pictures of the world."""
        from tessera.world import World

        size = int(encoder.image_size)
        world = World(split="train", kinds={"scene": 1.0})
        pixels = to_pixels([np.asarray(world[i].images()[0]) for i in range(16)])
        pixels = F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
        masks = torch.from_numpy(np.stack([draw_masks((i,), encoder.grid[0] * encoder.grid[1])[0] for i in range(16)]))
        with torch.no_grad():
            shown = mask_pixels(pixels, masks, encoder.grid, patch_side(encoder))
            tokens = self.teacher(shown.to(next(encoder.parameters()))).float().flatten(0, 1)
        mean = tokens.mean(0)
        return mean, (tokens - mean).square().mean().sqrt()

    def sockets(self, model: nn.Module) -> dict[str, nn.Module]:
        """The encoder alone."""
        return {"encoder": encoder_of(model, self.config.encoder)}

    def collate(self, worlds: Sequence[World], processor: Any, batch_size: int) -> Collate:
        """Pictures with their masks. The world's images must have the encoder's size."""
        patches = len(self.decoder.position)
        c = self.config

        def batch(indices: Sequence[int]) -> dict[str, Any]:
            samples = [worlds[i % len(worlds)].sample(i, None) for i in indices]
            masks = [draw_masks((0, i), patches, c.opposite, c.whole) for i in indices]
            found = {"pixel_values": to_pixels([np.asarray(s.images()[0]) for s in samples])}
            found["masks"] = torch.from_numpy(np.stack(masks))
            if c.shuffled:
                others = [draw_masks((1, i), patches, c.opposite, c.whole) for i in indices]
                found["teacher_masks"] = torch.from_numpy(np.stack(others))
            return found

        return batch

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor], reference: nn.Module | None) -> Loss:
        """See the module. A unit is an image with all its masks."""
        encoder, pixels, masks = encoder_of(model, self.config.encoder), batch["pixel_values"], batch["masks"]
        images, rounds, _ = masks.shape
        of_teacher = batch.get("teacher_masks", masks).flatten(0, 1)
        with torch.no_grad():
            shown = mask_pixels(pixels.repeat_interleave(rounds, 0), of_teacher, encoder.grid, patch_side(encoder))
            wanted = self.teacher(shown).float()
            wanted = (wanted - self.mean) / self.deviation
        embedded = self.head(encoder(pixels)).repeat_interleave(rounds, 0)
        found = self.decoder(embedded, masks.flatten(0, 1)).float()
        if self.config.loss == "cosine":
            each = 1 - F.cosine_similarity(found, wanted, dim=-1)
        else:
            each = (found - wanted).square().mean(-1)
        total = each.mean(-1).view(images, rounds).mean(1).sum()
        explained = 1 - (found.detach() - wanted).square().mean() / wanted.square().mean()
        weight = total.new_tensor(float(images))
        return Loss(total, weight, {"explained": explained * images})
