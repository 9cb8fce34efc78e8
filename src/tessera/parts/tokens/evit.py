"""EViT drops patches inside the vision tower: those to which the class token pays little attention are fused into one token.

Source: Liang et al., "Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations", 2022,
arXiv:2202.07800. Between attention and MLP of chosen blocks the patches are ranked by the class token's attention, averaged over
heads. The first ceil(keep x patches) go on; the others become one more token, the sum of them weighted by that attention
(not normalised). It is an ordinary token from then on. No parameters, so it works on a trained tower as it is.

Deviations: patches that go on keep their order (theirs are sorted by attention, which changes nothing for a tower without
positions in its attention). In front of the language model every token stands at its place: a patch at its own, a fused
token at that of the patch that weighed most in it; a token that was fused again is gone. Positions are kept unless
`positions="reindex"`. The warm-up of the keep rate in training is not part of it. Hosts are towers with a class token
whose projector maps every token by itself (LLaVA, LLaVA-NeXT): where a projector folds neighbours into one token it needs
the whole raster, and where it reads them by queries the language model's tokens are no patches.

Shapes: M images or tiles, N patches of each (without the class token), D width of the tower, E of the language model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tessera.config import config
from tessera.errors import UserError
from tessera.hosts.part import LayerView
from tessera.hosts.taps import listen, probabilities
from tessera.hosts.token_reduction import OneDrop
from tessera.registry import part

if TYPE_CHECKING:
    from tessera.hosts.contract import Host


def reorganised(tokens: Tensor, score: Tensor, keep: float, fuse: bool) -> tuple[Tensor, Tensor]:
    """Token reorganisation: tokens [M, 1 + N, D], class token first, score [M, N] -> (fewer tokens, their origin).

    What stays: the class token, the ceil(keep x N) patches with the highest score in their order (of equal ones the earlier),
    and with `fuse` the score-weighted sum of the others. origin [M, patches left] int64: number of the patch that each is, or
    that weighed most in it. Nothing changes when every patch stays.
    """
    images, patches = score.shape
    count = math.ceil(keep * patches)
    order = score.argsort(dim=1, descending=True, stable=True)
    origin = order[:, :count].sort(1).values
    if count == patches:
        return tokens, origin
    rest = order[:, count:]
    width = tokens.shape[2]
    patch = tokens[:, 1:]
    parts = [tokens[:, :1], patch.gather(1, origin[..., None].expand(images, count, width))]
    if fuse:
        weight = score.gather(1, rest)[..., None].to(tokens.dtype)
        parts.append((patch.gather(1, rest[..., None].expand(*rest.shape, width)) * weight).sum(1, keepdim=True))
        origin = torch.cat([origin, rest[:, :1]], dim=1)
    return torch.cat(parts, dim=1), origin


def put_back(tokens: Tensor, origin: Tensor, patches: int) -> Tensor:
    """Tokens [M, n, E] at their places origin [M, n] of [M, patches, E], zeros elsewhere; a class token in front stays there."""
    leading = tokens.shape[1] - origin.shape[1]
    full = tokens.new_zeros(tokens.shape[0], leading + patches, tokens.shape[2])
    place = torch.cat([torch.arange(leading, device=origin.device).expand(len(origin), leading), origin + leading], dim=1)
    return full.scatter(1, place[..., None].expand_as(tokens), tokens)


class _Blocks:
    """The hooks of one session: chosen blocks run once up to their attention's sum, and once more, behind it, on fewer tokens.

    score   of the block that runs, class token to patches [M, N]
    origin  places of the patches that are left [M, n] int64, None while all are
    skip    the half of the running block that is passed over, None when none is
    """

    def __init__(self, keep: float, fuse: bool, rank: Callable[[Tensor], Tensor]) -> None:
        self.keep, self.fuse, self.rank = keep, fuse, rank
        self.score: Tensor | None = None
        self.origin: Tensor | None = None
        self.patches = 0
        self.skip: str | None = None

    def begin(self, module: nn.Module, args: Any) -> None:
        """A new call of the tower."""
        self.score = self.origin = None

    def capture(self, module: nn.Module, query: Tensor, key: Tensor, mask: Any, scaling: float | None) -> None:
        """The block attends."""
        if self.skip == "mlp":
            self.score = self.rank(probabilities(module, query, key, mask, scaling, "class")[:, 1:])

    def install(self, block: nn.Module, attention: nn.Module, mlp: nn.Module, undo: ExitStack) -> None:
        """Hooks on one block."""
        undo.callback(block.register_forward_pre_hook(self._begin_block).remove)
        undo.callback(block.register_forward_hook(self._second_half, with_kwargs=True, prepend=True).remove)
        for name, half in (("attention", attention), ("mlp", mlp)):
            undo.callback(half.register_forward_pre_hook(self._one_token(name), with_kwargs=True).remove)
            undo.callback(half.register_forward_hook(self._nothing(name)).remove)
        listen(attention, self.capture, undo)

    def _begin_block(self, module: nn.Module, args: Any) -> None:
        self.skip = "mlp"

    def _one_token(self, name: str) -> Any:
        """What is passed over still runs, on one token: hooks cannot keep a module from running."""

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if self.skip != name:
                return None
            if args:
                return (args[0][:, :1], *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": kwargs["hidden_states"][:, :1]}

        return hook

    def _nothing(self, name: str) -> Any:
        """What is passed over adds nothing to the residual stream."""

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            if self.skip != name:
                return None
            if isinstance(output, tuple):
                return (torch.zeros_like(output[0]), *output[1:])
            return torch.zeros_like(output)

        return hook

    def _second_half(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        assert self.score is not None
        tokens = output[0] if isinstance(output, tuple) else output
        fewer, origin = reorganised(tokens, self.score, self.keep, self.fuse)
        if self.origin is None:
            self.patches = tokens.shape[1] - 1
        self.origin = origin if self.origin is None else self.origin.gather(1, origin)
        self.skip, self.score = "attention", None
        try:
            if args:
                return module.forward(fewer, *args[1:], **kwargs)
            return module.forward(**{**kwargs, "hidden_states": fewer})
        finally:
            self.skip = None

    def behind_projector(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        """All places again, those of dropped patches zero."""
        if self.origin is None:
            return None
        if output.dim() != 3 or output.shape[1] - self.origin.shape[1] not in (0, 1):
            raise UserError(f"evit: the projector gave {tuple(output.shape)} for {self.origin.shape[1]} patches of an image.")
        return put_back(output, self.origin, self.patches)


@part("evit", socket="tokens", catalog=368)
class EViT(OneDrop):
    """Drops patches in the vision tower; the language model then sees what is left."""

    needs = ("tower attention", "class token", "token map")
    reads_question = False

    @config
    class Config(OneDrop.Config):
        """keep: share of the patches that goes on from each chosen block, above 0, at most 1.
        blocks: of the tower, rising; None: those behind a quarter, a half and three quarters, as 3, 6, 9 of 12.
        fuse: whether dropped patches become one token, or are gone."""

        keep: float = 0.7
        blocks: tuple[int, ...] | None = None
        fuse: bool = True

        def validate_keep(self) -> None:
            if not 0 < self.keep <= 1:
                raise ValueError(f"keep is a share above 0, at most 1, not {self.keep}.")

        def validate_blocks(self) -> None:
            blocks = self.blocks
            if blocks is not None and (list(blocks) != sorted(set(blocks)) or not blocks or blocks[0] < 0):
                raise ValueError(f"blocks must be rising numbers from 0, not {blocks}.")

    @classmethod
    def example(cls, layers: int) -> dict[str, Any]:
        """Half of the patches behind the first block."""
        return {"keep": 0.5, "blocks": (0,)}

    @classmethod
    def budget(cls, share: float, layers: int) -> None:
        """How many are left depends on the tower's depth."""

    def chosen(self, host: Host) -> tuple[int, ...]:
        """The blocks that drop. Raises `UserError` for one that does not exist or that the projector does not read from."""
        blocks = host.architecture.tower_blocks
        assert blocks is not None
        count = len(blocks)
        last = host.architecture.feature_block % count
        wanted = self.config.blocks
        if wanted is None:
            wanted = tuple(sorted({min(count * i // 4, last) for i in (1, 2, 3)}))
        if wanted[-1] > last:
            raise UserError(
                f"evit: of the tower's {count} blocks the projector reads up to {last}; block {wanted[-1]} is behind it."
            )
        return wanted

    def rank(self, score: Tensor) -> Tensor:
        """What patches are chosen and weighed by, given the class token's attention to them [M, N]: that itself. A control may
        rank them otherwise."""
        return score

    def install(self, host: Host, undo: ExitStack) -> None:
        """Hooks on the chosen blocks and behind the projector. Raises `UserError` for a host that needs its whole raster."""
        if self.config.keep >= 1:
            return
        architecture = host.architecture
        tower, blocks, projector = architecture.tower, architecture.tower_blocks, architecture.projector
        chosen = self.chosen(host)
        assert tower is not None and blocks is not None
        if isinstance(getattr(host.model.config, "vision_feature_layer", None), (list, tuple)):
            raise UserError(
                "evit: this host reads several blocks of its tower at once, which would have different numbers of patches."
            )
        if projector is None or not maps_each_token(projector, blocks[0]):
            raise UserError(
                f"evit drops patches inside of the vision tower, and {host.title} needs all of them: its projector does not "
                "map each patch to one token by itself. fopru drops behind the projector."
            )
        hooks = _Blocks(self.config.keep, self.config.fuse, self.rank)
        undo.callback(tower.register_forward_pre_hook(hooks.begin).remove)
        for number in chosen:
            block = blocks[number]
            mlp = getattr(block, "mlp", None)
            if not isinstance(mlp, nn.Module):
                raise UserError(f"evit: {type(block).__name__} has no module 'mlp' in front of which patches could be dropped.")
            hooks.install(block, block.get_submodule(attention_name(block, architecture.attention(block))), mlp, undo)
        undo.callback(projector.register_forward_hook(hooks.behind_projector).remove)

    def keep(self, view: LayerView, ratio: float) -> Tensor:
        """The places of dropped patches, which hold zeros, go."""
        return ~view.visual | (view.hidden != 0).any(-1)


def attention_name(block: nn.Module, attention: nn.Module) -> str:
    """The name of a block's child that is, or holds, its attention module."""
    return next(name for name, child in block.named_children() if any(module is attention for module in child.modules()))


def maps_each_token(projector: nn.Module, block: nn.Module) -> bool:
    """Whether a projector takes tokens of a tower block's width [1, n, D] one by one, for any n."""
    weight = next(block.parameters())
    norms = [module for module in block.modules() if isinstance(module, nn.LayerNorm)]
    if not norms:
        return False
    tokens = torch.arange(3 * norms[0].normalized_shape[0], dtype=torch.float32).sin().view(1, 3, -1).to(weight)
    try:
        with torch.no_grad():
            whole, single = projector(tokens), projector(tokens[:, 1:2])
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False
    alike = isinstance(whole, Tensor) and whole.shape[:2] == (1, 3) and single.shape[:2] == (1, 1)
    return alike and bool(torch.isclose(whole[:, 1], single[:, 0], rtol=1e-3, atol=1e-4).all())
