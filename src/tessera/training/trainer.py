"""The one trainer: staged freeze plans, exact resume, one process or many.

Names: a step is one optimiser update; it has `accumulation` micro-batches on each of the processes.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tessera.config import to_dict
from tessera.errors import TesseraError, UserError
from tessera.training import checkpoint
from tessera.training.data import COUNTED, Batch, Prefetch, TrainingData, count
from tessera.training.engine import autocast, is_sharded, loss_of, make_accelerator, seed_step, update, wrap
from tessera.training.features import EncodesImages, FeatureStore, cacheable, fingerprint
from tessera.training.interrupt import Interrupt
from tessera.training.log import Event, Outputs
from tessera.training.memory import RETURN_EVERY, return_memory
from tessera.training.objective import Subject, numbers_of, unwrapped
from tessera.training.optim import MuonAdamW, build_optimizer
from tessera.training.plan import HARMLESS, TrainConfig, differences, multipliers, stage_of
from tessera.training.speed import bf16_pays, compile_pays
from tessera.training.stages import cast, factors, freeze, sockets_of

Evaluation = Callable[[nn.Module], "dict[str, Any] | None"]
SKIPS = 3
"""Steps in a row without a finite loss after which a run stops."""


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """How a run ended."""

    step: int
    """Steps finished, those of earlier sittings included."""
    steps: int
    stopped: bool
    """Whether a signal ended it before the last step."""
    skipped: int
    seconds: float
    """Training time of all sittings, without evaluations."""
    text: str
    """A sentence for people."""
    interrupted: bool
    """Whether a signal came: in the last step it stops nothing, but whoever goes on after training should not."""


class Trainer:
    """Trains `model` on `data` by `config`; writes log.jsonl and checkpoint/ into folder `out`.

    `model(**batch)` returns an object with scalars `loss_sum` and `loss_weight` (the loss of a step is the
    quotient of their sums over all micro-batches and processes) or with `loss` alone (its mean is taken).
    Its `numbers`, if it has any, are sums of the same kind and go to the log. A model with an objective or a
    tuning is a `Subject`. `model.sockets()` gives the parts that a stage names; a module without it is one
    socket called "model".
    `on_event` receives every `Event` of the main process.

    Raises `UserError` for a plan that does not fit the model.
    """

    def __init__(
        self,
        model: nn.Module,
        data: TrainingData,
        config: TrainConfig,
        out: str | Path,
        *,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        config.check()
        self.model, self.data, self.config, self.out = model, data, config, Path(out)
        self._finite = bool(data.finite)
        self.sockets = sockets_of(model)
        self._plans = [multipliers(stage, self.sockets) for stage in config.stages]
        self._trainable = {id(p) for p in model.parameters() if p.requires_grad}
        self._factors = [factors(self.sockets, plan, self._trainable) for plan in self._plans]
        for stage, found in zip(config.stages, self._factors, strict=True):
            if not found:
                names = ", ".join(stage.train)
                raise UserError(f"stage {stage.name!r} trains only sockets without parameters: {names}.")
        self.accelerator = make_accelerator(config)
        self.main: bool = self.accelerator.is_main_process
        self.step, self.state = 0, _fresh_state()
        self._outputs = Outputs(self.main, on_event)
        self._evaluations: list[tuple[int, Evaluation]] = []
        self._optimizer: MuonAdamW
        self._prepared: nn.Module
        self._forward: Callable[..., Any]
        self._optimizer_state: dict[str, Tensor] = {}
        self._features: FeatureStore | None = None
        self._numbers: list[str] = []

    def every(self, steps: int, evaluate: Evaluation) -> None:
        """Calls `evaluate(model)` every `steps` steps and after the last, in eval mode, without gradients.

        On the main process only (on all of them when the model is sharded). The numbers it returns go to the
        log.
        """
        self._evaluations.append((steps, evaluate))

    def run(self, resume: bool = True) -> TrainingResult:
        """Trains from the checkpoint in `out`, if there is one and `resume`, to the last step or to a signal.

        Without `resume` a checkpoint and a log that are there are dropped.

        Raises `UserError` when the checkpoint belongs to other settings, `TesseraError` when the loss is not
        finite for three steps in a row or the disk is full. The last checkpoint stays whole in every case.
        """
        if self.main:
            self.out.mkdir(parents=True, exist_ok=True)
            checkpoint.recover(self.out)
            if not resume:
                shutil.rmtree(self.out / checkpoint.NAME, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        settings = {k: v for k, v in to_dict(self.config).items() if k not in HARMLESS}
        if isinstance(self.model, Subject):
            settings |= self.model.settings()
        loaded = checkpoint.load(self.out) if resume else None
        why = self._decide() if loaded is None else self._restore(*loaded, settings)
        del loaded  # its files would keep their space on the disk until the run ends
        self.state["settings"] = settings
        self.model.to(self.accelerator.device)
        self._outputs.open(self.out, self.step, self.config)
        try:
            self._outputs.say("notice", self.step, why, {"precision": self.state["precision"]})
            with Interrupt() as interrupt:
                return self._train(interrupt)
        finally:
            self._outputs.close()
            for parameter in self.model.parameters():
                parameter.requires_grad_(id(parameter) in self._trainable)

    def _restore(
        self,
        state: dict[str, Any],
        model: dict[str, Tensor],
        optimizer: dict[str, Tensor],
        settings: dict[str, Any],
    ) -> str:
        """Continues from a checkpoint. Returns a sentence."""
        changed = differences(state["settings"], settings)
        if changed:
            raise UserError(
                f"{self.out / checkpoint.NAME} was written with other settings: {'; '.join(changed[:5])}. "
                "Give the old ones, start in another folder, or start again without resuming."
            )
        self._optimizer_state = optimizer
        self.state = {key: state.get(key, value) for key, value in _fresh_state().items()}
        if self.config.compile != "auto":
            self.state["compiled"] = self.config.compile == "on"
        self.step = state["step"]
        self._cast()  # before the weights come: a model built in bfloat16 would round them
        checkpoint.load_model(self.model, model)
        return f"resuming from step {self.step} in {self.state['precision']}"

    def _decide(self) -> str:
        """Fixes what must not change between sittings, alike on all processes. Returns a sentence."""
        self.step, self.state = 0, _fresh_state()
        device = self.accelerator.device
        half, why = self.config.precision == "bf16", "as set"
        if self.config.precision == "auto":
            half, why = bf16_pays(device)
        compiled = {"on": True, "off": False}.get(self.config.compile, compile_pays(self.config.steps))
        choice = torch.tensor([half, compiled], dtype=torch.int64, device=device)
        if self.accelerator.num_processes > 1:
            torch.distributed.broadcast(choice, 0)
        half, compiled = (bool(x) for x in choice.tolist())
        self.state.update(precision="bf16" if half else "fp32", compiled=compiled)
        self._cast()
        words = [f"precision {self.state['precision']} ({why})", "compiled" if compiled else "not compiled"]
        if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" and not is_sharded(self.accelerator):
            words.append("accelerate shards on accelerators only: each process holds the full model")
        return "; ".join(words)

    def _cast(self) -> None:
        trained = {key for found in self._factors for key in found}
        cast(self.model, trained, everything=self.state["precision"] == "fp32")

    def _train(self, interrupt: Interrupt) -> TrainingResult:
        config, accelerator = self.config, self.accelerator
        rank, processes = accelerator.process_index, accelerator.num_processes
        steps, pin = range(self.step, config.steps), accelerator.device.type == "cuda"
        if self.step:
            self._evaluate()  # what a kill right after the checkpoint prevented
        batches = Prefetch(self.data, steps, rank, processes, config, pin)
        stopping, current = False, -1
        try:
            while self.step < config.steps and not stopping:
                index, within = stage_of(config, self.step)
                if index != current:
                    self._begin(index, resumed=within > 0)
                    current = index
                begin = time.perf_counter()
                micros = [batches.next() for _ in range(config.accumulation)]
                stopping = self._step(index, within, micros, interrupt, begin)
                last = self.step == config.steps
                if last or stopping or (config.save_every and self.step % config.save_every == 0):
                    self._save()
                if last or not stopping:
                    self._evaluate()
        finally:
            batches.close()
        stopped = self.step < config.steps
        text = f"trained {config.steps} steps in {self.state['seconds']:.0f} s"
        if stopped:
            text = f"stopped after step {self.step} of {config.steps}; run it again and it goes on from there"
        self._outputs.say("stopped" if stopped else "done", self.step, text)
        skipped, seconds = self.state["skipped"], self.state["seconds"]
        return TrainingResult(self.step, config.steps, stopped, skipped, seconds, text, stopped or interrupt.wanted)

    def _begin(self, index: int, resumed: bool) -> None:
        """Freezes what stage `index` does not train, builds the optimiser, wraps for several processes."""
        stage, plan, trained = self.config.stages[index], self._plans[index], self._factors[index]
        if is_sharded(self.accelerator) and hasattr(self, "_prepared"):
            raise UserError(
                "FSDP fixes what trains when it shards the model: give each stage a run of its own (one in "
                "training.stages), starting from the model of the one before."
            )
        # The wrapper of the last stage has hooks on the parameters; it goes before a new one comes.
        self._forward = self._prepared = self.model
        freeze(self.model, self.sockets, plan, trained)
        size = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        self._features = self._feature_store(set(trained))
        dtype = torch.bfloat16 if self.state["precision"] == "bf16" else torch.float32
        self._optimizer = build_optimizer(self.model, trained, stage.optim or self.config.optim, dtype)
        self._prepared = wrap(self.accelerator, self.model, self._optimizer)
        if resumed:
            checkpoint.load_optimizer(self._optimizer, self._optimizer_state)
        self._optimizer_state = {}
        self._forward = torch.compile(self._prepared) if self.state["compiled"] else self._prepared
        names = ", ".join(f"{name} x{rate:g}" for name, rate in plan.items() if rate)
        text = f"stage {stage.name}: {stage.steps} steps, {size / 1e6:.2f} M parameters train ({names})"
        self._outputs.say("stage", self.step, text)

    def _feature_store(self, trained: set[int]) -> FeatureStore | None:
        front = cacheable(self.model, self.sockets, trained)
        if not front or not self._finite or not self.config.cache_gb or is_sharded(self.accelerator):
            return None
        name = fingerprint([self.sockets[socket] for socket in front], self.state["precision"])
        folder = self.out / "cache" / name / str(self.accelerator.process_index)
        return FeatureStore(folder, int(self.config.cache_gb * 1e9 / self.accelerator.num_processes))

    def _step(self, index: int, within: int, micros: list[Batch], interrupt: Interrupt, begin: float) -> bool:
        """One update; its data was waited for since `begin`. Returns whether any process wants to stop."""
        waited = time.perf_counter() - begin
        stage = self.config.stages[index]
        optim = stage.optim or self.config.optim
        factor = (stage.schedule or self.config.schedule).factor(within, stage.steps)
        self._optimizer.set_factor(factor)
        counts = sum((count(batch) for batch in micros), Counter[str]())
        sums = self._gradients(micros)
        mine = torch.tensor([interrupt.wanted, *(counts[key] for key in COUNTED)], dtype=torch.float64)
        totals = torch.cat([sums, mine.to(sums)])
        if self.accelerator.num_processes > 1:
            totals = self.accelerator.reduce(totals, "sum")
        loss_sum, weight, *rest = totals.tolist()
        numbers, (stop, *counted) = rest[: len(self._numbers)], rest[len(self._numbers) :]
        loss, norm = loss_sum / weight if weight else math.nan, math.nan
        if math.isfinite(loss):
            # DDP and FSDP average over the processes; the sum is wanted.
            norm = update(self._optimizer, self.accelerator.num_processes / weight, optim.clip)
        self._optimizer.zero_grad()
        self.step += 1
        if self.step % RETURN_EVERY == 0:
            return_memory()
        seconds = time.perf_counter() - begin
        self.state["seconds"] += seconds
        record: dict[str, Any] = dict(step=self.step, stage=stage.name, loss=loss, lr=optim.lr * factor, grad_norm=norm)
        record |= {name: value / weight for name, value in zip(self._numbers, numbers, strict=True) if weight}
        for key, value in zip(COUNTED, counted, strict=True):
            self.state[key] += int(value)
            record[key] = self.state[key]
        record |= dict(seconds=round(self.state["seconds"], 3), waited=round(waited, 4))
        record |= {f"{key}_per_second": round(value / seconds, 1) for key, value in zip(COUNTED, counted, strict=True)}
        failure = self._skip(record, weight)
        self._outputs.step(record, seconds)
        if failure and self.state["in_a_row"] >= SKIPS:
            raise TesseraError(
                f"{failure}, as in the {SKIPS - 1} steps before it. Try a lower learning rate (optim.lr, "
                f"optim.muon_lr), a longer warm-up or precision fp32. The last checkpoint in {self.out} is "
                "untouched."
            )
        return stop > 0

    def _skip(self, record: dict[str, Any], weight: float) -> str:
        """Counts and reports a step without a finite loss or gradient; returns what was wrong, or nothing."""
        bad = [key for key in ("loss", "grad_norm") if not math.isfinite(record[key])]
        self.state["in_a_row"] = self.state["in_a_row"] + 1 if bad else 0
        if not bad:
            return ""
        self.state["skipped"] += 1
        record |= dict.fromkeys(bad) | dict(skipped=True)
        what = "loss" if "loss" in bad else "gradient"
        why = f"the {what} of step {self.step} is not finite"
        if not weight:
            why = f"step {self.step} has nothing to learn (no labels, or all weights 0)"
        text = f"{why}: the batch is skipped ({self.state['skipped']} so far)"
        self._outputs.say("skipped", self.step, text)
        return why

    def _gradients(self, micros: list[Batch]) -> Tensor:
        """`_accumulate`, once more without compilation if that is what failed."""
        try:
            return self._accumulate(micros)
        except Exception as error:
            if not self.state["compiled"] or isinstance(error, TesseraError):
                raise
            reason = next(iter(str(error).strip().splitlines()), "")[:200]
            text = f"torch.compile failed, going on without it ({type(error).__name__}: {reason})"
            self._outputs.say("notice", self.step, text)
        self.state["compiled"], self._forward = False, self._prepared
        self._optimizer.zero_grad()
        return self._accumulate(micros)

    def _accumulate(self, micros: list[Batch]) -> Tensor:
        """Leaves the gradients of this process's summed loss; returns [loss sum, weight, named sums]."""
        device, several = self.accelerator.device, self.accelerator.num_processes > 1
        kind, sums = torch.float32 if device.type == "mps" else torch.float64, torch.zeros((), device=device)
        seed_step(self.config.seed, self.step, self.accelerator.process_index)
        for i, batch in enumerate(micros):
            inputs = self._inputs(batch)
            unsynced = several and i < len(micros) - 1
            with self.accelerator.no_sync(self._prepared) if unsynced else nullcontext():
                with autocast(device, self.state["precision"]):
                    output = self._forward(**inputs)
                loss_sum, weight = loss_of(output)
                loss_sum.float().backward()
            named = numbers_of(output)
            self._numbers = sorted(named)
            found = (loss_sum, weight, *(named[name] for name in self._numbers))
            sums = sums + torch.stack([value.detach().to(kind) for value in found])
        return sums

    def _inputs(self, batch: Batch) -> dict[str, Tensor]:
        """The tensors of `batch` on the device; pixels give way to the stored features of frozen encoders."""
        device = self.accelerator.device
        if self.state["compiled"] and (check := getattr(self.model, "require_images", None)) is not None and "input_ids" in batch:
            check(batch["input_ids"], len(batch.get("pixel_values", ())))  # on the host: nothing waits for the device
        inputs = {k: v.to(device, non_blocking=True) for k, v in batch.items() if isinstance(v, Tensor)}
        keys, model = batch.get("image_keys"), self.model
        if self._features is not None and keys is not None and isinstance(model, EncodesImages):
            with torch.no_grad(), autocast(device, self.state["precision"]):
                pixels = inputs.pop("pixel_values")
                inputs["visual_features"] = self._features.get(keys, pixels, lambda x: model.encode_images(x).features)
        return inputs

    def _save(self) -> None:
        model, optimizer = checkpoint.model_tensors(self.model), checkpoint.optimizer_tensors(self._optimizer)
        if self.main:
            checkpoint.save(self.out, model, optimizer, {"step": self.step, **self.state})
            self._outputs.say("checkpoint", self.step, f"checkpoint at step {self.step}")
        self.accelerator.wait_for_everyone()

    def _evaluate(self) -> None:
        """Runs the evaluations that are due at this step and are not in the log yet."""
        last = self.step == self.config.steps
        due = [evaluate for steps, evaluate in self._evaluations if last or self.step % steps == 0]
        if due and not self._outputs.evaluated(self.step):
            found: dict[str, Any] = {}
            if self.main or is_sharded(self.accelerator):
                with self._evaluating():
                    for evaluate in due:
                        found |= evaluate(unwrapped(self.model)) or {}
            self._outputs.evaluation(self.step, found)
        self.accelerator.wait_for_everyone()

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            with torch.no_grad(), autocast(self.accelerator.device, self.state["precision"]):
                yield
        finally:
            for module, mode in modes:
                module.training = mode


def _fresh_state() -> dict[str, Any]:
    """What a checkpoint keeps of the trainer besides the step."""
    counters = dict.fromkeys(COUNTED, 0)
    return dict(skipped=0, in_a_row=0, seconds=0.0, precision="fp32", compiled=False, **counters)
