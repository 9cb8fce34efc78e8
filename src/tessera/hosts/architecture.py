"""Architecture adapters: where a transformers vision-language model keeps its modules, and how patches map to visual tokens.

One small adapter per family, registered by the exact `config.model_type`; an unknown family that follows transformers'
conventions works through the generic adapter, anything else is refused with the reason.

Legend: P patches of one view (an image or a tile), n visual tokens of one view, k patches per side that become one token.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tessera.errors import TesseraError, UserError
from tessera.nn.layout import Block, Layout

if TYPE_CHECKING:
    from types import ModuleType

CAPABILITIES: Mapping[str, str] = {
    "tower attention": "attention of single blocks of the vision tower can be captured",
    "class token": "the vision tower has a class token",
    "token map": "scores of the tower's patches map to the language model's visual tokens",
    "raster": "it is known where in the image each visual token stands",
    "rope": "rotary positions with one index per token",
    "mrope": "rotary positions with three indices per token (time, row, column)",
    "cache": "decoder layers take and fill a key-value cache",
    "deepstack": "features of the vision tower are added between decoder layers",
}
"""What a part may need of a host (`HostPart.needs`) -> its meaning."""

# Names that transformers' vision-language models use, most frequent first.
_TOWERS = ("vision_tower", "visual", "vision_model")
_TOWER_BLOCKS = ("encoder.layers", "encoder.layer", "blocks", "transformer.layers", "transformer.encoder.layers")
_PROJECTORS = ("multi_modal_projector", "connector", "aligner", "projector", "language_projection", "visual_embeddings_table")
_ATTENTIONS = ("self_attn", "attn", "attention", "self_attention")
_NORMS = ("input_layernorm", "self_attn_layer_norm", "norm1", "layer_norm1")
_LAYER_TYPES = {"full_attention", "sliding_attention"}
_CLASS_TOKENS = ("class_embedding", "cls_token")


def found(root: Any, paths: Iterable[str]) -> Any | None:
    """What stands at the first of the dotted `paths` below `root` that exists and is not None."""
    for path in paths:
        node = root
        for name in path.split("."):
            node = getattr(node, name, None)
        if node is not None:
            return node
    return None


@dataclass(frozen=True, slots=True, eq=False)
class Architecture:
    """What a host needs to know about the architecture of one model: its modules and what they can do.

    family           the adapter, which maps scores and knows rasters
    base             the module that joins image features and text (hooks for inputs go here; owns `get_image_features`)
    language_model   the decoder that owns `layers`
    layers           decoder layers
    tower            vision tower, None if it is not found
    tower_blocks     its attention blocks, None for a tower without any
    projector        what takes the tower's features to the language model's width, where it is one module
    rotary           the module that computes cos and sin of positions
    image_token_ids  ids of placeholders of images and videos
    has_class_token  whether the tower's tokens begin with a class token
    feature_block    which tower block's output the projector reads (negative: counted from the last)
    capabilities     names of `CAPABILITIES`
    """

    family: Family
    base: nn.Module
    language_model: nn.Module
    layers: nn.ModuleList
    tower: nn.Module | None
    tower_blocks: nn.ModuleList | None
    projector: nn.Module | None
    rotary: nn.Module | None
    image_token_ids: tuple[int, ...]
    has_class_token: bool
    feature_block: int
    capabilities: frozenset[str]

    @property
    def attention_implementation(self) -> str:
        """The language model's attention implementation."""
        return str(self.language_model.config._attn_implementation or "eager")  # type: ignore[union-attr]

    def attention(self, layer: nn.Module) -> nn.Module:
        """The attention module of a decoder layer or tower block. Raises `UserError` if it has none that can be tapped."""
        module = attention_of(layer)
        if module is None:
            raise UserError(f"{type(layer).__name__} has no attention module that goes through transformers' attention registry.")
        return module

    def norm(self, layer: nn.Module) -> nn.Module:
        """The norm in front of a layer's attention. Raises `UserError` if there is none."""
        module = found(layer, _NORMS)
        if module is None:
            raise UserError(f"{type(layer).__name__} has no norm in front of its attention: {', '.join(_NORMS)} are looked for.")
        return module


