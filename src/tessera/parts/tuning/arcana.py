"""Arcana's MM-LoRA: separate low-rank adapters for visual tokens and for all others.

Source: Sun et al., "Improving Multi-modal Large Language Model through Boosting Vision Capabilities", 2024, arXiv:2410.13733.
Every linear layer of the language model gets two low-rank updates side by side and a hard mask: visual tokens go through one,
all other tokens through the other, so that what is learned for seeing does not disturb what is learned for speaking. The ranks
share one budget. The second factors are zero at the start: the model computes what it did.

Deviations: MM-LoRA alone; the paper's other half, QLadder, is an encoder part. Which tokens are visual is read from the host's
own sequence, also behind parts that drop tokens, where the released code counts on fixed places. `merge` folds the text adapter
into the weights and leaves the difference as the visual one, so that generated tokens cost nothing; a full merge is impossible,
because two tokens then see different weights. A random start of the second factors serves tests of the wiring.

PEFT has no such tuner: its LoRA sends all tokens of a row through the same update. A test holds `mask="shared"` equal to it.

Shapes: B rows, K tokens at a layer, I and O widths of a linear layer, r_V and r_T ranks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tessera.config import config, to_dict
from tessera.errors import TesseraError, UserError
from tessera.hosts.part import HostPart
from tessera.io import atomic_folder
from tessera.registry import part
from tessera.training.tuning import Tuning

if TYPE_CHECKING:
    from tessera.hosts.contract import Host

WEIGHTS, OPTIONS = "adapters.safetensors", "adapters.json"
FACTORS = ("visual_down", "visual_up", "text_down", "text_up")


class Pair(nn.Module):
    """The two updates of one linear layer: x [N, I], visual [N] bool -> what is to be added to its output [N, O].

    A factor of rank 0 is a branch that adds nothing.
    """

    visual_down: nn.Parameter
    visual_up: nn.Parameter
    text_down: nn.Parameter
    text_up: nn.Parameter

    def __init__(self, linear: nn.Linear, ranks: tuple[int, int], scale: float, dropout: float) -> None:
        super().__init__()
        self.scale, self.dropout = scale, nn.Dropout(dropout)
        for name, rank in zip(("visual", "text"), ranks, strict=True):
            for end, shape in (("down", (rank, linear.in_features)), ("up", (linear.out_features, rank))):
                factor = nn.Parameter(linear.weight.new_zeros(shape))
                factor.muon = False  # type: ignore[attr-defined]  # orthogonal steps suit full matrices, not factors
                self.register_parameter(f"{name}_{end}", factor)

    def start(self, generator: torch.Generator, spread: float) -> None:
        """First factors as `nn.Linear` starts (Kaiming uniform), second ones zero, or normal with a spread."""
        with torch.no_grad():
            for name in ("visual", "text"):
                down, up = getattr(self, f"{name}_down"), getattr(self, f"{name}_up")
                bound = 1 / math.sqrt(down.shape[1])
                down.copy_(torch.empty(down.shape).uniform_(-bound, bound, generator=generator))
                if spread:
                    up.copy_(torch.empty(up.shape).normal_(0, spread, generator=generator))

    def branch(self, name: str, x: Tensor) -> Tensor:
        """One modality's update of tokens [N, I] -> [N, O]."""
        down, up = getattr(self, f"{name}_down"), getattr(self, f"{name}_up")
        return F.linear(F.linear(self.dropout(x), down), up) * self.scale

    def forward(self, x: Tensor, visual: Tensor | None) -> Tensor:
        """See the class; `visual` None: no token is."""
        if visual is None and not torch.is_grad_enabled():
            return self.branch("text", x)
        mask = torch.zeros(len(x), dtype=torch.bool, device=x.device) if visual is None else visual
        # Both branches run even over no token at all, so that every factor has a gradient, if a zero one.
        seen, said = mask.nonzero()[:, 0], (~mask).nonzero()[:, 0]
        looked, spoken = self.branch("visual", x[seen]), self.branch("text", x[said])
        total = looked.new_zeros(len(x), looked.shape[1])
        return total.index_copy(0, seen, looked).index_copy(0, said, spoken)

    def fold(self, linear: nn.Linear) -> None:
        """Moves the text update into the linear layer; the visual one becomes the difference."""
        with torch.no_grad():
            linear.weight += self.scale * self.text_up @ self.text_down
            self.visual_down = nn.Parameter(torch.cat([self.visual_down, self.text_down]))
            self.visual_up = nn.Parameter(torch.cat([self.visual_up, -self.text_up], 1))
            self.text_down = nn.Parameter(self.text_down[:0])
            self.text_up = nn.Parameter(self.text_up[:, :0])


