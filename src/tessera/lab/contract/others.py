"""Parts that work on finished things: pictures, weights, a frozen dual encoder."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tessera.lab.contract.fixture import TOLERANCE, Fixture, demand, difference, stir
from tessera.models.compression import Compressor


class PixelsFixture(Fixture):
    """A part that cuts a picture into views (`tessera.hosts.pixels.Pixels`)."""

    own: ClassVar[tuple[str, ...]] = ("batch",)

    def made(self) -> Any:
        """The part with its example options."""
        self.options = {**self.target.example(112), **self.options}
        return super().made()

    def views(self, size: tuple[int, int]) -> list[Any]:
        """Views of a picture of noise."""
        from PIL import Image

        noise = torch.randint(0, 256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
        return list(self.made().views(Image.fromarray(noise.numpy())))

    def check_builds(self) -> None:
        """Wide, tall and tiny pictures: at least one view, all boxes inside of the picture."""
        for size in ((97, 61), (40, 200), (1, 1)):
            found = self.views(size)
            demand(bool(found), f"{self.part.name}: a picture of {size} has no view.")
            for view in found:
                x0, y0, x1, y1 = view.box
                inside = 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1
                demand(inside, f"{self.part.name}: the box {view.box} leaves the unit square, or is empty.")
                demand(min(view.image.size) > 0, f"{self.part.name}: a view of {size} has no pixels.")

    def check_batch(self) -> None:
        """The same picture again has the same views."""
        first, again = self.views((97, 61)), self.views((97, 61))
        same = [(a.box, a.layer, a.image.tobytes()) for a in first] == [(b.box, b.layer, b.image.tobytes()) for b in again]
        demand(same, f"{self.part.name}: the views of one picture differ from call to call.")


class CompressionFixture(Fixture):
    """A `Compressor` or a `Merger`, on a tiny vision model with a head."""

    own: ClassVar[tuple[str, ...]] = ("batch", "saving", "undone", "bf16")

    def checks(self) -> tuple[str, ...]:
        """With "identity" where the part says what does nothing."""
        found = super().checks()
        return found if self.part.identity() is None else (*found, "identity")

    @cached_property
    def models(self) -> list[Any]:
        """Three models of one architecture."""
        from tessera.lab.contract.models import ENCODER
        from tessera.models.configuration import TesseraVisionConfig
        from tessera.models.vision import TesseraVisionModel

        found = [TesseraVisionModel(TesseraVisionConfig(encoder=dict(ENCODER), num_labels=5)) for _ in range(3)]
        for seed, model in enumerate(found):
            stir(model, seed)
        return [model.eval() for model in found]

    def pixels(self, rows: list[int]) -> dict[str, Tensor]:
        """A batch whose rows depend on their numbers alone."""
        noise = [torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(row)) for row in rows]
        return {"pixel_values": torch.stack(noise)}

    def compressed(self, seed: int = 0, **changes: Any) -> nn.Module:
        """A model that the part made."""
        part = self.target(self.config(**changes))
        models = self.models[seed:] + self.models[:seed]
        if isinstance(part, Compressor):
            return part.compress(models[0], self.pixels(list(range(8))))
        return part.merge(models, lambda model: model(**self.pixels([0, 1])).logits.square().mean())

    def seen(self, model: Any, rows: list[int]) -> Tensor:
        """Logits."""
        with torch.no_grad():
            found: Tensor = model(**self.pixels(rows)).logits
        return found

    def check_builds(self) -> None:
        """A model of the same class with logits of the same shape."""
        made, model = self.compressed(), self.models[0]
        demand(type(made) is type(model), f"{self.part.name} gives a {type(made).__name__}, not a {type(model).__name__}.")
        found, wanted = self.seen(made, [0, 1]), self.seen(model, [0, 1])
        demand(found.shape == wanted.shape and bool(found.isfinite().all()), f"{self.part.name}: logits have another shape.")

    def check_undone(self) -> None:
        """The models that it was given stay as they are."""
        before = [copy.deepcopy(model.state_dict()) for model in self.models]
        self.compressed()
        for model, state in zip(self.models, before, strict=True):
            same = all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
            demand(same and model.state_dict().keys() == state.keys(), f"{self.part.name} changed a model that it was given.")

    def check_batch(self) -> None:
        """Two images together and by themselves, through what the part made."""
        made = self.compressed()
        together = self.seen(made, [0, 1])
        for row in (0, 1):
            gap = difference(together[row], self.seen(made, [row])[0])
            demand(gap <= TOLERANCE, f"{self.part.name}: row {row} of a batch of two differs by {gap:.2g} from the row alone.")

    def check_saving(self) -> None:
        """Its weights, loaded into what the part makes of another model, give the same bits."""
        made, other = self.compressed(), self.compressed(seed=1)
        other.load_state_dict(made.state_dict())
        same = torch.equal(self.seen(made, [0, 1]), self.seen(other, [0, 1]))
        demand(same, f"{self.part.name}: a loaded model gives other logits.")

    def check_identity(self) -> None:
        """With the options for doing nothing the logits are the model's."""
        made = self.compressed(**(self.part.identity() or {}))
        same = torch.equal(self.seen(made, [0, 1]), self.seen(self.models[0], [0, 1]))
        demand(same, f"{self.part.name}: set to do nothing, it changes logits.")

    def check_bf16(self) -> None:
        """A forward under autocast."""
        made = self.compressed()
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.seen(made, [0, 1])
        demand(bool(logits.isfinite().all()), f"{self.part.name}: logits under bfloat16 autocast are not finite.")


