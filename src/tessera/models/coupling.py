"""The contract of socket `couplings`: how a language model receives images.

The plainest coupling, `prefix`, is this base class itself: image features take the places of placeholders among the text's
embeddings, and the language model knows nothing of it. Others say, one by one, what they do otherwise:

- where they stand: behind the connector (`sees = "tokens"`), behind the towers alone ("towers"), or in front of everything
  ("pixels"); the latter two turn pixels into features themselves (`encode`);
- what becomes of the connector's features (`receive`), and how many placeholders an image takes in the text (`placeholders`);
- what happens within the language model: they get it at construction and hook its layers or put layers into it. Hooks find in
  `self.now` what the present pass is about, and nothing outside of a pass of the composed model: the language model by itself
  is then as it was;
- what later passes of a generation must know (`Pass.memory`, which is attached to the cache);
- a loss of their own (`loss`).

A coupling never registers the language model as its own module, so that the names of weights stay what they are in a plain
composed model, and `start={"language_model": ...}` takes weights from any of them.

Shapes: B rows, T tokens of this pass, K = cached + T, M images of the whole batch in the order of their placeholders, n features
per image, D channels of a tower, E of the language model, L its layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor, nn

from tessera.errors import UserError
from tessera.models.contracts import Encoder
from tessera.nn.tokens import VisualTokens
from tessera.nn.vit import Backend

Sees: TypeAlias = Literal["tokens", "towers", "pixels"]
MEMORY = "tessera_memory"
"""Attribute of a cache under which `Pass.memory` is kept."""


@dataclass(slots=True, kw_only=True)
class Pass:
    """One pass through the language model.

    placeholders  [B, T] bool, where the pass' tokens stand for images
    features      [M, n, E] of the images that are new in this pass, as `receive` gave them; None: there is none
    pixels        [M, 3, S, S] that they were made of, if they were
    segments      [B, K] int64 of packed rows (`tessera.nn.segments`), or None
    real          [B, K] bool, False at padding; None: there is none
    cached        K - T
    memory        what `begin` of earlier passes on the same cache has put here; what it puts here, later passes find
    notes         what the hooks of this pass want to remember
    """

    placeholders: Tensor
    features: Tensor | None = None
    pixels: Tensor | None = None
    segments: Tensor | None = None
    real: Tensor | None = None
    cached: int = 0
    memory: Any = None
    notes: dict[Any, Any] = field(default_factory=dict)

    def present(self) -> Tensor:
        """[B, T] bool: which of this pass' tokens are no padding."""
        found = torch.ones_like(self.placeholders)
        for known in (self.real, None if self.segments is None else self.segments >= 0):
            if known is not None:
                found = found & known[:, known.shape[1] - found.shape[1] :].bool()
        return found


class Coupling(nn.Module):
    """Image features and text -> what the language model receives; by itself it writes features over placeholders' embeddings."""

    sees: ClassVar[Sees] = "tokens"
    masks: ClassVar[bool] = False
    """Whether hooks edit attention masks, so that every layer must be given a whole one, [B, 1, T, K]."""
    image_size: int
    """Side of the images in pixels; of couplings that see pixels."""
    count: int
    """Features per image in front of `receive`; of couplings that see towers or pixels."""

    def __init__(
        self,
        config: Any,
        width: int,
        language_model: nn.Module | None = None,
        encoders: Sequence[Encoder] = (),
        backend: Backend | None = None,
    ) -> None:
        """Width E; language_model: of transformers, without output layer; encoders: the towers, for couplings that see them."""
        super().__init__()
        self.config = config
        self.now: Pass | None = None

    def sockets(self) -> dict[str, nn.Module]:
        """What a freeze plan calls `coupling`: this module, or the layers that it has put into the language model; and others."""
        return {"coupling": self}

    # In front of the language model

    def encode(self, pixel_values: Tensor, encoders: Sequence[Encoder]) -> VisualTokens:
        """[M, 3, S, S] -> features [M, n, D]; of couplings that do not stand behind a connector."""
        raise NotImplementedError

    def receive(self, features: Tensor) -> Tensor:
        """The connector's features [M, n, E] (or `encode`'s [M, n, D]) -> what the language model is given, [M, n', E]."""
        return features

    def placeholders(self, count: int) -> int:
        """Placeholders that an image of `count` features takes in the text."""
        return count

    def forward(self, embeddings: Tensor, placeholders: Tensor, features: Tensor) -> Tensor:
        """Embeddings [B, T, E], placeholders [B, T] bool, features [M, n, E] -> [B, T, E].

        Raises `UserError` when the placeholders and the features differ in number.
        """
        images, per_image, width = features.shape
        require(placeholders, images, per_image)
        flat = features.reshape(images * per_image, width).to(embeddings.device, embeddings.dtype)
        return embeddings.masked_scatter(placeholders.unsqueeze(-1), flat)

    # Within it

    @contextmanager
    def during(self, now: Pass) -> Iterator[None]:
        """The time of one pass; hooks find it in `self.now`."""
        self.now = now
        try:
            self.begin(now)
            yield
        finally:
            self.now = None

    def begin(self, now: Pass) -> None:
        """Prepares what the hooks of this pass need."""

    def loss(self, now: Pass, last_hidden_state: Tensor) -> Tensor | None:
        """A scalar to be added to the mean loss in training, or None."""
        return None


def require(placeholders: Tensor, images: int, per_image: int) -> None:
    """Raises `UserError` unless the text has `per_image` placeholders for each of `images` images.

    A compiled graph asserts it, without these words and without a break: who compiles a model asks its `require_images` before.
    """
    if torch.compiler.is_compiling():
        assert placeholders.sum() == images * per_image, "image placeholders and image features differ in number"
        return
    found = int(placeholders.sum())
    if found and not images:
        raise UserError(f"the text holds {found} image placeholder tokens, but no image was given: pass pixel_values.")
    if found != images * per_image:
        held = f"{found / per_image:g}" if per_image else "0"
        raise UserError(
            f"the text holds {found} image placeholder tokens (room for {held} images), but {images} "
            f"image(s) of {per_image} tokens each were given, {images * per_image} in all. "
            "Every image needs one `<image>` "
            f"in the text before the processor expands it, and truncation must not cut placeholders off."
        )


def decoder_layers(language_model: nn.Module | None, who: str) -> nn.ModuleList:
    """The layers of a language model, with or without output layer, in order. Raises `UserError` where they are not one list."""
    if language_model is None:
        raise UserError(f"coupling {who!r} works inside a language model: build it with one.")
    base: Any = getattr(language_model, "base_model", language_model)
    config: Any = language_model.config
    wanted = config.num_hidden_layers
    for module in base.modules():
        if isinstance(module, nn.ModuleList) and len(module) == wanted:
            return module
    raise UserError(f"coupling {who!r}: the layers of {type(language_model).__name__} were not found.")


def hidden_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden states [B, T, E] among the arguments of a decoder layer."""
    found: Tensor = args[0] if args else kwargs["hidden_states"]
    return found


def with_hidden(args: tuple[Any, ...], kwargs: dict[str, Any], hidden: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments with other hidden states, as a pre-hook returns them."""
    return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})
