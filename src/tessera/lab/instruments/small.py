"""A small vision-language model that is made within a claim: shipped towers whose outputs are computed once, a language model of
two layers, and between them the parts that are compared; all but the towers is trained from nothing.

    lesson = exercise({"encoders": [TOWER]}, 800, split="train", types=TYPES)
    model = taught({"encoders": [TOWER], "connector": {"kind": "mlp"}}, lesson, seed=0)
    accuracy(model, exercise(..., split="test"))

It is no match for a reference model, but all that is in it has been learned through the part in question, in a minute.

Legend: I images, N visual tokens in front of the connector, D channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from tessera.data.packing import IGNORED, collate, pack
from tessera.errors import UserError
from tessera.models import parts as part_specs
from tessera.models.configuration import TesseraConfig
from tessera.models.image_processing import TesseraImageProcessor
from tessera.models.modeling import TesseraForConditionalGeneration
from tessera.models.processing import TesseraProcessor
from tessera.models.tokenizer import build_tokenizer
from tessera.nn.tokens import QuestionText, from_grid
from tessera.recipes.object_expert import ENCODER as TOWER
from tessera.training.engine import autocast
from tessera.training.optim import build_optimizer
from tessera.training.plan import OptimConfig, Schedule
from tessera.training.speed import bf16_pays
from tessera.world import World
from tessera.world.vocabulary import words

if TYPE_CHECKING:
    from tessera.bench.sides import Ratio
    from tessera.lab.lab import Lab

START = {"encoders.0": "object-expert", "encoders.1": "reading-expert"}
"""The shipped towers, by socket."""
TEXT = {
    "model_type": "qwen3",
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "tie_word_embeddings": True,
    "max_position_embeddings": 512,
}

__all__ = ["START", "TEXT", "TOWER", "Exercise", "Reading", "accuracy", "built", "exercise", "reading", "taught"]


@dataclass(slots=True)
class Exercise:
    """features [I, N, D] float16, what `encode_images` gives; rows: (image, ids of the question, ids of the answer)."""

    features: Tensor
    rows: list[tuple[int, list[int], list[int]]]


def built(parts: Mapping[str, Any], start: Mapping[str, str] = START) -> tuple[Any, Any]:
    """A model of `parts` with the small language model, in which the towers alone are trained, and its processor."""
    from tessera.models import reference

    tokenizer = build_tokenizer(words())
    text = {**TEXT, "vocab_size": -(-len(tokenizer) // 64) * 64}
    text |= {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    config = TesseraConfig(parts=dict(parts), text_config=text)
    model: Any = TesseraForConditionalGeneration._from_config(config, attn_implementation="eager")
    for socket, module in model.sockets().items():
        if socket in start:
            module.load_state_dict(reference.load(start[socket])[0].encoder.state_dict())
    processor = TesseraProcessor(
        TesseraImageProcessor(model.image_size), tokenizer, tokens_per_image=model.tokens_per_image, max_length=512
    )
    return model.eval(), processor


@torch.no_grad()
def exercise(
    parts: Mapping[str, Any],
    n: int,
    *,
    split: str,
    types: Sequence[str],
    seed: int = 0,
    things: tuple[int, int] = (1, 4),
    most: int = 8,
    start: Mapping[str, str] = START,
) -> Exercise:
    """Questions of `types` about `n` scenes, at most `most` of each scene, with the features that the towers of `parts` give.

    Raises `UserError` if nothing can be asked.
    """
    precision = "bf16" if bf16_pays(torch.device("cpu"))[0] else "fp32"
    model, processor = built(parts, start)
    world = World(split=split, seed=seed, kinds={"scene": 1.0}, things=things)
    side = model.image_size
    rows: list[tuple[int, list[int], list[int]]] = []
    features = []
    pictures: list[Image.Image] = []
    for index in range(n):
        sample = world[index]
        pictures.append(sample.drawings(size=(side, side))[0].image)
        questions = sample.rng("exercise").shuffled(sample.questions(tuple(types)))
        rows += [(index, processor.question_ids(q.text), processor.answer_ids(q.answer)) for q in questions[:most]]
        if len(pictures) == 32 or index == n - 1:
            pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
            with autocast(pixels.device, precision):
                features.append(model.encode_images(pixels).features.half())
            pictures = []
    if not rows:
        raise UserError(f"the first {n} scenes give no question of the types {', '.join(types)}; take more.")
    return Exercise(torch.cat(features), rows)


def _rows(processor: Any, lesson: Exercise, chosen: Sequence[int]) -> dict[str, Tensor]:
    """One sequence per row of the lesson."""
    rows = [lesson.rows[i] for i in chosen]
    packs = [pack(processor.prefix_ids(1), [(question, answer, None)], processor.max_length) for _, question, answer in rows]
    return {**collate(packs), "visual_features": lesson.features[[image for image, _, _ in rows]].float()}


def _packed(processor: Any, lesson: Exercise, chosen: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """One sequence per image with all of its rows."""
    items = [[(question, answer, None) for _, question, answer in (lesson.rows[i] for i in own)] for own in chosen]
    packs = [pack(processor.prefix_ids(1), own, processor.max_length) for own in items]
    return {**collate(packs), "visual_features": lesson.features[[lesson.rows[own[0]][0] for own in chosen]].float()}


def taught(
    parts: Mapping[str, Any],
    lesson: Exercise,
    *,
    seed: int,
    steps: int = 500,
    images: int = 16,
    optim: OptimConfig | None = None,
) -> tuple[Any, Any]:
    """A model of `parts` after `steps` steps of all questions about `images` images, with its processor; the towers' outputs are
    the lesson's. Questions about an image share a sequence, unless a part reads the question. Products are in bfloat16 where that
    is faster, as the trainer's are."""
    device = torch.device("cpu")
    precision = "bf16" if bf16_pays(device)[0] else "fp32"
    torch.manual_seed(seed)
    model, processor = built(parts, {})
    towers = {id(p) for name, s in model.sockets().items() if name.startswith("encoders") for p in s.parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) not in towers)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = build_optimizer(model, {id(p): 1.0 for p in trained}, optim or OptimConfig(lr=3e-3, muon_lr=0.02))
    schedule = Schedule(warmup=50)
    of_image: dict[int, list[int]] = {}
    for number, (image, _, _) in enumerate(lesson.rows):
        of_image.setdefault(image, []).append(number)
    asked = list(of_image.values())
    order = torch.Generator().manual_seed(seed)
    model.train()
    for step in range(steps):
        chosen = [asked[i] for i in torch.randint(len(asked), (images,), generator=order).tolist()]
        one_by_one = [i for own in chosen for i in own]
        inputs = _rows(processor, lesson, one_by_one) if model.reads_question else _packed(processor, lesson, chosen)
        optimizer.set_factor(schedule.factor(step, steps))
        with autocast(device, precision):
            loss = model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return model.eval(), processor


