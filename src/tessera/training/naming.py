"""Next-token labels for visual tokens: each is to be followed by the name of what it shows.

Answers say only a few words about an image, and a deep language model needs long to find out which visual token they are about.
The world knows what is under every token, so the loss on answers can train the names too, token by token: after
visual token i the language model is to say the first word of the thing that fills most of its cell, or the character that
stands there on a sign. Of some it is to say an attribute or the kind in place of the name, or the colour of a sign in place of
its text: otherwise the connector keeps nothing but what tells names apart. Nothing of this is seen by the model as input. Own
method, in the spirit of token labelling (All Tokens Matter, arXiv 2104.10858), with words of the language model as the classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tessera.data.packing import Packed
from tessera.errors import UserError
from tessera.world.concepts import concepts
from tessera.world.dataset import Sample
from tessera.world.render import Drawing
from tessera.world.rng import Rng
from tessera.world.scene import STYLES, Box, Scene, Thing
from tessera.world.text import SIGN_COLOURS

SHARE = 0.35
"""Least share of a token's cell that a thing must fill to name it."""


class TokenNames:
    """Adds the labels to packed sequences whose images take g x g tokens each, in reading order.

    `weight` is that of each such label's loss; an answer's tokens share about 1. `attributes` is the share of things that are
    told by tint, style or category, and of signs that are told by their colour. Raises `UserError` for other numbers of tokens.
    """

    def __init__(self, processor: Any, weight: float, attributes: float = 0.0) -> None:
        self.weight, self.attributes, self.tokenizer = weight, attributes, processor.tokenizer
        self.grid = math.isqrt(processor.tokens_per_image)
        if self.grid**2 != processor.tokens_per_image:
            raise UserError(
                "questions.naming needs images whose tokens are a square grid; this model has "
                f"{processor.tokens_per_image} tokens an image. Set questions.naming=0."
            )
        self.image_id: int = processor.tokenizer.image_token_id
        self._known: dict[str, list[int]] = {}

    def label(self, packed: Packed, sample: Sample, drawings: Sequence[Drawing]) -> None:
        """Writes labels and weights into `packed`, whose prefix holds the images of `sample`, drawn with `owner`."""
        places = np.flatnonzero((packed.input_ids == self.image_id) & (packed.segment_ids == 0))
        rng = sample.rng("naming")
        words = np.concatenate([self.words(scene, d, rng) for scene, d in zip(sample.frames, drawings, strict=True)])
        # Labels are not shifted, and the one after the prefix belongs to a question.
        known = (words >= 0) & (places + 1 < np.count_nonzero(packed.segment_ids == 0))
        packed.labels[places[known] + 1] = words[known]
        packed.loss_weights[places[known] + 1] = self.weight

    def words(self, scene: Scene, drawing: Drawing, rng: Rng) -> np.ndarray:
        """Token id per visual token of an image, int64 [g * g]; -1 where neither thing nor character is. `rng` says which things
        and signs are told by their attributes."""
        g, owner = self.grid, np.asarray(drawing.owner)
        h, w = (side - side % g for side in owner.shape)
        cells = owner[:h, :w].reshape(g, h // g, g, w // g).transpose(0, 2, 1, 3).reshape(g * g, -1)
        found = np.full(g * g, -1, np.int64)
        most = np.full(g * g, SHARE)
        for index, thing in enumerate(scene.things):
            share = (cells == index).mean(1)
            found[share >= most] = self._id(self._said(thing, rng))
            most = np.maximum(most, share)
        for text, boxes, colour in _written(scene, drawing):
            coloured = bool(self.attributes and colour) and rng.chance(self.attributes)
            # The leftmost character of a cell stays: the language model reads on from there.
            pieces = [self._id(colour)] * len(boxes) if coloured else self._pieces(text)
            for piece, (x0, y0, x1, y1) in reversed(list(zip(pieces, boxes, strict=True))):
                column, row = int((x0 + x1) / 2 * g), int((y0 + y1) / 2 * g)
                if 0 <= column < g and 0 <= row < g:
                    found[row * g + column] = piece
        return found

    def _said(self, thing: Thing, rng: Rng) -> str:
        if self.attributes and rng.chance(self.attributes):
            kind = concepts()[thing.concept].category
            return rng.choice([STYLES[thing.style], kind, *([thing.tint, thing.tint] if thing.tint else [])])
        return concepts()[thing.concept].name

    def _id(self, name: str) -> int:
        return self._pieces(name)[0]

    def _pieces(self, text: str) -> list[int]:
        """For each character of `text` the token that it is part of."""
        if text not in self._known:
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            lengths = [len(t.removeprefix("##")) for t in self.tokenizer.convert_ids_to_tokens(ids)]
            spread = [i for i, n in zip(ids, lengths, strict=True) for _ in range(n)]
            for place, character in enumerate(text):
                if character == " ":
                    spread.insert(place, spread[min(place, len(spread) - 1)])
            self._known[text] = spread
        return self._known[text]


def _written(scene: Scene, drawing: Drawing) -> Iterator[tuple[str, list[Box], str]]:
    """Every text of a drawing with the boxes of its characters, and of a sign the name of its colour."""
    start = 0
    for sign in scene.signs:
        boxes = [box for _, box in drawing.characters[start : start + len(sign.text)]]
        yield sign.text, boxes, SIGN_COLOURS[sign.palette][0]
        start += len(sign.text)
    for text, (x0, y0, x1, y1), _ in drawing.strings:
        step = (x1 - x0) / len(text)
        yield text, [(x0 + step * i, y0, x0 + step * (i + 1), y1) for i in range(len(text))], ""
