"""Parts that a model is trained with, on a tiny model of the world: objectives (of distillation and preference too), tunings."""

from __future__ import annotations

import copy
import tempfile
from functools import cache, cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tessera.errors import UserError
from tessera.lab.contract.fixture import TOLERANCE, Broken, Fixture, demand, demand_gradients, difference, stir
from tessera.world import World

SIDE = 64
ENCODER = {"kind": "conv_vit", "image_size": SIDE, "patch_size": 8, "width": 16, "depth": 2, "heads": 2}
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8}
RECIPES = ("nano", "object_expert", "nano_clip")
"""What kinds of models objectives are tried on, in this order: the first that one can train."""


@cache
def subject(name: str) -> tuple[Any, Any]:
    """A recipe's model in miniature and its processor."""
    from tessera.recipes.recipe import recipe
    from tessera.training.run import build

    found = recipe(name)
    found.start, found.lessons = {}, {}
    if found.task == "questions":
        found.model["parts"] |= {"encoders": [dict(ENCODER)], "experts": {"kind": "single"}}
        found.model["text_config"] |= {**SMALL, "num_key_value_heads": 2}
    else:
        found.model["encoder"] = dict(ENCODER)
    return build(found)


class ObjectiveFixture(Fixture):
    """An `Objective`."""

    own: ClassVar[tuple[str, ...]] = ("gradients", "batch")

    @cached_property
    def ready(self) -> tuple[Any, Any, Any, Any]:
        """Objective, model, collate, and the reference or None."""
        reasons = []
        for name in RECIPES:
            model, processor = subject(name)
            model = copy.deepcopy(model)
            objective = self.target(self.config())
            try:
                objective.prepare(model, processor)
                worlds = [World(width=SIDE, height=SIDE)]
                collate = objective.collate(worlds, processor, 2) or task_batches(name, model, processor, worlds)
                reference = copy.deepcopy(model).eval().requires_grad_(False) if self.target.wants_reference else None
                objective.loss(model.eval(), collate([0, 1]), reference)
            except UserError as error:
                reasons.append(f"{name}: {error}")
                continue
            return objective, model, collate, reference
        raise Broken(f"{self.part.name} trains none of the models that are tried. {' '.join(reasons)}")

    def loss(self, numbers: list[int], train: bool = False) -> Any:
        """The `Loss` of samples."""
        objective, model, collate, reference = self.ready
        objective.train(train)
        model.train(train)
        return objective.loss(model, collate(numbers), reference)

    def check_builds(self) -> None:
        """A finite loss with a weight."""
        found = self.loss([0, 1])
        demand(bool(found.loss_sum.detach().isfinite()), f"{self.part.name}: the loss is {float(found.loss_sum.detach())}.")
        demand(float(found.loss_weight) >= 0, f"{self.part.name}: the weight of the loss is negative.")

    def check_batch(self) -> None:
        """The sums over two samples are those over each of them, so that micro-batches add up."""
        with torch.no_grad():
            whole, parts = self.loss([0, 1]), [self.loss([0]), self.loss([1])]
        for name in ("loss_sum", "loss_weight"):
            wanted = torch.stack([torch.as_tensor(getattr(p, name)).float() for p in parts]).sum()
            gap = difference(torch.as_tensor(getattr(whole, name)).float(), wanted)
            demand(gap <= TOLERANCE, f"{self.part.name}: {name} of two samples differs by {gap:.2g} from the sum over both.")

    def check_gradients(self) -> None:
        """Of its own parameters and of some of the model's; the reference gets none."""
        objective, model, _, reference = self.ready
        model.requires_grad_(True)
        stir(objective)  # heads that start at zero pass nothing on yet
        found = self.loss([0, 1], train=True)
        demand_gradients([objective], found.loss_sum, self.part.name)
        demand(any(p.grad is not None and bool(p.grad.any()) for p in model.parameters()), f"{self.part.name} moves nothing.")
        if reference is not None:
            demand(all(p.grad is None for p in reference.parameters()), f"{self.part.name}: the reference got a gradient.")
        model.zero_grad(set_to_none=True)


