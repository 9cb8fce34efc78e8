"""Our trainer against a plain loop over transformers' LlavaForConditionalGeneration: same tower, language model and questions.

And against the machine: the share of its matrix-product rate that training reaches, in floating-point operations that a step
needs (forward, backward and optimiser, counted by torch) per second, over those of a square product in the same number type.
There the trainer compiles the model, as it does by itself in runs of more than 2,000 steps; against the plain loop neither does.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessera.console import JsonOption, emit
from tessera.errors import TesseraError
from tessera.measure.sides import Ratio, median, ratio

if TYPE_CHECKING:
    from rich.table import Table

TARGET = 3.0
"""Times more questions per second that packing several questions about an image should give."""
SHARE = 0.5
"""Share of the machine's matrix-product rate that training should reach."""
TOWER = {
    "model_type": "siglip_vision_model", "hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 6,
    "num_attention_heads": 3, "image_size": 112, "patch_size": 8, "vision_use_head": False,
}  # fmt: skip
"""The nano shape, as a tower that stock LLaVA takes."""


@dataclass(slots=True, kw_only=True)
class TrainSpeed:
    """ours: the composed model under the trainer, all questions about an image in one sequence; plain: LLaVA with the same
    weights' shapes, AdamW, one question per sequence, the same questions per step. Both from batches made before, both with
    the attention and number type given. seconds: medians of a step; loss_difference: of the same weights on the same
    questions, before training;
    reached: whether the median ratio is `TARGET` or more. gflop_per_step: what a step of ours needs; matmul_gflops: what a square
    product of 768 reaches, the median over the rounds; matmul_share: of each round, how much of it a compiled step of ours
    reaches, and share_reached: whether the median is `SHARE` or more; uncompiled_share: as it is of a step that is not compiled.
    """

    questions_per_step: int
    questions_per_image: int
    parameters: int
    tokens_per_image: int
    dtype: str
    attention: str
    threads: int
    steps: int
    rounds: int
    ours_seconds: float
    compiled_seconds: float
    plain_seconds: float
    ours_questions_per_second: float
    plain_questions_per_second: float
    loss_difference: float
    ratio: Ratio
    target: float
    reached: bool
    gflop_per_step: float
    matmul_gflops: float
    matmul_share: Ratio
    uncompiled_share: Ratio
    share_target: float
    share_reached: bool
    versions: dict[str, str]
    machine: str


def measure(questions: int = 64, per_image: int = 8, steps: int = 3, rounds: int = 3, compiled: bool = True) -> TrainSpeed:
    """Runs `steps` optimiser steps of each side in turns, `rounds` times; the share without `compiled` is that of a plain step.

    Raises `TesseraError` if the two losses differ."""
    import torch

    from tessera.evaluation import provenance
    from tessera.training.speed import bf16_pays, matmul_speed

    precision = "bf16" if bf16_pays(torch.device("cpu"))[0] else "fp32"
    attention = "eager"  # the faster of transformers' two on a CPU, for both sides
    model, stock, processor = models(attention)
    packed, single = batches(processor, model, questions, per_image)
    difference = _difference(model, stock, packed, single)
    if difference > 1e-4:
        raise TesseraError(
            f"the two sides disagree on the loss of the same questions by {difference:.2g}; they do not do the same work."
        )
    work = _gflop(model, packed, precision)
    device, dtype = torch.device("cpu"), torch.bfloat16 if precision == "bf16" else torch.float32
    taken: dict[str, list[float]] = {"ours": [], "compiled": [], "plain": []}
    rates: list[float] = []
    for number in range(rounds + 1):
        sides = [
            ("ours", lambda: _ours(model, packed, precision, steps, "off")),
            ("compiled", lambda: _ours(model, packed, precision, steps, "on" if compiled else "off")),
            ("plain", lambda: _plain(stock, single, precision, steps)),
        ]
        if number:
            rates.append(matmul_speed(device, dtype))
        for name, side in sides if number % 2 == 0 else sides[::-1]:
            seconds = side()
            if number:  # the first round warms up
                taken[name].append(seconds)
    found = ratio(taken["plain"], taken["ours"])
    ours, plain = median(taken["ours"]), median(taken["plain"])
    ideal = [work / rate for rate in rates]
    share, uncompiled = ratio(ideal, taken["compiled"]), ratio(ideal, taken["ours"])
    return TrainSpeed(
        questions_per_step=questions,
        questions_per_image=per_image,
        parameters=provenance.parameter_count(model),
        tokens_per_image=model.tokens_per_image,
        dtype="bfloat16 autocast" if precision == "bf16" else "float32",
        attention=attention,
        threads=torch.get_num_threads(),
        steps=steps,
        rounds=rounds,
        ours_seconds=ours,
        compiled_seconds=median(taken["compiled"]),
        plain_seconds=plain,
        ours_questions_per_second=round(questions / ours, 1),
        plain_questions_per_second=round(questions / plain, 1),
        loss_difference=difference,
        ratio=found,
        target=TARGET,
        reached=found.median >= TARGET,
        gflop_per_step=round(work, 1),
        matmul_gflops=round(median(rates), 1),
        matmul_share=share,
        uncompiled_share=uncompiled,
        share_target=SHARE,
        share_reached=share.median >= SHARE,
        versions=provenance.versions(),
        machine=provenance.machine(),
    )


