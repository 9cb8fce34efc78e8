"""The world as training data for a vision-language model: several questions about the same images in one sequence.

Legend: B samples of a batch, F frames of a sample, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tessera.data.dense import to_pixels
from tessera.data.packing import Item, collate, pack
from tessera.errors import UserError, unknown
from tessera.training.naming import TokenNames
from tessera.training.options import Questions
from tessera.world import World
from tessera.world.dataset import Sample
from tessera.world.lists import LIST_PROMPTS, lists
from tessera.world.questions import TYPES
from tessera.world.render import Drawing
from tessera.world.rng import Rng
from tessera.world.vocabulary import CAPTION_PROMPTS


class WorldQuestions:
    """`collate(indices)` gives packed sequences about world samples and their images.

    All samples of a training step hold the same number of images, so that none of the sequence is padding: a block of
    `batch_size` indices is of single images, of pairs (every second index is used) or of clips (every `frames`-th), so that every
    step encodes about the same number of images. Which one, and which of the worlds, is a function of the block alone.
    """

    def __init__(self, worlds: Sequence[World], processor: Any, options: Questions, batch_size: int, blind: bool = False) -> None:
        self.worlds, self.processor, self.options = list(worlds), processor, options
        self.batch_size, self.blind = batch_size, blind
        self._prefix: dict[int, np.ndarray] = {}
        self._forms = options.forms or dict.fromkeys(LIST_PROMPTS, 1.0)
        for form in self._forms:
            if form not in LIST_PROMPTS:
                raise unknown("form of lists in questions.forms:", form, LIST_PROMPTS)
        for name in options.types:
            if name not in TYPES:
                raise unknown("question type in questions.types:", name, TYPES)
        self._names = TokenNames(processor, options.naming, options.looks) if options.naming and not blind else None

    def collate(self, indices: Sequence[int]) -> dict[str, Any]:
        """The samples of `indices` (of one block) as one batch of the model's inputs.

        Raises `UserError` for fewer indices than a clip has frames, of which none may begin one.
        """
        samples = self._samples(indices)
        if not samples:
            raise UserError(
                f"{len(indices)} samples are too few for one micro-batch of one process when clips have several frames; "
                "use a larger batch_size, fewer micro-batches or processes, or questions.several=(0,0)."
            )
        if self.blind:
            return self.rows(samples, [[] for _ in samples])
        drawings = [sample.drawings(owner=self._names is not None) for sample in samples]
        pixels = to_pixels([np.asarray(drawing.image) for drawn in drawings for drawing in drawn])
        return self.rows(samples, drawings) | {"pixel_values": pixels}

    def rows(self, samples: Sequence[Sample], drawings: Sequence[Sequence[Drawing]]) -> dict[str, Any]:
        """Packed rows about samples, without their images; `drawings` (with `owner`) are only read for `questions.naming`."""
        packed = []
        for sample, drawn in zip(samples, drawings, strict=True):
            prefix = self.prefix(len(sample.frames))
            row = pack(prefix, self._items(sample), len(prefix) + self.options.text_tokens)
            if self._names is not None:
                self._names.label(row, sample, drawn)
            packed.append(row)
        return collate(packed)

    def prefix(self, images: int) -> np.ndarray:
        """Ids of what all questions about `images` images share; without the images if blind."""
        if images not in self._prefix:
            self._prefix[images] = np.asarray(self.processor.prefix_ids(0 if self.blind else images))
        return self._prefix[images]

    def _samples(self, indices: Sequence[int]) -> list[Sample]:
        number = indices[0] // self.batch_size
        block = Rng("block", self.worlds[0].config.seed, number)
        world = self.worlds[number % len(self.worlds)]
        pair, clip = self.options.several
        point = block.uniform()
        if point < pair:
            return [world.sample(i, "pair") for i in indices if i % 2 == 0]
        if point < pair + clip:
            frames = block.integer(*world.config.frames)
            return [world.sample(i, "clip", frames) for i in indices if i % frames == 0]
        return [world.sample(i, single(world, i)) for i in indices]

    def _items(self, sample: Sample) -> list[Item]:
        rng = sample.rng("training")
        weights = self.options.weights
        types = self.options.types
        questions = [q for q in sample.questions() if not types or q.type in types]
        # Weighted order without replacement (Efraimidis and Spirakis): the budget of tokens takes what comes first.
        order = sorted(questions, key=lambda q: rng.uniform() ** (1 / weights.get(q.type, 1.0)), reverse=True)
        texts = [(q.text, q.answer) for q in order[: self.options.most]]
        chance = sum(self.options.captions) if len(sample.frames) == 1 else self.options.described
        if chance and rng.chance(chance):
            described = sample.captions()
            kind = rng.weighted(list(CAPTION_PROMPTS), self.options.captions)
            texts.insert(rng.below(3), (CAPTION_PROMPTS[kind], described[kind]))
        if len(sample.frames) == 1 and self.options.lists:
            more = self.options.lists % 1
            for number in range(int(self.options.lists) + (rng.chance(more) if more else 0)):
                listed = lists(sample, turn=number)
                forms = {form: weight for form, weight in self._forms.items() if form in listed}
                if forms:
                    form = rng.weighted(list(forms), list(forms.values()))
                    texts.insert(rng.below(2), (LIST_PROMPTS[form], listed[form]))
        asked = self._ids([f"<user>{q}<assistant>" for q, _ in texts])
        answered = self._ids([f"{a}<eos>" for _, a in texts])
        return [(q, a, None) for q, a in zip(asked, answered, strict=True)]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        ids: list[list[int]] = self.processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return ids


def single(world: World, index: int) -> str:
    """A kind of sample with one image, by the world's weights."""
    weights = {k: w for k, w in sorted(world.config.kinds.items()) if k in ("scene", "text", "chart")}
    return Rng("kind", index).weighted(list(weights), list(weights.values()))
