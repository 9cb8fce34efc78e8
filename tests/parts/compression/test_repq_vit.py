"""RepQ-ViT against naive readings of its equations."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tessera.config import build
from tessera.errors import UserError
from tessera.lab.contract.models import ENCODER, TEXT
from tessera.models.compression import Compressor, stored_bytes, vision_of
from tessera.models.configuration import TesseraConfig, TesseraVisionConfig
from tessera.models.modeling import TesseraForConditionalGeneration
from tessera.models.vision import TesseraVisionModel
from tessera.nn.quantise import PERCENTILES, Quantised, bounds, fitted, quantised
from tessera.nn.readers import norm_readers
from tessera.parts.compression.repq_vit import RepQViT, log_codes, log_values, reparameterise

PIXELS = {"pixel_values": torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))}


def part(**options: Any) -> RepQViT:
    return RepQViT(build(RepQViT.Config, options))


@pytest.fixture(scope="module")
def vision() -> TesseraVisionModel:
    torch.manual_seed(0)
    return TesseraVisionModel(TesseraVisionConfig(encoder=dict(ENCODER), num_labels=5)).eval()


def naive_fit(row: Tensor, bits: int) -> tuple[float, float]:
    """The range of least squared error, one number after the other."""
    best, found = float("inf"), (0.0, 0.0)
    for share in PERCENTILES:
        low, high = float(row.quantile(1 - share)), float(row.quantile(share))
        scale = (high - low) / (2**bits - 1)
        zero = round(-low / scale)
        error = 0.0
        for x in row.tolist():
            code = min(max(round(x / scale) + zero, 0), 2**bits - 1)
            error += ((code - zero) * scale - x) ** 2
        if error < best:
            best, found = error, (scale, float(zero))
    return found


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_ranges_are_those_of_least_error(bits: int) -> None:
    rows = torch.randn(4, 300, dtype=torch.float64, generator=torch.Generator().manual_seed(bits)) ** 3
    scale, zero = fitted(rows, bits)
    wanted = [naive_fit(row, bits) for row in rows]
    torch.testing.assert_close(scale, torch.tensor([s for s, _ in wanted], dtype=torch.float64))
    assert zero.tolist() == [z for _, z in wanted]


@pytest.mark.parametrize("count", [2, 7, 1500])
def test_bounds_are_quantiles(count: int) -> None:
    rows = torch.randn(3, count, generator=torch.Generator().manual_seed(1))
    for share, found in zip((0.5, 0.999, 1.0), bounds(rows, (0.5, 0.999, 1.0)), strict=True):
        torch.testing.assert_close(found, rows.quantile(share, dim=1))


def test_a_constant_channel_is_no_division_by_zero() -> None:
    scale, zero = fitted(torch.zeros(2, 10), 4)
    assert bool(scale.isfinite().all() and zero.isfinite().all())
    assert not bool(quantised(torch.zeros(2, 10), scale[:, None], zero[:, None], 4).any())


@pytest.mark.parametrize("bits", [3, 4, 5, 8])
@pytest.mark.parametrize("layer", [nn.Linear(7, 5), nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)])
def test_stored_codes_are_the_rounded_weights(bits: int, layer: Any) -> None:
    one = (torch.tensor(0.01), torch.tensor(128.0))
    made = Quantised(layer, bits, 8, one, fitted)
    rows = layer.weight.detach().flatten(1)
    scale, zero = fitted(rows, bits)
    wanted = quantised(rows, scale[:, None], zero[:, None], bits).view(layer.weight.shape)
    torch.testing.assert_close(made.weight, wanted, rtol=0, atol=1e-7)
    x = torch.randn(2, 7) if isinstance(layer, nn.Linear) else torch.randn(2, 4, 5, 5)
    plain = copy.deepcopy(layer)
    plain.weight.data = wanted
    torch.testing.assert_close(made(x), plain(quantised(x, *one, 8)))
    assert made.codes.numel() == rows.shape[0] * (-(-rows.shape[1] // 2) if bits <= 4 else rows.shape[1])


def test_powers_of_root_two_are_the_nearest() -> None:
    x = torch.rand(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 6
    scale = torch.tensor(0.9, dtype=torch.float64)
    found = log_values(log_codes(x, scale), scale, 4)
    for value, decoded in zip(x.tolist(), found.tolist(), strict=True):
        code = round(-2 * torch.log2(torch.tensor(value / 0.9, dtype=torch.float64)).item())
        wanted = 0.0 if code >= 16 else 0.9 * 2 ** (-max(code, 0) / 2)
        assert decoded == pytest.approx(wanted, rel=1e-12)
    assert float(log_values(log_codes(torch.zeros(1), scale), scale, 4)) == 0


def test_moving_the_scales_keeps_what_is_computed() -> None:
    torch.manual_seed(0)
    norm, layers = nn.LayerNorm(12).double(), [nn.Linear(12, 6).double(), nn.Linear(12, 3, bias=False).double()]
    norm.weight.data, norm.bias.data = torch.rand(12).double() * 9 + 0.1, torch.randn(12).double()
    x = torch.randn(20, 12).double()
    wanted = [layer(norm(x)) for layer in layers]
    one, middle = reparameterise(norm, layers, *fitted(norm(x).detach().t(), 4))
    assert one.ndim == 0 and float(middle) == round(float(middle))
    for layer, y in zip(layers, wanted, strict=True):
        torch.testing.assert_close(layer(norm(x)), y, rtol=0, atol=1e-12)


class Wiring(nn.Module):
    """Norms whose outputs are read in ways that do and do not allow a scale to be moved."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(4) for _ in range(6))
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(7))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        a, b, c, d, e, f = (norm(x) for norm in self.norms)
        assert a.shape == x.shape and a.dim() == 2  # asking for a shape reads nothing
        out = self.layers[0](a.to(torch.float32)) + self.layers[1](a)  # two readers: allowed
        out = out + self.layers[2](b) + b  # also added: not
        out = out + self.layers[3](c)  # also returned: not
        out = out + self.layers[4](d) + self.layers[4](e)  # one layer reads two norms: neither
        return {"out": out + self.layers[5](f) + self.layers[5](out) + self.layers[6](out), "c": c}