@part("arcana", socket="tuning", catalog=75)
class Arcana(HostPart, Tuning):
    """Low-rank adapters by modality, in any host: as a tuning they are trained, as a part they are plugged in."""

    @config
    class Config:
        """rank_visual, rank_text: of the two updates; scale of both; dropout in front of them; layers: names of the linear
        layers, none: all in the decoder layers; seed of the start; spread: standard deviation of the second factors at the start;
        adapters: folder of saved ones, whose ranks, scale and mask then count; mask: which tokens go which way: by modality; all
        through one update of both ranks together, which is plain LoRA ("shared"); random ones, as many as visual ("random")."""

        rank_visual: int = 64
        rank_text: int = 192
        scale: float = 2.0
        dropout: float = 0.05
        layers: tuple[str, ...] = ()
        seed: int = 0
        spread: float = 0.0
        adapters: str = ""
        mask: Literal["modality", "shared", "random"] = "modality"

        def validate_values(self) -> None:
            if min(self.rank_visual, self.rank_text) < 0 or self.rank_visual + self.rank_text < 1:
                raise ValueError("ranks are not negative, and one of rank_visual and rank_text is at least 1.")
            if not 0 <= self.dropout < 1 or self.spread < 0:
                raise ValueError("dropout is a share below 1, spread is not negative.")

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.pairs: nn.ModuleDict | None = None
        self.merged = False
        self._linears: dict[str, nn.Linear] = {}
        self._in: ExitStack | None = None
        self._off = False

    @classmethod
    def identity(cls) -> dict[str, Any]:
        """As it starts."""
        return {"rank_visual": 4, "rank_text": 4}

    @classmethod
    def example(cls, layers: int) -> dict[str, Any]:
        """Random updates."""
        return {"rank_visual": 4, "rank_text": 8, "spread": 0.5}

    # In a host

    def install(self, host: Host, undo: ExitStack) -> None:
        """Hooks behind the linear layers. Raises `UserError` where a name or a saved adapter fits none."""
        self._linears = self._targets(host)
        if self.pairs is None:
            self.pairs = self._loaded() if self.config.adapters else self._new()
            self.pairs.eval()  # no part of the model, so its eval() would not reach them; a trainer puts them into training mode
        if self.pairs.keys() != self._linears.keys():
            known = f"{len(self.pairs)} layers, and {len(self._linears)} are here"
            raise UserError(f"these adapters are for another model than this {host.title}: they are for {known}.")
        for name, linear in self._linears.items():
            layer = int(name.partition("/")[0])
            pair = self.pairs[name]
            assert isinstance(pair, Pair)
            if (pair.visual_up.shape[0], pair.visual_down.shape[1]) != (linear.out_features, linear.in_features):
                raise UserError(f"the adapters of {name} do not fit a layer {linear.in_features} -> {linear.out_features}.")
            undo.callback(linear.register_forward_hook(self._hook(host, layer, pair)).remove)

    def _hook(self, host: Host, layer: int, pair: Pair) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            if self._off:
                return output
            x = args[0]
            visual = None if self.config.mask == "shared" else host.visual_at(layer)
            if visual is not None and visual.numel() * x.shape[-1] != x.numel():
                raise UserError(
                    f"a linear layer of {host.title} reads {x.numel() // x.shape[-1]} of the {visual.numel()} tokens: which are "
                    "visual is not known inside of routed layers; name others in `layers`."
                )
            flat = None if visual is None else visual.reshape(-1)
            if flat is not None and self.config.mask == "random":
                drawn = torch.randperm(len(flat), generator=torch.Generator().manual_seed(self.config.seed))
                flat = flat[drawn.to(flat.device)]
            added = pair(x.reshape(-1, x.shape[-1]), flat)
            return output + added.view(output.shape)

        return hook

    def _targets(self, host: Host) -> dict[str, nn.Linear]:
        wanted, found = set(self.config.layers), {}
        for number, layer in enumerate(host.layers):
            for name, module in layer.named_modules():
                if isinstance(module, nn.Linear) and (not wanted or name.rpartition(".")[2] in wanted):
                    found[f"{number}/{name.replace('.', '/')}"] = module
        for name in sorted(wanted - {key.rpartition("/")[2] for key in found}):
            raise UserError(f"{host.title} has no linear layer {name!r} in its decoder layers.")
        return found

    def _new(self) -> nn.ModuleDict:
        c, generator = self.config, torch.Generator().manual_seed(self.config.seed)
        ranks = (0, c.rank_visual + c.rank_text) if c.mask == "shared" else (c.rank_visual, c.rank_text)
        pairs = {name: Pair(linear, ranks, c.scale, c.dropout) for name, linear in self._linears.items()}
        for pair in pairs.values():
            pair.start(generator, c.spread)
        return nn.ModuleDict(pairs)

    def _loaded(self) -> nn.ModuleDict:
        from safetensors.torch import load_file

        folder = Path(self.config.adapters)
        try:
            options = json.loads((folder / OPTIONS).read_text(encoding="utf-8"))
            tensors = load_file(folder / WEIGHTS)
            self.config.mask, self.config.scale = options["mask"], float(options["scale"])
        except Exception as error:
            raise UserError(f"{folder} holds no adapters of arcana ({str(error).splitlines()[0]}).") from error
        pairs = {}
        for name, linear in self._linears.items():
            parts = {factor: tensors.pop(f"{name}.{factor}", None) for factor in FACTORS}
            if any(value is None for value in parts.values()):
                raise UserError(f"the adapters in {folder} are for another model or other layers: {name} is not among them.")
            ranks = (len(parts["visual_down"]), len(parts["text_down"]))  # type: ignore[arg-type]
            pairs[name] = Pair(linear, ranks, self.config.scale, self.config.dropout)
            try:
                pairs[name].load_state_dict(parts)
            except RuntimeError as error:
                raise UserError(f"the adapters in {folder} do not fit this model: {name}.") from error
        if tensors:
            raise UserError(f"the adapters in {folder} are for a larger model: {next(iter(tensors))} has no place in this one.")
        return nn.ModuleDict(pairs)

    # As a tuning

    def put_in(self, model: nn.Module) -> nn.Module:
        """See `Tuning`."""
        from tessera.hosts.plug import attach

        if self._in is not None:
            raise UserError("this tuning is in a model already; take it out first.")
        with ExitStack() as stack:
            stack.enter_context(attach(model).plug(self))
            self._in = stack.pop_all()
        assert self.pairs is not None
        return self.pairs

    def take_out(self) -> None:
        """See `Tuning`."""
        if self._in is not None:
            self._in.close()
            self._in = None

    @contextmanager
    def off(self) -> Iterator[None]:
        """See `Tuning`."""
        before, self._off = self._off, True
        try:
            yield
        finally:
            self._off = before

    def merge(self) -> None:
        """Folds the text adapters into the model's weights, for good; visual tokens keep an adapter of both ranks."""
        if self.pairs is None or self.merged:
            raise TesseraError("there are no adapters yet, or they were merged before.")
        for name, linear in self._linears.items():
            pair = self.pairs[name]
            assert isinstance(pair, Pair)
            pair.fold(linear)
        self.merged = True

    def save(self, folder: str | Path) -> Path:
        """Writes the adapters. Raises `UserError` if there are none, or if they were merged into weights."""
        from safetensors.torch import save_file

        if self.pairs is None or self.merged:
            why = "they were merged into the model: save that" if self.merged else "they have not been put into a model yet"
            raise UserError(f"adapters cannot be saved, for {why}.")
        with atomic_folder(folder) as temporary:
            save_file({name: t.detach().cpu().contiguous() for name, t in self.pairs.state_dict().items()}, temporary / WEIGHTS)
            (temporary / OPTIONS).write_text(json.dumps(to_dict(self.config), indent=2) + "\n", encoding="utf-8")
        return Path(folder)