class TuningFixture(Fixture):
    """A `Tuning`."""

    own: ClassVar[tuple[str, ...]] = ("gradients", "batch", "saving", "identity", "undone")

    def seen(self, model: nn.Module, rows: list[int]) -> list[Tensor]:
        """Logits of each row's tokens, without gradients."""
        batch = task_batches("nano", model, subject("nano")[1], [World(width=SIDE, height=SIDE)])(rows)
        batch = {key: value for key, value in batch.items() if key not in ("labels", "loss_weights")}
        with torch.no_grad():
            logits = model(**batch).logits
        return [row[there >= 0] for row, there in zip(logits, batch["segment_ids"], strict=True)]

    @cached_property
    def untuned(self) -> Any:
        """The model without the tuning."""
        model = copy.deepcopy(subject("nano")[0])
        stir(model)
        return model.eval()

    def put(self) -> tuple[Any, Any, nn.Module]:
        """Tuning, model with the tuning in it, and the tuning's parameters."""
        model, tuning = copy.deepcopy(self.untuned), self.target(self.config())
        return tuning, model, tuning.put_in(model)

    def check_builds(self) -> None:
        """It has something to train."""
        _, _, module = self.put()
        demand(any(p.requires_grad for p in module.parameters()), f"{self.part.name} trains nothing.")

    def check_identity(self) -> None:
        """Just put in, it changes no bit."""
        _, model, _ = self.put()
        self._same(model, "just put in")

    def check_undone(self) -> None:
        """With other parameters, switched off and taken out."""
        tuning, model, module = self.put()
        stir(module)
        with tuning.off():
            self._same(model, "switched off")
        tuning.take_out()
        self._same(model, "taken out")
        demand(
            model.state_dict().keys() == self.untuned.state_dict().keys(), f"{self.part.name}, taken out, left weights behind."
        )

    def check_gradients(self) -> None:
        """The model frozen, the tuning's own parameters random."""
        _, model, module = self.put()
        stir(module)
        own = {id(p) for p in module.parameters()}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in own)
        batch = task_batches("nano", model, subject("nano")[1], [World(width=SIDE, height=SIDE)])([0, 1])
        demand_gradients([module], model(**batch).loss, self.part.name)
        others = [name for name, p in model.named_parameters() if id(p) not in own and p.grad is not None]
        demand(not others, f"{self.part.name}: a gradient reached {', '.join(others[:3])}, which was frozen.")

    def check_batch(self) -> None:
        """Two samples together and by themselves."""
        _, model, module = self.put()
        stir(module)
        for row, out in enumerate(self.seen(model, [0, 1])):
            gap = difference(out, self.seen(model, [row])[0])
            demand(gap <= TOLERANCE, f"{self.part.name}: row {row} of a batch of two differs by {gap:.2g} from the row alone.")

    def check_saving(self) -> None:
        """It writes something that is not empty."""
        tuning, _, _ = self.put()
        with tempfile.TemporaryDirectory() as folder:
            path = tuning.save(folder)
            demand(path.exists() and any(path.rglob("*.safetensors")), f"{self.part.name} saved no safetensors in {path.name}.")

    def _same(self, model: nn.Module, when: str) -> None:
        for row, (a, b) in enumerate(zip(self.seen(model, [0, 1]), self.seen(self.untuned, [0, 1]), strict=True)):
            demand(torch.equal(a, b), f"{self.part.name}, {when}: row {row} differs by {difference(a, b):.2g} from the model.")


def task_batches(name: str, model: Any, processor: Any, worlds: list[World]) -> Any:
    """What makes batches of the task that a recipe has: sample numbers -> inputs."""
    from tessera.data.dense import DenseData
    from tessera.recipes.recipe import recipe
    from tessera.training.captions import CaptionData
    from tessera.training.world_questions import WorldQuestions

    task = recipe(name).task
    if task == "captions":
        return CaptionData(worlds, processor).collate
    if task != "questions":
        return DenseData([World(width=SIDE, height=SIDE, kinds={"scene": 1.0})], task, SIDE // model.grid[0]).collate
    return WorldQuestions(worlds, processor, recipe(name).questions, 2).collate
