"""Griffon finds things at any granularity as plain text: labels with coordinates, one after the other, or none.

Source: Zhan et al., "Griffon: Spelling out All Object Locations at Any Granularity with Large Language Models", ECCV 2024,
arXiv:2311.14552. No special tokens and no detection head: "dog-[0.120,0.200,0.450,0.600]&cat-[...]" in reading order of the
data, "None" where nothing of the sort is there. The training data cover four scenarios: one referent, all things of one
category, all things of several categories, and no referent. A training-free score makes detections comparable: the square root
of the probability of the label's tokens times that of the coordinates' tokens, as the model chose them.

Deviations: the paper's model, a CLIP tower at 448 pixels with a linear projector, is not part of this; any model that answers
in one of the two notations is scored. Besides the paper's decimals there is the world's notation, "dog 12 20 45 60, cat ...",
which costs a small model four tokens a box instead of thirty and is off by up to a hundredth. The published script finds a
label's and a box's tokens by the ids of "&" and "-" in one tokenizer; here they are found by their characters, in any
tokenizer, and brackets do not count. Labels that hold a hyphen stay whole. Non-maximum suppression is off unless asked for.

Shapes: per step of generation logits [B, V] for B answers; boxes are (x0, y0, x1, y1) in the unit square.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tessera.config import config
from tessera.errors import UserError
from tessera.evaluation.grounding import Grounder, Located
from tessera.registry import part
from tessera.world.lists import LIST_PROMPTS
from tessera.world.questions import box_text, cell_box, parse_box
from tessera.world.questions.boxes import box_iou
from tessera.world.questions.phrasing import enumerate_words
from tessera.world.rng import Rng
from tessera.world.scene import Box

if TYPE_CHECKING:
    from PIL import Image

    from tessera.data.records import Record
    from tessera.world.dataset import Sample

Codec = Literal["decimal", "hundredths"]
SCENARIOS = ("one referent", "one category", "several categories", "no referent")
NONE = {"decimal": "None", "hundredths": "nothing"}
_NUMBER = r"\d+(?:\.\d+)?"
_PATTERNS = {
    "decimal": re.compile(rf"(?P<label>[^&\[\]]*?)\s*-?\s*\[\s*(?P<box>{_NUMBER}(?:\s*,\s*{_NUMBER}){{3}})\s*\]"),
    "hundredths": re.compile(r"(?P<label>[^,]*?)\s*\b(?P<box>\d\d(?: \d\d){3})(?!\d)\s*(?=,|$)"),
}


@dataclass(frozen=True, slots=True)
class Spelled:
    """A thing as it stands in a text: where its label and its coordinates are, as (first character, character after the last)."""

    label: str
    box: Box
    label_span: tuple[int, int]
    box_span: tuple[int, int]


def spell(things: Sequence[tuple[str, Box]], codec: Codec = "decimal") -> str:
    """Things as text."""
    if not things:
        return NONE[codec]
    if codec == "decimal":
        return "&".join(f"{label}-[{','.join(f'{min(1.0, max(0.0, v)):.3f}' for v in box)}]" for label, box in things)
    return ", ".join(f"{label} {box_text(box)}" for label, box in things)


def read(text: str, codec: Codec = "decimal") -> list[Spelled]:
    """The things in a text; what is no box, reaches out of the image or has no area is left out. Never raises."""
    found = []
    for match in _PATTERNS[codec].finditer(text):
        box = _box(match["box"], codec)
        if box is not None:
            label = match["label"]
            start = match.start("label") + len(label) - len(label.lstrip())
            found.append(Spelled(label.strip(), box, (start, start + len(label.strip())), match.span("box")))
    return found


def _box(text: str, codec: Codec) -> Box | None:
    if codec == "hundredths":
        cells = parse_box(text)
        return None if cells is None else cell_box(cells)
    x0, y0, x1, y1 = map(float, text.split(","))
    return (x0, y0, x1, y1) if 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1 else None


def score(spelled: Spelled, spans: Sequence[tuple[int, int]], probabilities: Sequence[float]) -> float:
    """sqrt(product over the label's tokens) * sqrt(product over the coordinates' tokens).

    spans: the characters of each token of the answer; probabilities: of each as it was chosen, in 0..1.
    """
    total = 1.0
    for low, high in (spelled.label_span, spelled.box_span):
        for (start, end), p in zip(spans, probabilities, strict=True):
            if start < high and end > low:
                total *= p**0.5
    return total


def suppress(found: Sequence[Located], iou: float) -> list[Located]:
    """Without those that a better one of their label overlaps by more than `iou`; the others in their order."""
    kept: list[Located] = []
    for f in sorted(found, key=lambda f: -f.score):
        if all(k.label != f.label or box_iou(k.box, f.box) <= iou for k in kept):
            kept.append(f)
    return [f for f in found if f in kept]


@part("griffon", socket="grounding", catalog=108)
class Griffon(Grounder):
    """Boxes with scores from what a model writes, and training data of the four scenarios."""

    @config
    class Config:
        """codec: the notation of boxes. scores: of the tokens, or 1 for everything. suppression: overlap from which the worse of
        two boxes of one label goes, 1: none goes. max_new_tokens: of an answer; batch: answers side by side."""

        codec: Codec = "decimal"
        scores: Literal["tokens", "constant"] = "tokens"
        suppression: float = 1.0
        max_new_tokens: int = 256
        batch: int = 16

        def validate_ranges(self) -> None:
            if not 0 <= self.suppression <= 1 or self.max_new_tokens < 1 or self.batch < 1:
                raise ValueError("suppression is from 0 to 1, max_new_tokens and batch at least 1.")

    def __init__(self, config: Config) -> None:
        self.config = config

    def prompt(self, names: Sequence[str]) -> str:
        """The question for things of some names; for everything, if there are none."""
        return f"List every {enumerate_words(list(names))} with its box." if names else LIST_PROMPTS["boxes"]

    def locate(
        self, model: Any, processor: Any, images: Sequence[Image.Image], names: Sequence[Sequence[str]]
    ) -> list[list[Located]]:
        """See `Grounder`; greedy decoding with the model's own `generate`."""
        if len(images) != len(names):
            raise UserError(f"{len(images)} images, but names for {len(names)}; give an empty list for everything in an image.")
        found: list[list[Located]] = []
        for start in range(0, len(images), self.config.batch):
            chunk = slice(start, start + self.config.batch)
            found += self._answers(model, processor, images[chunk], [self.prompt(n) for n in names[chunk]])
        return found

    def _answers(self, model: Any, processor: Any, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[list[Located]]:
        import torch

        tokenizer = getattr(processor, "tokenizer", processor)
        texts = []
        for prompt in prompts:
            content = [{"type": "image"}, {"type": "text", "text": prompt}]
            texts.append(processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True))
        inputs = processor(images=[[i] for i in images], text=texts, padding=True, padding_side="left", return_tensors="pt")
        with torch.no_grad():
            out = model.generate(
                **inputs.to(model.device),
                max_new_tokens=self.config.max_new_tokens,
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=True,
            )
        new = out.sequences[:, inputs["input_ids"].shape[1] :]
        chosen = [step.float().log_softmax(-1).gather(-1, new[:, at, None])[:, 0].exp() for at, step in enumerate(out.logits)]
        probabilities = torch.stack(chosen, 1).tolist()
        return [self._found(tokenizer, row.tolist(), p) for row, p in zip(new, probabilities, strict=True)]

    def _found(self, tokenizer: Any, ids: Sequence[int], probabilities: Sequence[float]) -> list[Located]:
        text, spans = spans_of(lambda part: str(tokenizer.decode(part, skip_special_tokens=True)), ids)
        found = []
        for spelled in read(text, self.config.codec):
            sure = score(spelled, spans, probabilities) if self.config.scores == "tokens" else 1.0
            found.append(Located(spelled.label, spelled.box, sure))
        return suppress(found, self.config.suppression) if self.config.suppression < 1 else found

    def examples(self, sample: Sample, rng: Rng, scenarios: Sequence[str] = SCENARIOS) -> list[tuple[str, str, str]]:
        """(scenario, question, answer) of each scenario that a world sample gives, about its first picture."""
        truth = sorted(sample.truth(), key=lambda t: (t.centre[0], t.box))
        names = [t.name for t in truth]
        present = list(dict.fromkeys(names))
        alone = [n for n in present if names.count(n) == 1]
        absent = self.absent(sample, rng, 3)

        def answer(wanted: Sequence[str]) -> str:
            return spell([(t.name, t.box) for t in truth if t.name in wanted], self.config.codec)

        made = {}
        if alone:
            one = rng.choice(alone)
            made["one referent"] = ([one], answer([one]))
        if present:
            most = max(present, key=names.count)
            made["one category"] = ([most], answer([most]))
            wanted = rng.shuffled([*rng.pick(present, 2), *absent[1:]])
            made["several categories"] = (wanted, answer(wanted))
        made["no referent"] = (absent[:1], NONE[self.config.codec])
        return [(s, self.prompt(made[s][0]), made[s][1]) for s in scenarios if s in made]

    def records(self, samples: Iterable[Sample], scenarios: Sequence[str] = SCENARIOS, seed: int = 0) -> list[Record]:
        """Conversations to train on, one for each scenario of each sample. Raises `UserError` for a test sample."""
        from tessera.data.engine import HELD_BACK, conversation

        made = []
        for sample in samples:
            if sample.config.split in HELD_BACK:
                raise UserError(f"sample {sample.index} is of the {sample.config.split} split, on which nothing is trained.")
            for scenario, question, answer in self.examples(sample, Rng("griffon", seed, sample.index), scenarios):
                made.append(conversation(sample.images()[:1], question, answer, source=scenario))
        return made

    def absent(self, sample: Sample, rng: Rng, k: int) -> list[str]:
        """K names of things that are not in the first picture, half of them of a category that is."""
        from tessera.world.concepts import concepts

        table = concepts()
        near = {t.category for t in sample.truth()}
        words = {w for t in sample.truth() for w in (t.name, *t.synonyms)}
        unnamed = [c for c in sample.pool if not words & {table[c].name, *table[c].synonyms}]
        hard = [c for c in unnamed if table[c].category in near]
        return [table[c].name for c in dict.fromkeys([*rng.pick(hard, (k + 1) // 2), *rng.pick(unnamed, k)])][:k]


def spans_of(decode: Callable[[Sequence[int]], str], ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """The text of an answer, and which of its characters each token adds."""
    ends = [len(decode(ids[: at + 1])) for at in range(len(ids))]
    return decode(ids), [(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
