"""What is known of the next prompt: which of its tokens are visual, padding, and the end of the question.

Legend: B rows, S tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tessera.errors import UserError

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
    """What is known of the next prefill, recorded from the model's inputs before it begins (`tessera.hosts.inputs`)."""

    def __init__(self, image_token_ids: tuple[int, ...]) -> None:
        self.image_token_ids = image_token_ids
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

    def encode(self, images: Images) -> None:
        """Images are encoded now."""
        self.encodings.append(images)
        del self.encodings[:-REMEMBERED]

    def capture(self, key: tuple[int, str], scores: Tensor) -> None:
        """Keeps what a tower tap has captured."""
        if self.encodings:
            self.encodings[-1].raw.setdefault(key, []).append(scores)

    def latest(self) -> Images | None:
        """The encoding that the prompt's images come from."""
        return self.images if self.images is not None else (self.encodings[-1] if self.encodings else None)

    def brings_images(self) -> bool:
        """Whether the input ids hold placeholders of images."""
        if self.ids is None:
            return False
        return bool(torch.isin(self.ids, torch.tensor(self.image_token_ids, device=self.ids.device)).any())

    def visual(self, rows: int, length: int, embedded: bool, device: torch.device) -> Tensor:
        """[B, S] bool. Raises `UserError` if the language model was given embeddings of unknown tokens."""
        found = self.placeholders
        if self.ids is not None:
            images = torch.tensor(self.image_token_ids, device=self.ids.device)
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