def attention_of(layer: nn.Module) -> nn.Module | None:
    """The attention module below a layer that reads its implementation from a configuration, None without one."""
    for name in _ATTENTIONS:
        child = getattr(layer, name, None)
        while isinstance(child, nn.Module):
            if hasattr(child, "config") and not _wraps_attention(child):
                return child
            child = next((getattr(child, inner) for inner in _ATTENTIONS if hasattr(child, inner)), None)
    return None


def _wraps_attention(module: nn.Module) -> bool:
    return any(isinstance(getattr(module, name, None), nn.Module) for name in _ATTENTIONS)


class Family:
    """The adapter of a family. What it leaves as it is follows transformers' conventions."""

    model_types: ClassVar[tuple[str, ...]] = ()
    title: ClassVar[str] = "generic"
    """The family's name for people."""
    maps_tokens: ClassVar[bool] = False
    """Whether `token_scores` is written (and proved by a test)."""
    knows_layouts: ClassVar[bool] = False
    """Whether `layouts` is written."""

    def architecture(self, model: Any) -> Architecture:
        """Finds the modules. Raises `UserError` for a model that a host cannot be, with the reason."""
        base, decoder = self.base(model), self.decoder(model)
        layers: nn.ModuleList = decoder.layers
        self.check_layers(model, decoder)
        ids = self.image_token_ids(model)
        if not ids:
            raise _refusal(model, "its configuration names no placeholder token of images (image_token_id)")
        tower = self.tower(base)
        blocks = None if tower is None else self.tower_blocks(tower)
        class_token = tower is not None and self.has_class_token(tower)
        tapped = blocks is not None and attention_of(blocks[0]) is not None
        rotary = getattr(decoder, "rotary_emb", None)
        takes = inspect.signature(type(layers[0]).forward).parameters
        states = {
            "tower attention": tapped,
            "class token": class_token,
            "token map": tapped and self.maps_tokens,
            "raster": self.knows_layouts,
            "rope": rotary is not None and not _three_indices(decoder),
            "mrope": rotary is not None and _three_indices(decoder),
            "cache": "past_key_values" in takes,
            "deepstack": hasattr(decoder, "_deepstack_process"),
        }
        return Architecture(
            family=self,
            base=base,
            language_model=decoder,
            layers=layers,
            tower=tower,
            tower_blocks=blocks,
            projector=self.projector(base),
            rotary=rotary,
            image_token_ids=ids,
            has_class_token=class_token,
            feature_block=self.feature_block(model),
            capabilities=frozenset(name for name, state in states.items() if state),
        )

    def base(self, model: Any) -> Any:
        """The module that joins image features and text: the model's `model` if that computes image features, else itself."""
        inner = getattr(model, "model", None)
        owner = inner if hasattr(inner, "get_image_features") else model
        if not isinstance(owner, nn.Module) or not hasattr(owner, "get_image_features"):
            raise _refusal(model, "it has no get_image_features, so it is no vision-language model with visual tokens")
        return owner

    def decoder(self, model: Any) -> Any:
        """The module that owns the decoder layers."""
        text = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
        if getattr(model.config, "is_encoder_decoder", False) or getattr(text, "is_encoder_decoder", False):
            raise _refusal(model, "its language model is an encoder and a decoder; hosts are decoders only")
        get = getattr(model, "get_decoder", None)
        node: Any = get() if get is not None else None
        seen: list[Any] = []
        while node is not None and not isinstance(getattr(node, "layers", None), nn.ModuleList):
            if any(node is s for s in seen):
                node = None
                break
            seen.append(node)
            node = node.get_decoder() if hasattr(node, "get_decoder") else None
        if node is None:
            raise _refusal(model, "its decoder layers are not found (get_decoder() with a module list `layers`)")
        return node

    def check_layers(self, model: Any, decoder: Any) -> None:
        """Raises `UserError` for decoder layers that are not called as transformers' causal language models call theirs, or that
        mix tokens by something else than attention."""
        kinds = set(getattr(decoder.config, "layer_types", None) or ()) - _LAYER_TYPES
        if kinds:
            raise _refusal(
                model, f"its language model has layers of type {', '.join(sorted(kinds))}; hosts attend in every layer"
            )
        for layer in decoder.layers:
            takes = inspect.signature(type(layer).forward).parameters
            missing = [name for name in ("hidden_states", "attention_mask") if name not in takes]
            if missing:
                raise _refusal(model, f"its layer {type(layer).__name__} takes no {' and no '.join(missing)}")
            if "cross_attention_states" in takes or "encoder_hidden_states" in takes:
                raise _refusal(model, f"its layer {type(layer).__name__} reads images by cross-attention, not as tokens")

    def image_token_ids(self, model: Any) -> tuple[int, ...]:
        """Placeholder ids of images and videos."""
        config = model.config
        names = (("image_token_id", "image_token_index"), ("video_token_id", "video_token_index"))
        ids = (next((getattr(config, name) for name in pair if getattr(config, name, None) is not None), None) for pair in names)
        return tuple(i for i in ids if i is not None)

    def tower(self, base: Any) -> nn.Module | None:
        """The vision tower."""
        return found(base, _TOWERS)

    def tower_blocks(self, tower: nn.Module) -> nn.ModuleList | None:
        """Its blocks that attend."""
        inner = getattr(tower, "vision_model", tower)  # transformers before 5.20 wrapped some towers once more
        blocks = found(inner, _TOWER_BLOCKS)
        return blocks if isinstance(blocks, nn.ModuleList) and len(blocks) else None

    def has_class_token(self, tower: nn.Module) -> bool:
        """Whether the tower's tokens begin with a class token."""
        embeddings = getattr(getattr(tower, "vision_model", tower), "embeddings", None)
        return embeddings is not None and found(embeddings, _CLASS_TOKENS) is not None

    def projector(self, base: Any) -> nn.Module | None:
        """What takes the tower's features to the language model's width."""
        return found(base, _PROJECTORS)

    def feature_block(self, model: Any) -> int:
        """The tower block whose output the projector reads."""
        return -1

    def token_scores(self, model: Any, raw: Sequence[Tensor], inputs: Mapping[str, Any]) -> Tensor:
        """Scores of the tower's tokens -> score of each visual token, float [all visual tokens], in the order of the prompt.

        raw      what one tower block's attention module gave in the last encoding of images, one tensor per call: [views, tokens]
                 with the class token if there is one; families that encode all images in one sequence: [1, tokens] per call
        inputs   the arguments of `get_image_features`, by name (a prompt's prepared inputs hold them too)

        Several patches in one token: their mean. Tokens that show no place of the image (newlines): +inf.
        Raises `UserError` where the family has no such map.
        """
        raise UserError(f"no map from the vision tower's patches to visual tokens is known for {model.config.model_type!r}.")

    def layouts(self, model: Any, inputs: Mapping[str, Any]) -> list[Layout]:
        """Per view (what the model encodes as one image), in the order of the prompt: where its visual tokens stand.

        `inputs` as in `token_scores`. Raises `UserError` where the family's rasters are not known.
        """
        raise UserError(f"it is not known where the visual tokens of {model.config.model_type!r} stand in the image.")

    def no_image(self, model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The prompt `inputs` without its images: placeholder tokens are taken out and rows padded on the left again."""
        padding = getattr(model.config.get_text_config(), "pad_token_id", None)
        return without_images(inputs, self.image_token_ids(model), 0 if padding is None else padding)


class RasterFamily(Family):
    """A family whose views are rasters of patches in reading order, of which squares of k x k become one token each."""

    maps_tokens = True
    knows_layouts = True

    def grids(self, model: Any, inputs: Mapping[str, Any]) -> list[tuple[int, int]]:
        """Rows and columns of patches of each view: from the size of the images, all alike."""
        pixels = inputs["pixel_values"]
        pixels = pixels if isinstance(pixels, Tensor) else torch.cat(list(pixels))
        side = patch_size(model)
        grid = (pixels.shape[-2] // side, pixels.shape[-1] // side)
        return [grid] * pixels.shape[:-3].numel()

    def stride(self, model: Any) -> int:
        """Patches per side that become one token: k."""
        return 1

    def token_scores(self, model: Any, raw: Sequence[Tensor], inputs: Mapping[str, Any]) -> Tensor:
        """See `Family.token_scores`."""
        rasters = split_rasters(self.flat_scores(model, raw), self.grids(model, inputs))
        return torch.cat([pooled(raster, self.stride(model)) for raster in rasters])

    def flat_scores(self, model: Any, raw: Sequence[Tensor]) -> Tensor:
        """All patches' scores in one row, without class tokens."""
        tower = self.tower(self.base(model))
        leading = int(tower is not None and self.has_class_token(tower))
        return torch.cat([scores[:, leading:].reshape(-1) for scores in raw])

    def layouts(self, model: Any, inputs: Mapping[str, Any]) -> list[Layout]:
        """See `Family.layouts`."""
        k = self.stride(model)
        return [one_raster(rows // k, columns // k) for rows, columns in self.grids(model, inputs)]


def patch_size(model: Any) -> int:
    """Side of the tower's patches in pixels."""
    size = model.config.vision_config.patch_size
    return int(size if isinstance(size, int) else size[0])


def one_raster(rows: int, columns: int) -> Layout:
    """A view whose tokens are one raster of the whole image."""
    return Layout(rows * columns, (Block(0, rows, columns),))


def split_rasters(flat: Tensor, grids: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Scores in one row -> one [rows, columns] per view. Raises `TesseraError` if their number is not that of the grids."""
    counts = [rows * columns for rows, columns in grids]
    if sum(counts) != flat.numel():
        raise TesseraError(f"the vision tower scored {flat.numel()} patches, but the images have {sum(counts)}.")
    return [part.view(grid) for part, grid in zip(flat.split(counts), grids, strict=True)]


def pooled(raster: Tensor, k: int) -> Tensor:
    """Means of k x k squares of a raster [rows, columns], in reading order; rows and columns that fill no square are left out."""
    return F.avg_pool2d(raster[None, None].float(), k).flatten() if k > 1 else raster.float().flatten()


def without_images(inputs: Mapping[str, Any], image_token_ids: Sequence[int], padding: int) -> dict[str, Any]:
    """What a prompt has per token [B, S] (ids, mask, types) without its placeholder tokens, rows padded on the left."""
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    kept = real & ~torch.isin(ids, torch.tensor(image_token_ids, device=ids.device))
    longest = int(kept.sum(1).max())
    order = kept.int().argsort(dim=1, stable=True)[:, ids.shape[1] - longest :]
    kept = kept.gather(1, order)
    per_token = {
        name: value.gather(1, order).masked_fill(~kept, padding if name == "input_ids" else 0)
        for name, value in inputs.items()
        if isinstance(value, Tensor) and value.shape == ids.shape and name != "position_ids"
    }
    return {**per_token, "attention_mask": kept.long()}


def _three_indices(decoder: nn.Module) -> bool:
    parameters = getattr(decoder.config, "rope_parameters", None) or {}
    return isinstance(parameters, Mapping) and "mrope_section" in parameters


def _refusal(model: Any, reason: str) -> UserError:
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    return UserError(f"{kind!r} cannot be a host: {reason}.")


_families: dict[str, Family] = {}
F_ = TypeVar("F_", bound=type[Family])


def family(*model_types: str, title: str) -> Callable[[F_], F_]:
    """Registers an adapter for exact `model_types`. Raises `TesseraError` for a model type that has another one."""

    def register(cls: F_) -> F_:
        cls.model_types, cls.title = model_types, title
        for kind in model_types:
            known = _families.get(kind)
            if known is not None and type(known).__qualname__ != cls.__qualname__:
                raise TesseraError(f"two adapters for model type {kind!r}: {type(known).__name__} and {cls.__name__}.")
            _families[kind] = cls()
        return cls

    return register


def families() -> dict[str, Family]:
    """Model type -> adapter, of all families that have their own."""
    package: ModuleType = importlib.import_module("tessera.hosts.families")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return dict(sorted(_families.items()))


def family_of(model: Any) -> Family:
    """The adapter of a model: its family's, or the generic one."""
    config = getattr(model, "config", None)
    return families().get(getattr(config, "model_type", ""), _GENERIC)


def architecture(model: Any) -> Architecture:
    """The architecture of a model. Raises `UserError` for one that cannot be a host, with the reason."""
    if not hasattr(model, "config"):
        raise UserError(f"a host is a transformers model; {type(model).__name__} has no configuration.")
    return family_of(model).architecture(model)


_GENERIC = Family()