def test_who_reads_a_norm_is_seen() -> None:
    model = Wiring()
    found = norm_readers(model, list(model.norms), set(model.layers), {"x": torch.randn(3, 4)})
    assert {norm: set(layers) for norm, layers in found.items()} == {model.norms[0]: {model.layers[0], model.layers[1]}}


def test_a_reader_outside_of_what_is_quantised_counts() -> None:
    model = Wiring()
    assert norm_readers(model, list(model.norms), {model.layers[0]}, {"x": torch.randn(3, 4)}) == {}


def test_all_norms_of_the_blocks_are_moved_and_the_returned_one_is_not(vision: TesseraVisionModel) -> None:
    norms = [m for m in vision.modules() if isinstance(m, nn.LayerNorm)]
    found = norm_readers(vision, norms, {m for m in vision.modules() if isinstance(m, nn.Linear)}, PIXELS)
    blocks = vision.encoder.blocks
    assert found == {norm: [layer] for b in blocks for norm, layer in ((b.norm1, b.attention.qkv), (b.norm2, b.mlp.up))}


def test_more_bits_come_closer(vision: TesseraVisionModel) -> None:
    with torch.no_grad():
        wanted = vision(**PIXELS).logits
        gaps = [float((part(weight_bits=b, activation_bits=b).compress(vision, PIXELS)(**PIXELS).logits - wanted).norm())
                for b in (2, 4, 8)]  # fmt: skip
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 0.2 * float(wanted.norm())


@pytest.mark.parametrize(
    "options",
    [{"norms": "channel"}, {"norms": "layer", "ranges": "minmax"}, {"softmax": "log2"}, {"softmax": "uniform"}],
)
def test_every_variant_runs(vision: TesseraVisionModel, options: dict[str, str]) -> None:
    made = part(**options).compress(vision, PIXELS)
    with torch.no_grad():
        assert bool(made(**PIXELS).logits.isfinite().all())
    scales = {layer.input_scale.ndim for layer in made.modules() if isinstance(layer, Quantised)}
    assert scales == ({0, 1} if options.get("norms") == "channel" else {0})


def test_towers_of_transformers_work_too() -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    sizes = dict(hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8)
    tower = CLIPVisionModel(CLIPVisionConfig(**sizes)).eval()
    made = part(weight_bits=8, activation_bits=8).compress(tower, PIXELS)
    layers = [m for m in made.modules() if isinstance(m, Quantised)]
    assert len(layers) == 2 * 6 + 1 and all(layer.input_scale.ndim == 0 for layer in layers)
    shared = [m.input_scale for name, m in made.named_modules() if name.endswith(("0.self_attn.q_proj", "0.self_attn.v_proj"))]
    assert torch.equal(*shared)  # three readers of one norm share its scale
    with torch.no_grad():
        found, wanted = made(**PIXELS).last_hidden_state, tower(**PIXELS).last_hidden_state
    assert float((found - wanted).norm() / wanted.norm()) < 0.1


def test_of_a_composed_model_only_the_towers_are_quantised() -> None:
    torch.manual_seed(0)
    config = TesseraConfig(parts={"encoders": [dict(ENCODER)]}, text_config=TEXT, image_token_id=4)
    model = TesseraForConditionalGeneration(config).eval()
    assert vision_of(model) is model.model.encoders
    ids = torch.tensor([[1, *[4] * 16, 20, 21]]).expand(8, -1)
    made = part().compress(model, {"input_ids": ids, **PIXELS})
    assert {name.split(".")[1] for name, m in made.named_modules() if isinstance(m, Quantised)} == {"encoders"}
    assert stored_bytes(made.model.encoders) < 0.3 * stored_bytes(model.model.encoders)
    assert isinstance(part(), Compressor)


@pytest.mark.parametrize("options", [{"weight_bits": 1}, {"activation_bits": 9}, {"weight_bits": None}])
def test_bits_are_2_to_8(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="2 to 8, or both None"):
        part(**options)


def test_what_cannot_be_quantised_is_refused(vision: TesseraVisionModel) -> None:
    with pytest.raises(UserError, match="has no module 'encoder.bloks'"):
        part(within="encoder.bloks").compress(vision, PIXELS)
    with pytest.raises(UserError, match="no linear layer or convolution of LayerNorm took part"):
        part(within="encoder.norm").compress(vision, PIXELS)


def test_the_model_stays_as_it_is_when_a_batch_fails(vision: TesseraVisionModel) -> None:
    before = copy.deepcopy(vision.state_dict())
    with pytest.raises(UserError):
        part().compress(vision, {"pixel_values": torch.randn(1, 3, 8, 8)})
    assert all(torch.equal(value, before[name]) for name, value in vision.state_dict().items())
