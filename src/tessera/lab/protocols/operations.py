"""The cost of a part's module against another's: counted operations and bytes, measured seconds. Random weights.

Each kind of work is a function of `WORKS`; an arm `Vary(work, ...)` names it and its settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tessera import registry
from tessera.errors import TesseraError
from tessera.lab.claims import part_module
from tessera.lab.experiment import Arm, Vary
from tessera.lab.protocols.base import CostProtocol, Costs

if TYPE_CHECKING:
    from tessera.lab.behaviour import Numbers
    from tessera.lab.lab import Lab

Work = tuple[Callable[[], Any], float]
"""(what is run, bytes that its weights take as they are stored)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operations(CostProtocol):
    """rounds: timed, 0 for none.

    Arms: `Vary(work, uses=(part,), ...)`. Counted: flop ratio (baseline over treatment), byte ratio (treatment over baseline).
    Timed: time ratio (baseline over treatment).
    """

    name: ClassVar[str] = "operations"
    version: ClassVar[int] = 1

    rounds: int = 7

    def measure(self, lab: Lab, treatment: Arm, baseline: Arm | None) -> Costs:
        """The baseline's work against the treatment's."""
        import torch

        assert baseline is not None
        with torch.random.fork_rng():
            torch.manual_seed(0)
            (ours, own), (theirs, other) = _work(treatment), _work(baseline)
        with torch.inference_mode():
            counted = {"flop ratio": round(lab.flops(theirs) / lab.flops(ours), 4), "byte ratio": round(own / other, 4)}
            taken = lab.timing(theirs, ours, self.rounds) if self.rounds else None
        timed = {} if taken is None else {"time ratio": (taken.median, taken.low, taken.high)}
        return Costs(counted=counted, timed=timed, shape=f"{treatment.label} against {baseline.label}, random weights, float32")

    @classmethod
    def golden(cls, lab: Lab) -> Numbers:
        """Small works of every kind."""
        micro = cls(rounds=0)
        pairs = {
            "attention": (Vary("attention"), Vary("attention", kind="reduced")),
            "views": (Vary("views"), Vary("views", scales=(1, 2))),
            "adapter": (Vary("adapter"), Vary("adapter", named=3)),
            "soup": (Vary("soup"), Vary("soup", models=3)),
            "tower": (Vary("tower", depth=4), Vary("tower", depth=4, keep=0.5)),
            "late interaction": (Vary("late interaction", keep=0.25), Vary("late interaction")),
        }
        made = {name: micro.measure(lab, *arms).counted for name, arms in pairs.items()}
        return {f"{name}: {what}": [value] for name, counted in made.items() for what, value in counted.items()}


def _work(arm: Arm) -> Work:
    assert isinstance(arm, Vary)
    if arm.name not in WORKS:
        raise TesseraError(f"operations knows the works {', '.join(WORKS)}, not {arm.name!r}.")
    return WORKS[arm.name](**arm.settings)


def _of(socket: str, name: str) -> Any:
    """The module of a part."""
    from tessera import registry
    from tessera.lab.claims import part_module

    return part_module(registry.get(socket, name))


def _bytes(*modules: Any) -> float:
    return float(sum(p.numel() * p.element_size() for module in modules for p in module.parameters()))


def _attention(kind: str = "hilo", window: int = 2, alpha: float = 0.9) -> Work:
    """Attention alone over 8 x 14 x 14 places of 384 channels, 12 heads: "hilo" or "reduced" (keys and values from a strided
    2 x 2 convolution, Wang et al., 2021, arXiv:2102.12122)."""
    import torch

    hilo = part_module(registry.get("encoders", "hilo")).HiLo
    x = torch.randn(8, 14, 14, 384)
    module: Any = hilo(384, 12, window, alpha) if kind == "hilo" else _reduced(384, 12)
    return lambda: module(x), _bytes(module)