def models(attention: str) -> tuple[Any, Any, Any]:
    """(our composed model, stock LLaVA with the same weights, our processor), of the nano shape, random weights."""
    import torch
    from transformers import LlavaForConditionalGeneration

    from tessera.models.export import to_llava
    from tessera.models.reference import without_bars
    from tessera.recipes.recipe import recipe
    from tessera.training.run import build

    nano = recipe("nano")
    nano.start = {}
    nano.model["parts"] = {
        "encoders": [{"kind": "transformers_vision", "tower": dict(TOWER)}],
        "connector": {"kind": "mlp"},
    }
    torch.manual_seed(0)
    model, processor = build(nano)
    with tempfile.TemporaryDirectory() as folder, without_bars():
        to_llava(model, processor, folder + "/llava")
        stock = LlavaForConditionalGeneration.from_pretrained(folder + "/llava", attn_implementation=attention)
    model.set_attn_implementation(attention)
    return model.train(), stock.train(), processor


def batches(processor: Any, model: Any, questions: int, per_image: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same questions packed (one sequence per image), and one sequence and one image each."""
    import numpy as np

    from tessera.data.dense import to_pixels
    from tessera.data.packing import collate, pack, unpack
    from tessera.world import World

    world = World(width=model.image_size, height=model.image_size, kinds={"scene": 1.0})
    prefix = processor.prefix_ids(1)
    rows: list[Any] = []
    pixels: list[Any] = []
    index = 0
    while len(rows) < questions // per_image:
        sample = world[index]
        index += 1
        asked = sample.questions()[:per_image]
        if len(asked) == per_image:
            items = [(processor.question_ids(q.text), processor.answer_ids(q.answer), 1.0) for q in asked]
            rows.append(pack(prefix, items, len(prefix) + 100 * per_image))
            pixels.append(np.asarray(sample.images()[0]))
    packed = collate(rows, to_pixels(pixels))
    alone = [one for row in rows for one in unpack(row)]
    single = collate(alone, to_pixels([p for p in pixels for _ in range(per_image)]))
    # What a plain loop has: ids, labels, a padding mask.
    single = {
        "input_ids": single["input_ids"],
        "pixel_values": single["pixel_values"],
        "labels": single["labels"],
        "attention_mask": (single["segment_ids"] >= 0).long(),
    }
    return packed, single


def _difference(model: Any, stock: Any, packed: dict[str, Any], single: dict[str, Any]) -> float:
    import torch

    with torch.no_grad():
        ours = model(**{k: v for k, v in packed.items() if isinstance(v, torch.Tensor)}).loss
        return float((ours - stock(**single).loss).abs())


class _Same:
    """Training data that is one batch, over and over."""

    finite = False

    def __init__(self, batch: dict[str, Any]) -> None:
        self._batch = batch

    def batch(self, step: int, rank: int, world_size: int, micro: int) -> dict[str, Any]:
        return self._batch


def _ours(model: Any, batch: dict[str, Any], precision: str, steps: int, compiled: str) -> float:
    """Seconds per step of the trainer, whose first two steps, in which optimiser and kernels are made, are not counted.

    Raises `KeyboardInterrupt` if it is stopped."""
    from tessera.config import build
    from tessera.training.plan import TrainConfig
    from tessera.training.trainer import Trainer

    settings = {
        "stages": [{"name": "bench", "steps": steps + 2}], "precision": precision, "compile": compiled, "progress": False,
        "save_every": 0, "batch_size": len(batch["input_ids"]), "device": "cpu", "optim": {"kind": "adamw"},
    }  # fmt: skip
    moments: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            _Same(batch),
            build(TrainConfig, settings),
            folder,
            on_event=lambda event: moments.append(time.perf_counter()) if event.kind == "step" else None,
        )
        if trainer.run(resume=False).interrupted:
            raise KeyboardInterrupt
    return (moments[-1] - moments[1]) / steps


def _gflop(model: Any, batch: dict[str, Any], precision: str) -> float:
    """10^9 floating-point operations of matrix products in one step of the trainer, and leaves no gradient."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from tessera.training.optim import build_optimizer
    from tessera.training.plan import OptimConfig

    trained = {id(p): 1.0 for p in model.parameters() if p.requires_grad}
    optimizer = build_optimizer(model, trained, OptimConfig(kind="adamw", lr=0.0, weight_decay=0.0))
    inputs = {k: v for k, v in batch.items() if isinstance(v, torch.Tensor)}
    with FlopCounterMode(display=False) as counter:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
    model.zero_grad(set_to_none=True)
    return float(counter.get_total_flops()) / 1e9


def _plain(model: Any, batch: dict[str, Any], precision: str, steps: int) -> float:
    """Seconds per step of the loop that everybody writes; its first step is not counted either."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=True)
    begin = 0.0
    for step in range(steps + 1):
        if step == 1:
            begin = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return (time.perf_counter() - begin) / steps


def train(
    questions: Annotated[int, typer.Option(help="Questions per optimiser step, on both sides.", min=1)] = 64,
    per_image: Annotated[int, typer.Option(help="Questions about one image.", min=1, max=12)] = 8,
    steps: Annotated[int, typer.Option(help="Steps of each side in a round.", min=1)] = 3,
    rounds: Annotated[int, typer.Option(help="Rounds.", min=1)] = 3,
    as_json: JsonOption = False,
) -> None:
    """Questions per second of our trainer against a plain loop over transformers' LLaVA, in turns."""
    emit(measure(questions, per_image, steps, rounds), as_json, _table)


def _table(found: TrainSpeed) -> Table:
    from rich.table import Table

    table = Table(
        title=f"{found.parameters / 1e6:.1f} M parameters, {found.dtype}, {found.threads} thread(s), {found.rounds} rounds",
        caption=f"{found.ratio.median:.2f} x ({found.ratio.low:.2f} to {found.ratio.high:.2f}); {found.target:g} x wanted. "
        f"Training reaches {found.matmul_share.median:.0%} of the {found.matmul_gflops:,.0f} GFLOPS of a matrix product "
        f"({found.matmul_share.low:.0%} to {found.matmul_share.high:.0%}; {found.share_target:.0%} wanted), compiled; "
        f"{found.uncompiled_share.median:.0%} if it is not.",
        title_justify="left",
        caption_justify="left",
        box=None,
    )
    for name in ("", "seconds per step", "questions per second"):
        table.add_column(name, justify="right" if name else "left")
    table.add_row("Tessera's trainer", f"{found.ours_seconds:.3f}", f"{found.ours_questions_per_second:.1f}")
    table.add_row(
        "the same, compiled", f"{found.compiled_seconds:.3f}", f"{found.questions_per_step / found.compiled_seconds:.1f}"
    )
    table.add_row("plain loop over LLaVA", f"{found.plain_seconds:.3f}", f"{found.plain_questions_per_second:.1f}")
    return table
