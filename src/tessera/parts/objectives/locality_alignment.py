"""Locality alignment: every patch embedding learns to carry what its own patch contributes (MaskEmbed).

Source: Covert, Sun, Zou, Hashimoto, "Locality Alignment Improves Vision-Language Models", 2024, arXiv:2410.11087. A pretrained
encoder teaches itself. The teacher, frozen and without its last blocks, sees images with masked pixels; the student sees the
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
from tessera.errors import TesseraError, UserError
from tessera.lab.claim import Finding, claim
from tessera.nn import initialise
from tessera.nn.vit import MLP, SelfAttention, eager_backend
from tessera.registry import part
from tessera.training.dense import to_pixels
from tessera.training.objective import Collate, Frozen, Loss, Objective
from tessera.training.stages import sockets_of

if TYPE_CHECKING:
    from tessera.lab.lab import Lab
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


def patch_side(encoder: Any) -> int:
    """Side in pixels of an encoder's patches: its `patch_size` where it has one, else its image divided by its grid."""
    own = getattr(encoder, "patch_size", None)
    return int(encoder.image_size) // int(encoder.grid[0]) if own is None else int(own)


class DecoderBlock(nn.Module):
    """Pre-norm transformer block whose two branches are scaled by learned vectors that start near zero. [B, N, W] -> same."""

    def __init__(self, width: int, heads: int, scale: float) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), SelfAttention(width, heads, eager_backend())
        self.norm2, self.mlp = nn.LayerNorm(width), MLP(width, 4 * width)
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


# Claims


@claim("masks hide 0 to N patches equally often, with complement and whole", kind="exact", paper="section 3.2")
def masks_are_uniform(lab: Lab) -> Finding:
    """The number of shown patches over many draws: chi-square against the uniform distribution, 1 % level."""
    patches, draws = 16, 6800
    masks = np.stack([draw_masks((7, i), patches) for i in range(draws)])
    counts = np.bincount(masks[:, 0].sum(1).astype(int), minlength=patches + 1)
    expected = draws / (patches + 1)
    chi = float(((counts - expected) ** 2 / expected).sum())
    critical = 32.0  # of the chi-square distribution with 16 degrees of freedom, 1 %
    return Finding(
        checks={
            "uniform": chi < critical,
            "complement": bool((masks[:, 0] + masks[:, 1] == 1).all()),
            "whole": bool((masks[:, 2] == 1).all()),
        },
        measured={"chi-square": chi},
        baseline={"chi-square at 1 %": critical},
        shape=f"{draws} masks of {patches} patches",
    )


@claim("decoder and loss equal the method written out, image by image and mask by mask", kind="exact", paper="equation 3")
def equals_the_method(lab: Lab) -> Finding:
    """A tiny encoder: teacher on pixels that loops have masked, embeddings masked by hand, attention by its formula."""
    model = _tiny()
    torch.manual_seed(3)
    ours = LocalityAlignment(LocalityAlignment.Config(heads=2, depth=2, scale=0.5))
    ours.prepare(model, None)
    nn.init.normal_(ours.head.weight, std=0.3)
    pixels = torch.randn(2, 3, 32, 32)
    masks = torch.from_numpy(np.stack([draw_masks((1, i), 16) for i in range(2)]))
    loss = ours.loss(model, {"pixel_values": pixels, "masks": masks}, None)
    with torch.no_grad():
        naive = float(np.mean([_literal(ours, model, pixels[b], masks[b, r]) for b in range(2) for r in range(3)]))
    off = abs(float((loss.loss_sum / loss.loss_weight).detach()) - naive)
    return Finding(checks={"to 1e-5": off <= 1e-5}, measured={"differs by": off}, shape="2 images of 16 patches, 3 masks each")


def _tiny() -> Any:
    from tessera.models.configuration import TesseraVisionConfig
    from tessera.models.vision import TesseraVisionModel

    torch.manual_seed(0)
    encoder = {"kind": "conv_vit", "image_size": 32, "patch_size": 8, "width": 16, "depth": 3, "heads": 2}
    return TesseraVisionModel(TesseraVisionConfig(encoder=encoder)).eval()


