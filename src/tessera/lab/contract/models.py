"""Parts that a model is built from: the model is made around the part at tiny size, with random weights, and tried as a whole.

So the contract holds for what a user gets: the model itself calls the part, as it does for users.

Legend: B rows, T tokens.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tessera.errors import UserError
from tessera.lab.contract.fixture import TOLERANCE, Fixture, demand, demand_gradients, difference, stir
from tessera.models.tokenizer import BOS, EOS, IMAGE, IMG, PAD

WORDS = (10, 60)
ANSWER = 3
"""Words of a row that the model learns to say."""
ENCODER = {"kind": "conv_vit", "image_size": 32, "patch_size": 8, "width": 32, "depth": 2, "heads": 2, "mlp_ratio": 2}
TEXT = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "vocab_size": 64,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "tie_word_embeddings": False,
}


class ModelFixture(Fixture):
    """What a transformers model built around the part is tried on; a subclass says how it is built and fed."""

    own: ClassVar[tuple[str, ...]] = ("gradients", "batch", "padding", "saving", "bf16", "meta")

    def described(self, **changes: Any) -> Any:
        """The model's configuration; `changes` are options of the part."""
        raise NotImplementedError

    def build(self, described: Any) -> Any:
        """A model of a configuration."""
        raise NotImplementedError

    def modules(self, model: Any) -> list[nn.Module]:
        """The part within the model."""
        raise NotImplementedError

    def inputs(self, model: Any, rows: Sequence[int], side: str = "left") -> dict[str, Any]:
        """Row r of the batch depends on its number `rows[r]` alone; rows differ in length and are padded on a side."""
        raise NotImplementedError

    def outputs(self, model: Any, inputs: dict[str, Any]) -> list[Tensor]:
        """What the model gives for each row, without padding."""
        raise NotImplementedError

    def loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """A scalar that depends on everything that the part computes."""
        raise NotImplementedError

    @cached_property
    def model(self) -> Any:
        """The model in evaluation mode with large random weights, so that every input leads elsewhere."""
        model = self.build(self.described())
        stir(model)
        return model.eval()

    @cached_property
    def exact(self) -> Any:
        """The model in double precision: in single precision the rounding of sharp attention alone comes up to the tolerance, so
        that a part which does nothing would pass or fail by its random weights."""
        return copy.deepcopy(self.model).double()

    def seen(self, model: Any, rows: Sequence[int], side: str = "left") -> list[Tensor]:
        """Outputs of rows, without gradients."""
        with torch.no_grad():
            return self.outputs(model, self.inputs(model, rows, side))

    def check_builds(self) -> None:
        """A forward of one row, finite."""
        demand(all(bool(out.isfinite().all()) for out in self.seen(self.model, [0])), "what comes out is not finite.")

    def check_batch(self) -> None:
        """Rows 0 and 1 together and by themselves."""
        together = self.seen(self.exact, [0, 1])
        for row, out in enumerate(together):
            gap = difference(out, self.seen(self.exact, [row])[0])
            demand(gap <= TOLERANCE, f"{self.part.name}: row {row} of a batch of two differs by {gap:.2g} from the row alone.")

    def check_padding(self) -> None:
        """Rows of different length, padded on the left and on the right. What reads the padding itself shows in `check_batch`."""
        left, right = (self.seen(self.exact, [0, 1], side) for side in ("left", "right"))
        for row, (a, b) in enumerate(zip(left, right, strict=True)):
            gap = difference(a, b)
            demand(gap <= TOLERANCE, f"{self.part.name}: row {row} differs by {gap:.2g} with the side of the padding.")

    def check_gradients(self) -> None:
        """In training mode, of the part's own parameters; and none when the part is frozen."""
        model, who = self.build(self.described()), self.part.name
        stir(model)
        model.train()
        modules = self.modules(model)
        demand_gradients(modules, self.loss(model, self.inputs(model, [0, 1])), who)
        model.zero_grad(set_to_none=True)
        own = {id(p) for module in modules for p in module.parameters()}
        for module in modules:
            module.requires_grad_(False)
        loss = self.loss(model, self.inputs(model, [0, 1]))
        if loss.requires_grad:
            loss.backward()
        reached = [name for name, p in model.named_parameters() if id(p) in own and p.grad is not None]
        demand(not reached, f"{who}: a gradient reached {', '.join(reached[:3])}, which was frozen.")

    def check_saving(self) -> None:
        """`save_pretrained` and `from_pretrained`."""
        with tempfile.TemporaryDirectory() as folder:
            self.model.save_pretrained(folder)
            loaded, report = type(self.model).from_pretrained(folder, output_loading_info=True)
        for tensor in (*loaded.parameters(), *loaded.buffers()):
            tensor.data = tensor.data.clone()  # a file's bytes lie as they lie: other places in memory, other roundings
        for what in ("missing_keys", "unexpected_keys"):
            demand(not report[what], f"{self.part.name}: {what.replace('_', ' ')} after loading: {sorted(report[what])[:3]}.")
        for row, (a, b) in enumerate(zip(self.seen(loaded.eval(), [0, 1]), self.seen(self.model, [0, 1]), strict=True)):
            demand(torch.equal(a, b), f"{self.part.name}: row {row} of the loaded model differs by {difference(a, b):.2g}.")

    def check_bf16(self) -> None:
        """A forward and a backward under autocast."""
        model = self.model
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.loss(model, self.inputs(model, [0, 1]))
        demand(
            bool(loss.detach().isfinite().all()), f"{self.part.name}: the loss under bfloat16 autocast is {float(loss.detach())}."
        )
        if loss.requires_grad:
            loss.backward()
        odd = [n for m in self.modules(model) for n, p in m.named_parameters() if p.grad is not None and p.grad.dtype != p.dtype]
        model.zero_grad(set_to_none=True)
        demand(not odd, f"{self.part.name}: gradients of {', '.join(odd[:3])} have another type than the parameters.")

    def check_meta(self) -> None:
        """Built on the meta device, with the same names and shapes."""
        with torch.device("meta"):
            model = self.build(self.described())
        real = {name: tuple(value.shape) for name, value in self.model.state_dict().items()}
        found = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        demand(found == real, f"{self.part.name}: names or shapes of weights differ on the meta device.")
        solid = [name for m in self.modules(model) for name, p in m.named_parameters() if not p.is_meta]
        demand(not solid, f"{self.part.name}: {', '.join(solid[:3])} took memory on the meta device.")