class FewShotFixture(Fixture):
    """A part of socket `few_shot`, on a tiny dual encoder of the world."""

    own: ClassVar[tuple[str, ...]] = ("batch", "undone")

    @cached_property
    def dual(self) -> Any:
        """The dual encoder."""
        from tessera.lab.contract.training import subject
        from tessera.models.few_shot import FrozenDual

        model, processor = subject("nano_clip")
        return FrozenDual(copy.deepcopy(model), processor)

    def images(self, rows: list[int]) -> Tensor:
        """Images whose pixels depend on their numbers alone."""
        from tessera.lab.contract.training import SIDE

        return torch.stack([torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(row)) for row in rows])

    def fitted(self) -> Any:
        """A classifier of two classes from four images."""
        from tessera.models.few_shot import Shots

        labels = torch.tensor([0, 1, 0, 1])
        shots, more = Shots(self.images([0, 1, 2, 3]), labels), Shots(self.images([4, 5, 6, 7]), labels)
        return self.made().fit(self.dual, ["dog", "fire engine"], shots, more, seed=0)

    def check_builds(self) -> None:
        """Logits of every class."""
        logits = self.fitted().logits(self.images([0, 1, 2]))
        demand(logits.shape == (3, 2) and bool(logits.isfinite().all()), f"{self.part.name}: logits are {list(logits.shape)}.")

    def check_batch(self) -> None:
        """Two images together and by themselves; and the same seed gives the same classifier."""
        classifier = self.fitted()
        together = classifier.logits(self.images([8, 9]))
        for row in (0, 1):
            gap = difference(together[row], classifier.logits(self.images([8 + row]))[0])
            demand(gap <= TOLERANCE, f"{self.part.name}: image {row} of a batch of two differs by {gap:.2g} from it alone.")
        again = self.fitted().logits(self.images([8, 9]))
        demand(torch.equal(together, again), f"{self.part.name}: the same seed gives another classifier.")

    def check_undone(self) -> None:
        """The dual encoder stays as it is, and its parameters ask for gradients as before."""
        model = self.dual.model
        before, asks = copy.deepcopy(model.state_dict()), [p.requires_grad for p in model.parameters()]
        self.fitted()
        same = all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        demand(same, f"{self.part.name} changed the dual encoder.")
        demand(asks == [p.requires_grad for p in model.parameters()], f"{self.part.name} changed what of it may be trained.")
