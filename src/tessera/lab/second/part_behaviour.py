"""Fingerprints of parts: what they give on their contract benches, tiny models with fixed random weights."""

from __future__ import annotations

from typing import Any

from tessera import registry
from tessera.errors import TesseraError
from tessera.lab.contract.bench import Bench
from tessera.lab.contract.hosted import HostBench
from tessera.lab.contract.models import ModelBench
from tessera.lab.contract.table import benches
from tessera.lab.second.behaviour import Numbers, summary


def of_part(part: registry.Part) -> Numbers:
    """What the part does on every bench that it has. Raises `TesseraError` for a kind of bench without a fingerprint."""
    found: dict[str, list[float] | str] = {}
    for kind in benches(part):
        bench = kind(part)
        for name, value in _of_bench(bench).items():
            found[f"{kind.__name__}: {name}"] = value
    return found


def _of_bench(bench: Bench) -> dict[str, Any]:
    from tessera.lab.contract.bench import quiet, seeded

    with quiet(), seeded():
        if isinstance(bench, HostBench):
            return _hosted(bench)
        if isinstance(bench, ModelBench):
            return _composed(bench)
    raise TesseraError(f"{bench.part.socket}/{bench.part.name}: {type(bench).__name__} has no fingerprint yet.")


def _hosted(bench: HostBench) -> dict[str, Any]:
    """Logits of a forward with the part plugged in, and which tokens enter every layer."""
    import torch

    with torch.no_grad(), bench.plugged() as (model, host):
        logits = model(**bench.home.inputs).logits
        stages = [] if host.sequence is None else host.sequence.stages
        places = [float(x) for stage in stages for row in stage.index for x in (len(row), int(row.sum()))]
    return {"logits": summary(logits), "places": places}


def _composed(bench: ModelBench) -> dict[str, Any]:
    """What a model around the part gives for two rows, its loss, and the gradients of the part's parameters."""
    found: dict[str, Any] = {f"row {n}": summary(out) for n, out in enumerate(bench.seen(bench.model, [0, 1]))}
    loss = bench.loss(bench.model, bench.inputs(bench.model, [0, 1]))
    found["loss"] = [float(loss.detach())]
    if loss.requires_grad:
        loss.backward()
        for number, module in enumerate(bench.modules(bench.model)):
            norms = [float(p.grad.double().norm()) for p in module.parameters() if p.grad is not None]
            if norms:
                found[f"gradients {number}"] = norms
        bench.model.zero_grad(set_to_none=True)
    return found