class ComposedFixture(ModelFixture):
    """A part of Tessera's composed vision-language model."""

    own: ClassVar[tuple[str, ...]] = (*ModelFixture.own, "count")
    keys: ClassVar[dict[str, str]] = {"connectors": "connector", "couplings": "coupling"}

    def checks(self) -> tuple[str, ...]:
        """With "identity" where the part says what does nothing."""
        found = super().checks()
        return found if self._identity() is None else (*found, "identity")

    def _identity(self) -> dict[str, Any] | None:
        return self.part.identity() if self.part.socket in ("tokens", "pixels") else None

    @property
    def key(self) -> str:
        """What the part's socket is called in `parts`."""
        return self.keys.get(self.part.socket, self.part.socket)

    def described(self, **changes: Any) -> Any:
        """A composed model of tiny parts; of `experts` with three encoders, or with one if the part takes one only."""
        spec = {"kind": self.part.name, **self.options, **changes}
        return self._with(spec)

    def _with(self, spec: dict[str, Any] | None) -> Any:
        from tessera.models.configuration import TesseraConfig
        from tessera.models.parts import sees

        around: dict[str, Any] = dict(getattr(self.module, "TINY_MODEL", {}))
        text = {**TEXT, **around.pop("text", {})}
        seen = sees(spec, "coupling") if self.key == "coupling" and spec is not None else "tokens"
        plain: dict[str, Any] = {} if seen == "pixels" else {"encoders": self._encoders(spec)}
        parts = {**plain, **around}
        if spec is not None and self.key != "encoders":
            parts[self.key] = spec
        return TesseraConfig(parts=parts, text_config=text, image_token_id=IMAGE)

    def _encoders(self, spec: dict[str, Any] | None) -> list[dict[str, Any]]:
        if self.key == "encoders" and spec is not None:
            return [spec]
        if self.part.socket != "experts" or self._alone:
            return [dict(ENCODER)]
        deep = {**ENCODER, "depth": 5}  # parts choose among layers, and among the experts behind the first
        return [deep, {**deep, "width": 16}, {**deep, "width": 16}]

    @cached_property
    def _alone(self) -> bool:
        """Whether the part of `experts` takes a single encoder only."""
        self.__dict__["_alone"] = False  # what the attempt is made with
        try:
            with torch.device("meta"):
                self.build(self.described())
        except UserError:
            return True
        return False

    def build(self, described: Any) -> Any:
        """See `ModelFixture`."""
        from tessera.models.modeling import TesseraForConditionalGeneration

        return TesseraForConditionalGeneration(described)

    def modules(self, model: Any) -> list[nn.Module]:
        """The sockets that the part fills."""
        found = model.sockets()
        named = {"encoders": "encoders.0", "couplings": "coupling", "connectors": "connector"}.get(
            self.part.socket, self.part.socket
        )
        own = [module for name, module in found.items() if name == named or name.startswith(f"{named}.")]
        if not own and isinstance(part := getattr(model.model, self.key, None), nn.Module):
            own = [part]
        return own

    def inputs(self, model: Any, rows: Sequence[int], side: str = "left") -> dict[str, Any]:
        """One image a row, in front of 5 + 3 r words."""
        texts, pixels = [], []
        for row in rows:
            generator = torch.Generator().manual_seed(row + 11)
            words = torch.randint(*WORDS, (5 + 3 * row,), generator=generator).tolist()
            texts.append([BOS, IMG, *[IMAGE] * model.tokens_per_image, *words])
            pixels.append(torch.randn(3, model.image_size, model.image_size, generator=generator))
        longest = max(map(len, texts))
        ids, mask = torch.full((len(rows), longest), PAD), torch.zeros(len(rows), longest, dtype=torch.int64)
        for row, text in enumerate(texts):
            place = slice(0, len(text)) if side == "right" else slice(longest - len(text), longest)
            ids[row, place] = torch.tensor(text)
            mask[row, place] = 1
        return {"input_ids": ids, "attention_mask": mask, "pixel_values": torch.stack(pixels)}

    def outputs(self, model: Any, inputs: dict[str, Any]) -> list[Tensor]:
        """Logits of the tokens that are there."""
        logits = model(**inputs).logits
        return [row[there.bool()] for row, there in zip(logits, inputs["attention_mask"], strict=True)]

    def loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """The model's, over the last words of each row; what stands before them is the question."""
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        left = mask.flip(1).cumsum(1).flip(1)  # tokens from here to the end of the row
        found: Tensor = model(**inputs, labels=ids.masked_fill((mask == 0) | (left > ANSWER), -100)).loss
        return found

    def check_count(self) -> None:
        """Features per image, and placeholders of the text."""
        inner = self.model.model
        inputs = self.inputs(self.model, [0, 1])
        question = inner._asked(inputs["input_ids"], None, inputs["attention_mask"], None)
        with torch.no_grad():
            tokens = inner.encode_images(inputs["pixel_values"], question)
            given = inner.get_image_features(inputs["pixel_values"], question)
        if self.part.socket == "tokens":
            rows, columns = inner.experts.grid
            rule = int(self.target.token_count(self.config(), rows * columns))
            demand(tokens.count == rule, f"{self.part.name} declares {rule} tokens, {tokens.count} came out.")
        if tokens.grid is not None:
            raster = tokens.grid[0] * tokens.grid[1]
            demand(tokens.count == raster, f"{self.part.name}: a grid of {tokens.grid} has {raster} tokens, not {tokens.count}.")
        place = (len(given), tokens.count)
        demand(tuple(tokens.positions.shape) == (*place, 2), f"{self.part.name}: positions are {list(tokens.positions.shape)}.")
        demand(tuple(tokens.mask.shape) == place, f"{self.part.name}: the mask is {list(tokens.mask.shape)}.")
        inside = bool(((tokens.positions >= 0) & (tokens.positions <= 1)).all())
        demand(inside, f"{self.part.name}: positions leave the unit square.")

    def check_identity(self) -> None:
        """The part set to do nothing against a model without it, with the same weights."""
        idle, without = self.build(self.described(**(self._identity() or {}))), self.build(self._with(None))
        stir(idle)
        without.load_state_dict(idle.state_dict(), strict=False)
        for row, (a, b) in enumerate(zip(self.seen(idle.eval(), [0, 1]), self.seen(without.eval(), [0, 1]), strict=True)):
            demand(torch.equal(a, b), f"{self.part.name}: set to do nothing, row {row} differs by {difference(a, b):.2g}.")