def _literal(ours: LocalityAlignment, model: Any, pixels: Tensor, mask: Tensor) -> float:
    """The loss of one image and one mask."""
    shown = pixels.clone()
    for patch in range(16):
        if not mask[patch]:
            row, column = divmod(patch, 4)
            shown[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 0
    teacher = copy.deepcopy(model.encoder)
    teacher.blocks = teacher.blocks[:-1]
    wanted = (teacher(shown[None])[0] - ours.mean) / ours.deviation
    x = torch.stack(
        [e if m else torch.zeros_like(e) for e, m in zip(ours.head(model.encoder(pixels[None])[0]), mask, strict=True)]
    )
    x = x + ours.decoder.position
    for block in ours.decoder.blocks:
        assert isinstance(block, DecoderBlock)
        query, key, value = block.attention.qkv(block.norm1(x)).view(16, 3, 2, 8).permute(1, 2, 0, 3)
        weights = (query @ key.transpose(1, 2) / 8**0.5).softmax(-1)
        x = x + block.scale1 * block.attention.out((weights @ value).transpose(0, 1).reshape(16, 16))
        x = x + block.scale2 * block.mlp(block.norm2(x))
    found = ours.decoder.out(ours.decoder.norm(x))
    return float((found - wanted).square().mean())


@claim("patches say more of what they show, pictures as much as before", kind="effect", paper="table 1")
def patches_say_more(lab: Lab) -> Finding:
    """A linear probe of the kinds of things under single patches, and one of those in the whole picture, on an encoder that
    learned from captions."""
    from tessera.lab.instruments.further import learned, means
    from tessera.lab.lab import spread

    def aligned(seed: int, **options: Any) -> dict[str, float]:
        objective = {"kind": "locality_alignment", **options}
        return _probed(learned(lab, start="nano-clip", objective=objective, seed=seed, steps=80, batch=12, rate=3e-4)[0], seed)

    after = [aligned(s) for s in lab.seeds]
    shuffled = [aligned(s, shuffled=True) for s in lab.seeds]
    ours, control = means(after), means(shuffled)
    before = means([_probed(lab.reference("nano-clip")[0], s) for s in lab.seeds])
    gain = 100 * (ours["patch accuracy"] - before["patch accuracy"])
    moved = 100 * (ours["picture accuracy"] - before["picture accuracy"])
    return Finding(
        checks={
            "patch accuracy gains 5 points or more": gain >= 5,
            "picture accuracy changes by at most 1 point": abs(moved) <= 1,
            "masks of another draw for the teacher gain less than half": 100
            * (control["patch accuracy"] - before["patch accuracy"])
            < gain / 2,
        },
        measured={**ours, "patches gain, points": gain, "pictures gain, points": moved},
        baseline=before,
        control=control,
        seeds=lab.seeds,
        spread={name: spread([x[name] for x in after]) for name in ours},
        shape="80 steps of 12 images with 3 masks each; probes on 300 images, measured on 200",
        note="The encoder has convolutions in every block and is local already, which leaves less to gain than a plain ViT.",
    )


def _probed(model: Any, seed: int) -> dict[str, float]:
    """Accuracy of ridge regressions on frozen features: the category of the thing under a patch, and those of a picture's things,
    of as many guesses as there are right ones. (There are too many names for probes on so few images: they find 8 % of them.)"""
    from tessera.lab.instruments.towers import categories, look
    from tessera.world import World

    encoder = model.encoder
    size, classes = int(encoder.image_size), len(categories())
    sets = []
    for split, n in (("train", 300), ("test", 200)):
        world = World(split=split, seed=seed, width=size, height=size, kinds={"scene": 1.0}, things=(1, 5))
        seen = look([encoder], [world[i] for i in range(n)])
        here = seen.category >= 0
        what = F.one_hot(seen.category.clamp_min(0), classes) * here[..., None]
        sets.append((seen.features[0], what.float(), here))
    (x, y, there), (xt, yt, wanted) = sets
    patch = _ridge(x[there], y[there], xt[wanted]).argmax(-1)
    picture, shown = _ridge(x.mean(1), y.amax(1), xt.mean(1)), yt.amax(1)
    hits = [float(one[guess.topk(int(one.sum())).indices].mean()) for one, guess in zip(shown, picture, strict=True) if one.any()]
    return {"patch accuracy": float((patch == yt[wanted].argmax(-1)).float().mean()), "picture accuracy": float(np.mean(hits))}


def _ridge(x: Tensor, y: Tensor, at: Tensor, strength: float = 1.0) -> Tensor:
    """Ridge regression of y [n, C] on standardised x [n, D] with an intercept, at other points [m, D] -> [m, C]."""
    mean, deviation = x.mean(0), x.std(0) + 1e-6
    x, at = ((v - mean) / deviation for v in (x, at))
    x, at = (torch.cat([v, torch.ones(len(v), 1)], 1).double() for v in (x, at))
    gram = x.T @ x + strength * torch.eye(x.shape[1], dtype=x.dtype)
    return (at @ torch.linalg.solve(gram, x.T @ y.double())).float()