def _reduced(width: int, heads: int) -> Any:
    from torch import Tensor, nn

    from tessera.nn.vit import eager_attention

    class Reduced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
            self.reduce, self.norm = nn.Conv2d(width, width, 2, stride=2), nn.LayerNorm(width)
            self.out = nn.Linear(width, width)

        def forward(self, x: Tensor) -> Tensor:
            batch, rows, columns, _ = x.shape
            query = self.query(x).view(batch, rows * columns, heads, -1).transpose(1, 2)
            coarse = self.norm(self.reduce(x.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2))
            key, value = self.key_value(coarse).view(batch, -1, 2, heads, width // heads).permute(2, 0, 3, 1, 4)
            mixed, _ = eager_attention(self, query, key, value, None, (width // heads) ** -0.5)
            return self.out(mixed.reshape(batch, rows, columns, -1))

    return Reduced()


def _views(scales: tuple[int, ...] = (1,)) -> Work:
    """A small tower reads 2 images at some scales through `s2`."""
    import torch

    from tessera.models.parts import create

    options = {"kind": "conv_vit", "image_size": 64, "patch_size": 8, "width": 96, "depth": 2, "heads": 3}
    encoder: Any = create("encoders", options, "encoder")
    s2 = registry.get("pixels", "s2").target
    part = s2(s2.Config(scales=tuple(scales)))
    pixels = torch.randn(2, 3, part.image_size(64), part.image_size(64))
    return lambda: part(lambda v: (encoder(v),), pixels, 64, encoder.grid), _bytes(encoder)


def _adapter(named: int = 1) -> Work:
    """MoVA's adapter with `named` of three experts, 8 images of 14 x 14 places."""
    import torch

    from tessera.nn.tokens import QuestionText, from_grid

    target = registry.get("experts", "mova").target
    widths, grid = (192, 192, 128, 192), (14, 14)
    mova = target(target.Config(), widths, [grid] * 4, text_width=224).eval()
    sets = [from_grid(torch.randn(8, 196, width), grid) for width in widths]
    question = QuestionText(embeddings=torch.randn(8, 20, 224), mask=torch.ones(8, 20, dtype=torch.bool))
    asked = (torch.arange(3) < named).expand(8, 3)
    return lambda: mova(sets, question, asked), _bytes(mova)


def _soup(models: int = 1, merged: bool = False) -> Work:
    """`models` small networks that all answer, or one soup of them."""
    import torch
    from torch import nn

    soups = registry.get("compression", "model_soups").target
    made: list[Any] = [nn.Sequential(nn.Linear(96, 256), nn.GELU(), nn.Linear(256, 8)).eval() for _ in range(models)]
    if merged:
        made = [soups(soups.Config(kind="uniform")).merge(made)]
    x = torch.randn(16, 96)
    return lambda: [model(x) for model in made], _bytes(*made)


def _tower(keep: float = 1.0, depth: int = 12) -> Work:
    """LLaVA's tower in DeiT-S's shape (`depth` blocks of width 384, 14 x 14 patches and a class token), 1 image, the part plugged
    in: fewer patches behind its own blocks, of twelve 3, 6 and 9 counted from 0, as layers 4, 7 and 10 of the paper."""
    import torch

    from tessera.hosts.plug import plug
    from tessera.hosts.zoo import tiny

    shape = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": depth, "num_attention_heads": 6}
    model: Any = tiny("llava", vision_config={**shape, "image_size": 224, "patch_size": 16}).model
    tower, pixels = model.get_submodule("model.vision_tower"), torch.randn(1, 3, 224, 224)
    plugged = plug(model, "evit", keep=keep)
    plugged.__enter__()

    def work(held: Any = plugged) -> Any:  # the part is plugged in as long as something refers to its context
        return tower(pixel_values=pixels)

    return work, _bytes(tower)


def _late_interaction(keep: float = 1.0) -> Work:
    """FILIP compares 16 images of 196 patches with 16 texts of 24 words, 64 channels; the tokens are chosen beforehand. Its bytes
    are those of the tokens that are compared."""
    import torch

    from tessera.models.contrast import Embedded

    part = _of("contrastive", "filip")
    images, words = (Embedded(torch.randn(16, n, 64), torch.ones(16, n, dtype=torch.bool)).unit() for n in (196, 24))
    if keep < 1:
        images, words = part.select(images, words, keep)
    size = sum(e.vectors.numel() * e.vectors.element_size() for e in (images, words))
    return lambda: part.late_interaction(images, words), float(size)


WORKS: Mapping[str, Callable[..., Work]] = {
    "attention": _attention,
    "views": _views,
    "adapter": _adapter,
    "soup": _soup,
    "tower": _tower,
    "late interaction": _late_interaction,
}