@torch.no_grad()
def accuracy(model: Any, processor: Any, test: Exercise, *, wrong_question: bool = False, batch: int = 100) -> float:
    """Share of answers that are right in every token, the end included, which is what greedy decoding would say.

    wrong_question: what reads the question in front of the language model gets the one of another row.
    """
    right = 0
    for begin in range(0, len(test.rows), batch):
        inputs = _rows(processor, test, range(begin, min(begin + batch, len(test.rows))))
        labels, features = inputs.pop("labels"), inputs.pop("visual_features")
        asked = (labels == IGNORED) & (inputs["segment_ids"] >= 0)
        question = None
        if model.reads_question:
            ids = inputs["input_ids"].roll(1, 0) if wrong_question else inputs["input_ids"]
            question = model.model.question(ids, asked.roll(1, 0) if wrong_question else asked)
        seen = model.model.project(features, question)
        said = model(**inputs, image_features=seen).logits[:, :-1].argmax(-1)
        wanted = labels[:, 1:]
        right += int(((said == wanted) | (wanted == IGNORED)).all(1).sum())
    return right / len(test.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a connector saves a language model: tokens that it reads of an image, and the FLOPs and seconds of an MLP on all
    patches over its own, connector and prefill together."""

    tokens: int
    flops: float
    time: Ratio
    shape: str


def reading(lab: Lab, spec: Mapping[str, Any], grid: tuple[int, int] = (24, 24), rounds: int = 5) -> Reading:
    """Connector `spec` against `mlp` in front of a language model of 8 layers of width 512 with random weights: an image on
    `grid` and 32 tokens of text."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    width, out, patches, text = 1024, 512, grid[0] * grid[1], 32
    sizes = {**TEXT, "hidden_size": out, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8}
    config = Qwen3Config(**{**sizes, "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 2048})
    language: Any = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False).base_model
    image, words_ = from_grid(torch.randn(1, patches, width), grid), torch.randn(1, text, out)
    question = QuestionText(embeddings=words_, mask=torch.ones(1, text, dtype=torch.bool))
    counts = []

    def work(of: Mapping[str, Any]) -> Any:
        connector = part_specs.create("connectors", of, "connector", width=width, out_width=out)
        connector.eval().requires_grad_(False)  # the FLOP counter hooks whatever could have a gradient
        asks = "question" in getattr(connector, "wants", ())

        @torch.no_grad()
        def read() -> int:
            seen = (connector(image, question) if asks else connector(image)).features
            language(inputs_embeds=torch.cat([seen, words_], dim=1), use_cache=False)
            return int(seen.shape[1])

        counts.append(read())
        return read

    whole, short = work({"kind": "mlp"}), work(spec)
    return Reading(
        tokens=counts[1],
        flops=lab.flops(whole) / lab.flops(short),
        time=lab.timing(whole, short, rounds),
        shape=f"{patches} patches of width {width}, {text} tokens of text, 8 layers of width {out}, float32, {lab.shape()}",
    )
