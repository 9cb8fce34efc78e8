"""Our decoding loop for models of transformers against their `generate()`, on random weights; the tokens are the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tessera.errors import TesseraError
from tessera.measure.sides import Ratio, interleaved, median, ratio

QUESTIONS = 8
QUESTIONS_TARGET = 3.0
QUESTION_TOKENS = 16
"""Tokens of an answer where several questions share an image; short answers are what they are asked for."""

_LARGE: dict[str, Any] = {
    "hidden_size": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 1408,
}


@dataclass(frozen=True, slots=True)
class HostShape:
    """A host to be measured: changes of the tiny host's language model and of the rest, and how much faster it should be."""

    family: str
    words: str
    text: dict[str, Any]
    other: dict[str, Any]
    target: float


_PYTHON = "6 layers, width 64: Python dominates"
_PRODUCTS = "12 layers, width 512: matrix products dominate"
_MROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": 10000.0}}
SHAPES = (
    HostShape("llava", _PYTHON, {}, {}, 2.0),
    HostShape("qwen2_5_vl", _PYTHON, {}, {}, 2.0),
    HostShape("internvl", _PYTHON, {}, {}, 2.0),
    HostShape("gemma3", _PYTHON, {}, {}, 1.0),
    HostShape("llava", _PRODUCTS, {**_LARGE, "head_dim": 64}, {}, 1.1),
    HostShape("qwen2_5_vl", _PRODUCTS, {**_LARGE, **_MROPE}, {"vision_config": {"out_hidden_size": 512}}, 1.1),
    HostShape("internvl", _PRODUCTS, _LARGE, {}, 1.1),
    HostShape(
        "gemma3", _PRODUCTS, {**_LARGE, "head_dim": 64, "layer_types": ["sliding_attention", "full_attention"] * 6}, {}, 1.0
    ),
)
"""Gemma 3 stands for hosts whose tokens the model's own forward computes (sliding windows): never slower is what is wanted."""


@dataclass(slots=True, kw_only=True)
class HostCase:
    """One answer at batch 1. Seconds are medians of a call, from pixels to the last token; `ratio` is transformers' over ours.

    language_model: parameters, without the output layer; why_slow: why tokens go through the model's own forward, None if they
    do not.
    """

    family: str
    shape: str
    language_model: int
    prompt_tokens: int
    new_tokens: int
    why_slow: str | None
    ours_seconds: float
    transformers_seconds: float
    ratio: Ratio
    target: float
    reached: bool


@dataclass(slots=True, kw_only=True)
class QuestionsCase:
    """Several questions about one image, answered together from one reading of it.

    ratio: against `generate()` for one question after the other; against_batch: against one left-padded batch of all.
    """

    family: str
    shape: str
    questions: int
    image_tokens: int
    new_tokens: int
    ours_seconds: float
    transformers_seconds: float
    ratio: Ratio
    against_batch: Ratio
    target: float
    reached: bool


def host_case(shape: HostShape, new_tokens: int, rounds: int) -> HostCase:
    """One host. Raises `TesseraError` if the tokens differ."""
    import torch

    from tessera.generation.loop import decode_inputs
    from tessera.generation.route import Route
    from tessera.hosts import zoo

    model = zoo.tiny(shape.family, text_config={"vocab_size": 32000, **shape.text}, **shape.other).model
    inputs = zoo.inputs(shape.family, (1,))
    route = Route(model)

    def ours() -> Any:
        return decode_inputs(model, inputs, max_new_tokens=new_tokens, route=route)

    def theirs() -> Any:
        return model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)

    if not torch.equal(ours(), theirs()):
        raise TesseraError(f"the tokens of {shape.family} ({shape.words}) differ from generate()'s.")
    taken = interleaved({"ours": ours, "transformers": theirs}, rounds)
    found = ratio(taken["transformers"], taken["ours"])
    return HostCase(
        family=shape.family,
        shape=shape.words,
        language_model=sum(p.numel() for p in route.language_model.parameters()),
        prompt_tokens=inputs["input_ids"].shape[1],
        new_tokens=new_tokens,
        why_slow=route.way()[1],
        ours_seconds=median(taken["ours"]),
        transformers_seconds=median(taken["transformers"]),
        ratio=found,
        target=shape.target,
        reached=found.median >= shape.target,
    )


def questions_case(rounds: int) -> QuestionsCase:
    """Eight questions about one image of 576 tokens, to a LLaVA. Raises `TesseraError` if the tokens differ."""
    import torch

    from tessera.generation.prefixes import Head, decode_tails, read
    from tessera.generation.route import Route
    from tessera.hosts import zoo
    from tessera.hosts.tiny_configs import IMAGE

    text = {"vocab_size": 32000, **_LARGE, "head_dim": 64}
    model = zoo.tiny("llava", text_config=text, vision_config={"image_size": 192}, image_seq_length=576).model
    random = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, 3, 192, 192, generator=random)
    front = [1, 20, 30, *[IMAGE] * 576]
    asked = [torch.randint(10, 180, (8 + n,), generator=random).tolist() for n in range(QUESTIONS)]
    route = Route(model)
    limits: dict[str, Any] = {"max_new_tokens": QUESTION_TOKENS, "do_sample": False}
    longest = max(map(len, asked))
    rows = torch.tensor([[0] * (longest - len(tail)) + front + tail for tail in asked])
    mask = torch.tensor([[0] * (longest - len(tail)) + [1] * (len(front) + len(tail)) for tail in asked])
    image = {"input_ids": torch.tensor([front]), "attention_mask": torch.ones(1, len(front), dtype=torch.long)}

    def ours() -> list[list[int]]:
        with torch.inference_mode():
            head = read(route, {**image, "pixel_values": pixels})
        assert isinstance(head, Head)
        found: list[list[int]] = decode_tails(route, head, asked, **limits).tolist()
        return found

    def single() -> list[list[int]]:
        found = []
        for tail in asked:
            ids = torch.tensor([front + tail])
            out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels, **limits)
            found.append(out[0, ids.shape[1] :].tolist())
        return found

    def batch() -> list[list[int]]:
        every = pixels.expand(QUESTIONS, -1, -1, -1)
        found: list[list[int]] = model.generate(input_ids=rows, attention_mask=mask, pixel_values=every, **limits)[
            :, rows.shape[1] :
        ].tolist()
        return found

    if not ours() == single() == batch():
        raise TesseraError("the tokens of questions that share an image differ from generate()'s.")
    taken = interleaved({"ours": ours, "single": single, "batch": batch}, rounds)
    found = ratio(taken["single"], taken["ours"])
    return QuestionsCase(
        family="llava",
        shape=_PRODUCTS,
        questions=QUESTIONS,
        image_tokens=576,
        new_tokens=QUESTION_TOKENS,
        ours_seconds=median(taken["ours"]),
        transformers_seconds=median(taken["single"]),
        ratio=found,
        against_batch=ratio(taken["batch"], taken["ours"]),
        target=QUESTIONS_TARGET,
        reached=found.median >= QUESTIONS_TARGET,
    )
