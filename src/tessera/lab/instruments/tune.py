"""A reference model learns on for some steps, with parts plugged in: for parts that a model has to be trained with.

    scales = tuned(lab, [{"m3": {"factor": 1}}, {"m3": {"factor": 2}}], seed=0)

One question a row, so that what a part decides by the question is decided for it alone. The encoders stay as they are. Products
are in bfloat16 where that is faster, as the trainer's are.
"""

from __future__ import annotations

import inspect
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from tessera.io import write_json
from tessera.lab import evidence
from tessera.lab.instruments.trials import SEEING
from tessera.lab.lab import Lab, Plugs

if TYPE_CHECKING:
    from PIL import Image

Row: TypeAlias = "tuple[Sequence[Image.Image], str, str]"
"""Images, question, answer."""
Rows: TypeAlias = Callable[[int, int, int], Sequence[Row]]
"""(seed, step, rows wanted) -> rows of one batch, all with as many images."""


def world_rows(seed: int, step: int, count: int) -> list[Row]:
    """One question about each of `count` training scenes."""
    from tessera.world import World

    world = World(split="train", kinds={"scene": 1.0})
    found: list[Row] = []
    index = 10_000_000 * (seed + 1) + step * 4 * count
    while len(found) < count:
        sample = world[index]
        index += 1
        questions = sample.questions(SEEING)
        if questions:
            asked = sample.rng("tuning").choice(questions)
            found.append((sample.images(), asked.text, asked.answer))
    return found


def tuned(
    lab: Lab,
    plugs: Sequence[Plugs],
    *,
    rows: Rows = world_rows,
    seed: int = 0,
    steps: int = 100,
    batch: int = 16,
    rate: float = 5e-4,
    start: str = "nano",
) -> Any:
    """The reference model `start` after `steps` more steps of AdamW on `rows`, with the parts of `plugs` in it, one entry a
    step in turn ({}: none). Kept on disk, so trained once."""
    from tessera.models import reference

    lab.used.add(start)
    settings = [seed, steps, batch, rate, start, [lab.plugged(plug) for plug in plugs]]
    taught = [getattr(rows, "__qualname__", ""), evidence.source_hash(Path(inspect.getfile(rows)))]
    source = evidence.source_hash(reference.reference_folder(start))
    folder = lab.folder("tuned", settings, taught, source, evidence.source_hash(Path(__file__)))
    cost = folder / "seconds.json"
    if cost.is_file():
        lab.saved += float(json.loads(cost.read_text(encoding="utf-8")))
    else:
        begin = time.perf_counter()
        model, processor = lab.reference(start, copy=True)
        _learn(model, processor, plugs, rows, seed, steps, batch, rate)
        reference.save(model, processor, folder / "model", dtype=model.dtype)
        write_json(cost, round(time.perf_counter() - begin, 2))
    return reference.load(folder / "model")[0]


def _learn(
    model: Any, processor: Any, plugs: Sequence[Plugs], rows: Rows, seed: int, steps: int, batch: int, rate: float
) -> None:
    import torch

    from tessera.hosts.plug import attach, part_named
    from tessera.training.engine import autocast
    from tessera.training.speed import bf16_pays

    device = next(model.parameters()).device
    precision = "bf16" if bf16_pays(device)[0] else "fp32"
    torch.manual_seed(seed)
    frozen = {id(p) for name, socket in model.sockets().items() if name.startswith("encoders") for p in socket.parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) not in frozen)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    model.train()
    for step in range(steps):
        plug: Mapping[str, Mapping[str, Any]] = plugs[step % len(plugs)]
        inputs = batch_of(processor, rows(seed, step, batch))
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 10) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        with ExitStack() as stack:
            if plug:
                stack.enter_context(attach(model).plug(*(part_named(name, options) for name, options in plug.items())))
            with autocast(device, precision):
                loss = model(**inputs).loss
            loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    model.eval()


def batch_of(processor: Any, rows: Sequence[Row]) -> dict[str, Any]:
    """Rows as the model's inputs, padded at the right; only answers bear labels."""
    import torch

    made = []
    for images, question, answer in rows:
        asked = [*processor.prefix_ids(len(images)), *processor.question_ids(question)]
        said = processor.answer_ids(answer)
        made.append((asked + said, [-100] * len(asked) + said))
    longest = max(len(ids) for ids, _ in made)
    pictures = [image for images, _, _ in rows for image in images]
    return {
        "input_ids": torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in made]),
        "labels": torch.tensor([labels + [-100] * (longest - len(ids)) for ids, labels in made]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in made]),
        "pixel_values": processor.image_processor(pictures, return_tensors="pt")["pixel_values"],
    }
