"""Dense labels per patch, from the world's ground truth per pixel: what vision experts are trained on.

Legend: B images, g patches per side, N = g * g patches in reading order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tessera.errors import unknown
from tessera.world import World
from tessera.world.concepts import concepts, pool
from tessera.world.render import NOTHING, PANEL, SIGN, Drawing
from tessera.world.scene import STYLES, Thing
from tessera.world.text import ALPHABET
from tessera.world.vocabulary import attribute_values

IGNORED = -100
BACKGROUND, TEXT = "background", "text"


def object_labels() -> list[str]:
    """Class names of the object expert: the base concepts in atlas order, then background and text."""
    return [*(concepts()[i].name for i in pool("base")), BACKGROUND, TEXT]


def character_labels() -> list[str]:
    """Class names of the reading expert: "none", then letters and digits."""
    return ["none", *ALPHABET]


class DenseData:
    """Batches `{"pixel_values" [B, 3, S, S], "labels" [B, N], "loss_weights" [B, N]}` of single-frame world samples.

    `kind` is "objects" (class of the thing that owns most of a patch; patches at edges are ignored) or "characters" (the
    character over a patch's centre; patches between characters are ignored). `worlds` take turns sample by sample.
    `attributes` names those of `attribute_values` that "objects" also come with, as "attribute_labels" [B, N, A].
    """

    def __init__(self, worlds: Sequence[World], kind: str, patch: int, attributes: Sequence[str] = ()) -> None:
        self.worlds, self.kind, self.patch, self.attributes = list(worlds), kind, patch, list(attributes)
        for name in self.attributes:
            if name not in attribute_values():
                raise unknown("attribute of things:", name, attribute_values())
        self._class = {concept: i for i, concept in enumerate(pool("base"))}

    def collate(self, indices: Sequence[int]) -> dict[str, Any]:
        """The samples of `indices` as one batch."""
        pixels, labels, told = [], [], []
        for index in indices:
            sample = self.worlds[index % len(self.worlds)][index]
            drawing = sample.drawings(owner=self.kind == "objects")[0]
            pixels.append(np.asarray(drawing.image))
            if self.kind == "objects":
                things = sample.frames[0].things
                owners = self._owners(drawing, len(things))
                labels.append(self._objects(owners, [t.concept for t in things]))
                told.append(self._told(owners, things))
            else:
                labels.append(self.characters(drawing))
        target = torch.from_numpy(np.stack(labels))
        quiet = len(self._class) if self.kind == "objects" else 0
        weights = torch.where(target == quiet, 0.15, 1.0)
        batch = {"pixel_values": to_pixels(pixels), "labels": target, "loss_weights": weights}
        if self.attributes:
            batch["attribute_labels"] = torch.from_numpy(np.stack(told))
        return batch

    def _owners(self, drawing: Drawing, things: int) -> np.ndarray:
        """What each patch is of, int64 [N]: the index of a thing, `NOTHING`, `SIGN` or `PANEL`; `IGNORED` at edges."""
        owner = np.asarray(drawing.owner)
        p, (h, w) = self.patch, owner.shape
        cells = owner.reshape(h // p, p, w // p, p).transpose(0, 2, 1, 3).reshape(-1, p * p)
        owners = np.full(len(cells), IGNORED, np.int64)
        for value, share in [*((i, 0.5) for i in range(things)), (NOTHING, 0.95), (SIGN, 0.5), (PANEL, 0.5)]:
            owners[(cells == value).mean(1) >= share] = value
        return owners

    def _objects(self, owners: np.ndarray, kinds: Sequence[int]) -> np.ndarray:
        background = len(self._class)
        labels = np.full(len(owners), IGNORED, np.int64)
        classes = {i: self._class[k] for i, k in enumerate(kinds)}
        for value, label in {**classes, NOTHING: background, SIGN: background + 1, PANEL: background + 1}.items():
            labels[owners == value] = label
        return labels

    def _told(self, owners: np.ndarray, things: Sequence[Thing]) -> np.ndarray:
        """The attributes' labels, int64 [N, A]; `IGNORED` where there is no thing."""
        labels = np.full((len(owners), len(self.attributes)), IGNORED, np.int64)
        values = attribute_values()
        for i, thing in enumerate(things):
            said = {"tint": thing.tint or "none", "style": STYLES[thing.style]}
            labels[owners == i] = [values[name].index(said[name]) for name in self.attributes]
        return labels

    def characters(self, drawing: Drawing) -> np.ndarray:
        """The character's label at every patch of a drawing, int64 [N]."""
        width, height = drawing.image.size
        rows, columns = height // self.patch, width // self.patch
        labels = np.zeros((rows, columns), np.int64)
        x, y = (np.arange(columns) + 0.5) / columns, (np.arange(rows) + 0.5) / rows
        written = [*drawing.characters, *((text, box) for text, box, _ in drawing.strings)]
        for text, box in written:
            inside_y = (y >= box[1] - 0.2 / rows) & (y <= box[3] + 0.2 / rows)
            step = (box[2] - box[0]) / len(text)
            for k, character in enumerate(text):
                place = (x - box[0] - k * step) / step
                over = (place >= 0) & (place < 1)
                sure = (place >= 0.12) & (place < 0.88) & (character in ALPHABET)
                label = 1 + ALPHABET.index(character) if character in ALPHABET else IGNORED
                labels[np.ix_(inside_y, over)] = IGNORED
                labels[np.ix_(inside_y, sure)] = label
        return labels.reshape(-1)


def to_pixels(images: Sequence[np.ndarray]) -> torch.Tensor:
    """uint8 images [H, W, 3] as float32 [B, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def patch_accuracy(model: torch.nn.Module, batches: Sequence[dict[str, Any]], quiet: int) -> float:
    """Share of labelled patches, those of class `quiet` (background, none) left out, that the expert gets right."""
    right = total = 0
    for batch in batches:
        guess = model(pixel_values=batch["pixel_values"]).logits.argmax(-1)
        counted = (batch["labels"] != IGNORED) & (batch["labels"] != quiet)
        right += int((guess[counted] == batch["labels"][counted]).sum())
        total += int(counted.sum())
    return right / max(1, total)
