"""Golden runs of the trainer: losses, rates and weights of a few steps with both optimisers; schedules, plans, labels."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from tessera.lab.behaviour import Numbers, summary


def trainer() -> Numbers:
    """A tiny composed model trained on world questions with Muon and with AdamW, in two stages: losses, rates, gradient norms,
    and how far the weights of each socket went (frozen ones not at all)."""
    found: dict[str, list[float] | str] = {}
    for kind in ("muon", "adamw"):
        for name, value in _trained(kind).items():
            found[f"{kind}: {name}"] = value
    return found


def _trained(kind: str) -> dict[str, Any]:
    import copy
    import random

    import numpy as np
    import torch

    from tessera.config import build
    from tessera.hosts.zoo import fill
    from tessera.lab.contract.fixture import quiet, seeded
    from tessera.lab.contract.training import SIDE, subject
    from tessera.recipes.recipe import recipe
    from tessera.training.data import Batches
    from tessera.training.plan import TrainConfig
    from tessera.training.trainer import Trainer
    from tessera.training.world_questions import WorldQuestions
    from tessera.world import World

    held = random.getstate(), np.random.get_state()
    with quiet(), seeded(), tempfile.TemporaryDirectory() as folder:
        model, processor = copy.deepcopy(subject("nano"))
        fill(model, 0)
        plan = {
            "stages": [
                {"name": "align", "steps": 2, "train": {"connector": 1.0}},
                {"name": "all", "steps": 4, "train": {"*": 1.0, "encoders.*": 0.3}},
            ],
            "optim": {"kind": kind, "lr": 3e-3, "muon_lr": 0.02, "weight_decay": 0.5, "muon_weight_decay": 0.5},
            "schedule": {"kind": "cosine", "warmup": 2},
            "batch_size": 12,
            "accumulation": 2,
            "precision": "fp32",
            "compile": "off",
            "device": "cpu",
            "progress": False,
            "cache_gb": 0.0,
        }
        config = build(TrainConfig, plan)
        questions = WorldQuestions([World(width=SIDE, height=SIDE)], processor, recipe("nano").questions, 12)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        middle: dict[int, dict[str, Any]] = {}
        made = Trainer(model, Batches(questions.collate, config), config, folder, on_event=lambda event: None)
        made.every(2, lambda m: middle.setdefault(made.step, {n: p.detach().clone() for n, p in m.named_parameters()}) and None)
        modes: dict[str, None] = {}

        def note(m: Any, _: Any) -> None:
            if m.training:
                modes[str(sorted(name for name, part in m.sockets().items() if part.training))] = None

        hook = model.register_forward_pre_hook(note)
        made.run()
        hook.remove()
        lines = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    random.setstate(held[0])
    np.random.set_state(held[1])
    records = [line for line in lines if "loss" in line]
    found: dict[str, Any] = {key: [float(r[key]) for r in records] for key in ("loss", "lr", "grad_norm", "tokens", "questions")}
    found["in training mode"] = str(list(modes))
    after = dict(model.named_parameters())
    for stage, old, new in (("align", before, middle[2]), ("all", middle[2], after)):
        for socket in sorted({".".join(n.split(".")[:3]) for n in before}):
            moved = [(new[n] - old[n]).detach().flatten() for n in before if ".".join(n.split(".")[:3]) == socket]
            found[f"{stage} moved {socket}"] = summary(torch.cat(moved), 2)
    return found


def plans() -> Numbers:
    """Schedules of every kind, multipliers of a plan, stages of steps, samples of steps."""
    from typing import get_args

    from tessera.config import field_types
    from tessera.training.data import place_of, sample_numbers
    from tessera.training.plan import Schedule, Stage, TrainConfig, multipliers, stage_of

    found: dict[str, list[float] | str] = {}
    for kind in get_args(field_types(Schedule)["kind"]):
        schedule = Schedule(kind=kind, warmup=3)
        found[f"schedule {kind}"] = [schedule.factor(step, 40) for step in range(40)]
    sockets = ("encoders.0", "encoders.1", "connector", "language_model")
    for train in ({"*": 1.0, "encoders.*": 0.3, "encoders.1": 0.0}, {"connector": 2.0}):
        found[f"multipliers {train}"] = list(multipliers(Stage(train=train), sockets).values())
    config = TrainConfig(stages=[Stage(name="a", steps=2), Stage(name="b", steps=3)], batch_size=12, accumulation=2)
    found["stages"] = str([stage_of(config, step) for step in range(6)])
    found["samples"] = str([list(sample_numbers(s, r, 2, m, config)) for s in (0, 3) for r in (0, 1) for m in (0, 1)])
    found["places"] = str([place_of(n, 5, 3) for n in range(11)])
    return found


def labels() -> Numbers:
    """Batches of every task of the trainer, and the loss of fixed hidden states."""
    import copy

    import torch

    from tessera.data.packing import collate
    from tessera.hosts.zoo import fill
    from tessera.lab.contract.fixture import quiet, seeded
    from tessera.lab.contract.training import SIDE, subject, task_batches
    from tessera.nn.loss import next_token_loss
    from tessera.training.preference import dpo, pack_answers, score
    from tessera.world import World

    found: dict[str, list[float] | str] = {}
    for name in ("nano", "object_expert", "nano_clip"):
        with quiet(), seeded():
            model, processor = subject(name)
        batch = task_batches(name, model, processor, [World(width=SIDE, height=SIDE)])([0, 1, 2, 3])
        for key, value in sorted(batch.items()):
            found[f"{name}: {key}"] = summary(value, 3) if isinstance(value, torch.Tensor) else str(value)[:200]
        if name == "nano":
            filled = copy.deepcopy(model).eval()
            fill(filled, 0)
            asked = [("Is there a dog?", ("yes", "no")), ("What colour is it?", ("red", "light blue"))]
            answers = collate([pack_answers(processor, 1, asked)]) | {"pixel_values": batch["pixel_values"][:1]}
            with torch.no_grad():
                out, scored = filled(**batch), score(filled, answers)
            found["nano: sums"] = [float(out.loss_sum), float(out.loss_weight)]
            found["answers"] = [float(x) for x in (*scored.sums().flatten(), *scored.lengths().flatten())]
    generator = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(2, 7, 8, generator=generator), torch.randn(8, 11, generator=generator)
    wanted = torch.randint(0, 11, (2, 7), generator=generator)
    wanted[:, :3] = -100
    weights = torch.rand(2, 7, generator=generator)
    segments = torch.tensor([[0, 0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 1, 1, -1]])
    for label, more in (("plain", {}), ("weights", {"loss_weights": weights}), ("segments", {"segment_ids": segments})):
        sums = next_token_loss(hidden, wanted, lambda x: x @ head, **more)
        found[f"loss, {label}"] = [float(sums.total), float(sums.weight), float(sums.mean())]
    found["dpo"] = [float(x) for x in dpo(torch.tensor([-1.0, 0.0, 2.0]), 0.3).flatten()]
    return found
