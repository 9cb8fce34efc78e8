from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tessera.claims.connectors.tokenpacker import naive
from tessera.config import build
from tessera.errors import UserError
from tessera.models.configuration import TesseraConfig
from tessera.models.modeling import TesseraForConditionalGeneration
from tessera.nn.point_region import attend_regions, regions, shrink
from tessera.nn.tokens import VisualTokens, from_grid
from tessera.parts.connectors.tokenpacker import TokenPacker


def made(width: int = 24, **options: Any) -> TokenPacker:
    part = TokenPacker(build(TokenPacker.Config, options), width, 10).eval()
    for parameter in part.parameters():
        nn.init.normal_(parameter, std=0.3)
    return part


@pytest.mark.parametrize(("factor", "grid"), [(1, (2, 3)), (2, (2, 6)), (3, (6, 3)), (4, (4, 8))])
@pytest.mark.parametrize("levels", [1, 3])
def test_it_equals_a_loop_over_regions(factor: int, grid: tuple[int, int], levels: int) -> None:
    torch.manual_seed(1)
    part = made(factor=factor, heads=2, levels=levels)
    features = torch.randn(2, grid[0] * grid[1], 24)
    with torch.no_grad():
        found = part(from_grid(features, grid))
        torch.testing.assert_close(found.features, naive(part, features, grid), atol=1e-5, rtol=1e-4)
    assert found.grid == (grid[0] // factor, grid[1] // factor)
    assert found.count == TokenPacker.token_count(TokenPacker.Config(factor=factor), features.shape[1])


def test_regions_are_squares_in_reading_order() -> None:
    numbers = torch.arange(24.0).reshape(1, 24, 1)
    found = regions(numbers, (4, 6), 2)[0, ..., 0].long().tolist()
    assert found == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11], [12, 13, 18, 19], [14, 15, 20, 21], [16, 17, 22, 23]]


def test_points_of_squares_of_two_are_means_and_of_three_are_middles() -> None:
    features = torch.randn(1, 36, 5)
    torch.testing.assert_close(shrink(features, (6, 6), 2), regions(features, (6, 6), 2).mean(2))
    torch.testing.assert_close(shrink(features, (6, 6), 3), regions(features, (6, 6), 3)[:, :, 4])


def test_attention_equals_torchs_module() -> None:
    torch.manual_seed(2)
    module = nn.MultiheadAttention(12, 3, batch_first=True)
    query, memory = torch.randn(1, 4, 12), torch.randn(1, 4, 9, 12)
    weights, biases = module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3)

    def projected(x: Tensor, i: int) -> Tensor:
        return F.linear(x, weights[i], biases[i])

    with torch.no_grad():
        ours = module.out_proj(attend_regions(projected(query, 0), projected(memory, 1), projected(memory, 2), 3))
        theirs = module(query.transpose(0, 1), memory[0], memory[0])[0]
    torch.testing.assert_close(ours[0], theirs[:, 0])


def test_queries_are_made_of_the_last_level_and_the_ablation_has_no_regions() -> None:
    part = made(factor=2, levels=3, inject=False)
    features = torch.randn(1, 16, 24)
    other = torch.cat([torch.randn(1, 16, 16), features[..., 16:]], dim=-1)
    with torch.no_grad():
        assert torch.equal(part(from_grid(features, (4, 4))).features, part(from_grid(other, (4, 4))).features)
    assert not any(name.startswith(("key", "value", "query_in", "mixed")) for name, _ in part.named_parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"factor": 0}, "at least 1"), ({"levels": 5}, "24 channels are not 5 levels"), ({"heads": 7}, "among 7 heads")],
)
def test_sizes_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(**options)


def test_tokens_that_are_no_raster_are_refused() -> None:
    part = made(factor=2)
    tokens = from_grid(torch.randn(1, 12, 24), (4, 3))
    with pytest.raises(UserError, match="raster of 4 x 3 cannot be cut into squares of 2"):
        part(tokens)
    loose = VisualTokens(features=tokens.features, positions=tokens.positions, mask=tokens.mask)
    with pytest.raises(UserError, match="needs a full raster"):
        part(loose)


def composed(**options: Any) -> Any:
    encoder = {"kind": "conv_vit", "image_size": 32, "patch_size": 8, "width": 24, "depth": 1, "heads": 2}
    text = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 32}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    parts = {"encoders": [encoder], "connector": {"kind": "tokenpacker", **options}}
    return TesseraForConditionalGeneration(TesseraConfig(parts=parts, text_config=text))


def test_a_composed_model_counts_with_its_rule_and_finds_the_error_when_it_is_built() -> None:
    model = composed(factor=2)
    assert model.tokens_per_image == 4
    assert model.get_image_features(torch.randn(2, 3, 32, 32)).shape == (2, 4, 16)
    with pytest.raises(UserError, match="16 tokens cannot be cut into squares of 3"):
        composed(factor=3)
