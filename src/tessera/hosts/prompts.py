"""Which tokens of a prompt are visual, recorded from the model's inputs before the prefill begins.

Legend: B rows, S tokens.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from tessera.errors import UserError
from tessera.hosts.architecture import Architecture

REMEMBERED = 4
"""Encodings of images that are remembered, for features that were computed before they are used."""


class Images:
    """One encoding of images by the vision tower.

    inputs  arguments of `get_image_features`, by name
    raw     what each tower tap captured: (block, kind) -> one tensor per call of the block's attention
    """

    def __init__(self, inputs: Mapping[str, Any]) -> None:
        self.inputs = inputs
        self.raw: dict[tuple[int, str], list[Tensor]] = {}
        self.features: Callable[[], Any] = lambda: None


class Prompt:
    """What is known of the next prefill."""

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        self.encodings: list[Images] = []
        self.forget()

    def forget(self) -> None:
        """A prefill has taken what was known."""
        self.ids: Tensor | None = None
        self.mask: Any = None
        self.labels: Tensor | None = None
        self.placeholders: Tensor | None = None
        self.images: Images | None = None
        self.call: tuple[nn.Module, tuple[Any, ...], dict[str, Any]] | None = None

    def install(self, model: nn.Module, undo: ExitStack) -> None:
        """Hooks that watch the inputs, until `undo` is closed."""
        base: Any = self.architecture.base
        undo.callback(base.register_forward_pre_hook(self._on_base, with_kwargs=True).remove)
        if model is not base:
            undo.callback(model.register_forward_pre_hook(self._on_model, with_kwargs=True).remove)
        if hasattr(base, "get_placeholder_mask"):
            replace(base, "get_placeholder_mask", self._watched_placeholders(base.get_placeholder_mask), undo)
        if hasattr(base, "get_image_features"):
            replace(base, "get_image_features", self._watched_features(base.get_image_features), undo)
        undo.callback(self.encodings.clear)
        undo.callback(self.forget)

    def _on_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.labels = kwargs.get("labels")
        self.call = (module, args, kwargs)

    def _on_base(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        self.ids = ids if isinstance(ids, Tensor) and not ids.is_floating_point() else None
        self.mask = kwargs.get("attention_mask")
        self.placeholders = None
        self.images = None
        if kwargs.get("labels") is not None:
            self.labels = kwargs["labels"]
        if self.call is None:
            self.call = (module, args, kwargs)
        for given in (kwargs.get("mm_encoder_outputs") or {}).values():
            self.images = next((known for known in self.encodings if known.features() is given), self.images)

    def _watched_placeholders(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def watched(*args: Any, **kwargs: Any) -> Any:
            found = original(*args, **kwargs)
            for mask in found if isinstance(found, tuple) else (found,):
                if isinstance(mask, Tensor):
                    flat = mask[..., 0] if mask.dim() == 3 else mask
                    known = self.placeholders
                    self.placeholders = flat if known is None or known.shape != flat.shape else known | flat
            return found

        return watched

    def _watched_features(self, original: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(original)

        @functools.wraps(original)  # generate() reads the signature
        def watched(*args: Any, **kwargs: Any) -> Any:
            bound = dict(signature.bind(*args, **kwargs).arguments)
            images = Images(bound | bound.pop("kwargs", {}))
            self.encodings.append(images)
            del self.encodings[:-REMEMBERED]
            found = original(*args, **kwargs)
            try:
                images.features = weakref.ref(found)
            except TypeError:  # a tuple or tensor in families that return no ModelOutput
                images.features = lambda: None
            return found

        return watched

    def capture(self, key: tuple[int, str], scores: Tensor) -> None:
        """Keeps what a tower tap has captured."""
        if self.encodings:
            self.encodings[-1].raw.setdefault(key, []).append(scores)

    def latest(self) -> Images | None:
        """The encoding that the prompt's images come from."""
        return self.images if self.images is not None else (self.encodings[-1] if self.encodings else None)

    def visual(self, rows: int, length: int, embedded: bool, device: torch.device) -> Tensor:
        """[B, S] bool. Raises `UserError` if the language model was given embeddings of unknown tokens."""
        found = self.placeholders
        if self.ids is not None:
            images = torch.tensor(self.architecture.image_token_ids, device=self.ids.device)
            by_id = torch.isin(self.ids, images)
            found = by_id if found is None or found.shape != by_id.shape else found | by_id
        if found is None:
            if embedded:
                raise UserError("the model was given embeddings only, so nobody knows which are visual tokens: pass input_ids.")
            return torch.zeros(rows, length, dtype=torch.bool, device=device)
        found = found.to(device)
        if found.shape[0] != rows and rows % found.shape[0] == 0:  # beams that were made behind the embedding
            found = found.repeat_interleave(rows // found.shape[0], 0)
        if found.shape != (rows, length):
            raise UserError(
                f"the prompt has {tuple(found.shape)} tokens and the language model is given {(rows, length)}: parts need the "
                "full prompt in one forward (no chunked prefill)."
            )
        return found

    def real(self, visual: Tensor, own_mask: Any) -> Tensor:
        """[B, S] bool, False at padding, from whatever form of mask there is."""
        rows, length = visual.shape
        for mask in (own_mask, self.mask):
            mask = next(iter(mask.values())) if isinstance(mask, Mapping) and mask else mask
            if not isinstance(mask, Tensor) or mask.dim() not in (2, 4) or rows % mask.shape[0]:
                continue
            if mask.dim() == 4:
                seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
                known = seen[:, 0].any(1)[:, :length]
            else:
                known = mask[:, -length:].bool()
            if known.shape[1] == length:
                return known.to(visual.device).repeat_interleave(rows // known.shape[0], 0)
        return torch.ones_like(visual)

    def query(self, visual: Tensor, real: Tensor) -> Tensor:
        """[B] int64: the last token of the question, which is the one before the first label behind the images in training,
        and else the last that is not padding."""
        places = torch.arange(visual.shape[1], device=visual.device)
        last = torch.where(real, places, 0).amax(1)
        labels = self.labels
        if labels is None or labels.shape != visual.shape:
            return last
        begin = torch.where(visual, places, -1).amax(1, keepdim=True)
        answer = (labels.to(visual.device) != -100) & real & (places > begin)
        first = torch.where(answer, places, visual.shape[1]).amin(1)
        return torch.where(answer.any(1), (first - 1).clamp(min=0), last)


def replace(owner: nn.Module, name: str, value: Any, undo: ExitStack) -> None:
    """Sets a method on one object; `undo` takes it away again."""
    before = owner.__dict__.get(name)
    owner.__dict__[name] = value

    def restore() -> None:
        if before is None:
            owner.__dict__.pop(name, None)
        else:
            owner.__dict__[name] = before

    undo.callback(restore)
