"""Griffon's notations, its score against a walk over tokens, its data, and finding with a tiny model."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tessera.config import build
from tessera.errors import UserError
from tessera.evaluation.grounding import Located
from tessera.parts.grounding.griffon import NONE, SCENARIOS, Codec, Griffon, read, score, spans_of, spell, suppress
from tessera.world import World
from tessera.world.rng import Rng

THINGS = [("dog", (0.12, 0.2, 0.45, 0.6)), ("T-shirt", (0.0, 0.0, 1.0, 1.0)), ("fire engine", (0.501, 0.333, 0.999, 0.5))]


@pytest.mark.parametrize("codec", ["decimal", "hundredths"])
def test_things_come_back(codec: Codec) -> None:
    back = read(spell(THINGS, codec), codec)
    assert [b.label for b in back] == [label for label, _ in THINGS]
    for found, (_, box) in zip(back, THINGS, strict=True):
        assert found.box == pytest.approx(box, abs=0.0005 if codec == "decimal" else 0.0101)
    assert read(NONE[codec], codec) == [] and spell([], codec) == NONE[codec]


def test_spans_point_at_label_and_coordinates() -> None:
    text = " dog-[0.120, 0.200,0.450,0.600]&T-shirt-[0,0,1,1] & x-[0.9,0.1,0.2,0.3]&cat-[0.1,0.2]"
    found = read(text)
    assert [(f.label, text[slice(*f.label_span)], text[slice(*f.box_span)]) for f in found] == [
        ("dog", "dog", "0.120, 0.200,0.450,0.600"),
        ("T-shirt", "T-shirt", "0,0,1,1"),
    ]


@given(st.text(alphabet="dogcat-&[],.0123456789 \n", max_size=60))
def test_nothing_that_is_written_raises(text: str) -> None:
    codecs: tuple[Codec, ...] = ("decimal", "hundredths")
    for codec in codecs:
        for f in read(text, codec):
            assert all(0 <= v <= 1.0 + 1e-9 for v in f.box) and f.box[0] < f.box[2] and f.box[1] < f.box[3]


def test_score_equals_a_walk_over_tokens() -> None:
    """The published rule, for a tokenizer of characters: from "&" to "-" the label, from "-" to the bracket the coordinates."""
    text = "dog-[0.1,0.2,0.3,0.4]&cat-[0.5,0.5,0.6,0.9]"
    rng = Rng("score")
    p = [1.0 if c in "[]&-" else rng.uniform(0.5, 1.0) for c in text]
    walked, label, box, inside = [], 1.0, 1.0, False
    for c, value in zip(text, p, strict=True):
        if c == "-":
            inside = True
        elif c == "&":
            walked.append(math.sqrt(label) * math.sqrt(box))
            label, box, inside = 1.0, 1.0, False
        elif inside:
            box *= value
        else:
            label *= value
    walked.append(math.sqrt(label) * math.sqrt(box))
    spans = [(i, i + 1) for i in range(len(text))]
    assert [score(f, spans, p) for f in read(text)] == pytest.approx(walked)


def test_tokens_of_several_characters_and_special_ones() -> None:
    pieces = ["dog", "", " ", "12", " 20 45", " 60", "", ", cat"]
    text, spans = spans_of(lambda ids: "".join(pieces[i] for i in ids), range(len(pieces)))
    (found,) = read(text, "hundredths")
    assert text == "dog 12 20 45 60, cat"
    assert score(found, spans, [0.25, 0.1, 0.1, 0.5, 0.5, 1.0, 0.1, 0.1]) == pytest.approx(0.25)


def test_suppression_keeps_the_better_of_a_label() -> None:
    near = [
        Located("dog", (0.1, 0.1, 0.5, 0.5), 0.4),
        Located("cat", (0.1, 0.1, 0.5, 0.5), 0.3),
        Located("dog", (0.12, 0.1, 0.5, 0.5), 0.9),
    ]
    assert suppress(near, 0.5) == near[1:] and suppress(near, 0.99) == near


def test_four_scenarios() -> None:
    world = World(split="train", kinds={"scene": 1.0}, things=(2, 5), width=64, height=64)
    griffon = Griffon(Griffon.Config(codec="hundredths"))
    seen = set()
    for index in range(12):
        sample = world[index]
        names = [t.name for t in sample.truth()]
        for scenario, question, answer in griffon.examples(sample, Rng("t", index)):
            seen.add(scenario)
            found = [f.label for f in read(answer, "hundredths")]
            asked = question.removeprefix("List every ").removesuffix(" with its box.")
            if scenario == "no referent":
                assert answer == "nothing" and asked not in names
            elif scenario == "several categories":
                assert sorted(found) == sorted(n for n in names if n in asked.replace(" and ", ", ").split(", "))
            else:
                assert found == [asked] * names.count(asked) and (scenario == "one category" or len(found) == 1)
    assert seen == set(SCENARIOS)


def test_test_samples_train_nothing() -> None:
    griffon = Griffon(Griffon.Config())
    options: dict[str, Any] = {"kinds": {"scene": 1.0}, "things": (2, 3), "width": 64, "height": 64}
    records = griffon.records([World(split="train", **options)[0]], ("no referent",))
    assert [r.messages[-1]["content"] for r in records] == ["None"]
    with pytest.raises(UserError, match="test split"):
        griffon.records([World(split="test", **options)[0]])


class Says:
    """A tokenizer of characters, a processor and a model that says one text per image with known probabilities."""

    device = torch.device("cpu")

    def __init__(self, texts: list[str], p: float) -> None:
        self.texts, self.p, self.tokenizer, self.asked = texts, p, self, [""]

    def apply_chat_template(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        assert add_generation_prompt
        return str(messages[0]["content"][1]["text"])

    def __call__(self, images: list[list[Any]], text: list[str], **options: Any) -> Any:
        from transformers.feature_extraction_utils import BatchFeature

        assert options["padding_side"] == "left" and all(len(i) == 1 for i in images)
        self.asked = text
        return BatchFeature({"input_ids": torch.zeros(len(text), 2, dtype=torch.long)})

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return "".join(chr(i) for i in ids if i)

    def generate(self, input_ids: torch.Tensor, **options: Any) -> Any:
        from types import SimpleNamespace

        rows = [self.texts.pop(0) for _ in range(len(input_ids))]
        longest = max(map(len, rows))
        new = torch.tensor([[ord(c) for c in row.ljust(longest, "\0")] for row in rows])
        logits = torch.full((longest, len(rows), 128), math.log((1 - self.p) / 127))
        logits.scatter_(2, new.T[:, :, None], math.log(self.p))
        return SimpleNamespace(sequences=torch.cat([input_ids, new], 1), logits=tuple(logits))


def test_finding_asks_reads_and_scores() -> None:
    model = Says(["dog-[0.1,0.2,0.3,0.4]&nonsense", "None", "cat-[0.1,0.2,0.3,0.4]&cat-[0.1,0.2,0.3,0.41]"], p=0.9)
    griffon = Griffon(Griffon.Config(batch=2, suppression=0.5))
    found = griffon.locate(model, model, [None] * 3, [["dog", "cat"], [], ["cat"]])  # type: ignore[list-item]
    assert found[0] == [Located("dog", (0.1, 0.2, 0.3, 0.4), pytest.approx(0.9 ** (0.5 * (3 + 15))))]  # type: ignore[arg-type]
    assert found[1] == [] and len(found[2]) == 1
    assert model.asked == ["List every cat with its box."]
    model.texts = ["dog-[0.1,0.2,0.3,0.4]"]
    ((only,),) = Griffon(Griffon.Config(scores="constant")).locate(model, model, [None], [[]])  # type: ignore[list-item]
    assert only.score == 1 and model.asked == ["List everything with its box."]
    with pytest.raises(UserError, match="2 images"):
        griffon.locate(model, model, [None] * 2, [[]])  # type: ignore[list-item]


def test_bad_options_are_refused() -> None:
    for bad in ({"codec": "bins"}, {"suppression": 2.0}, {"batch": 0}, {"score": "tokens"}):
        with pytest.raises(UserError):
            build(Griffon.Config, bad)
