"""What FoPru, M3, GlobalCom2 and EViT do to tokens, against loops over tokens."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tessera.errors import UserError
from tessera.hosts.taps import probabilities
from tessera.nn.layout import Block, Layout
from tessera.nn.raster import raster
from tessera.parts.tokens.evit import maps_each_token, put_back, reorganised
from tessera.parts.tokens.fopru import significant_rows
from tessera.parts.tokens.globalcom2 import compressed, guided, lattice, tile_shares, tile_sums
from tessera.parts.tokens.m3 import pooled, squares
from tessera.parts.tokens.pyramiddrop import evenly
from tessera.parts.tokens.uniform import order


def tiled(rows: int, columns: int, height: int, width: int) -> Layout:
    """A thumbnail and a canvas with newlines."""
    start = rows * columns
    return Layout(start + height * (width + 1), (Block(0, rows, columns), Block(start, height, width, True, whole=False)))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# FoPru


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.sampled_from([0.0, 0.25, 0.5, 0.8]), st.integers(0, 99), st.booleans())
def test_rows_stay_by_their_mean(rows: int, columns: int, keep: float, seed: int, ties: bool) -> None:
    layout = tiled(rows, columns, columns, rows)
    score = noise(layout.tokens, seed=seed)
    score = score.sign() if ties else score
    places = raster([[layout]])
    score[places.newline] = torch.inf
    found = significant_rows(score, places, keep)
    expected = places.newline.clone()
    for block in layout.blocks:
        width = block.columns + block.newline
        lines = [range(block.start + r * width, block.start + r * width + block.columns) for r in range(block.rows)]
        means = [sum(float(score[t]) for t in line) / block.columns for line in lines]
        best = sorted(range(block.rows), key=lambda r: (-means[r], r))[: max(1, int(block.rows * keep))]
        for r in best:
            expected[list(lines[r])] = True
    assert torch.equal(found, expected)


# M3


def test_pooling_is_average_pooling_and_nests() -> None:
    tokens = noise(64 * 2, 5)
    layouts = [[Layout(64, (Block(0, 8, 8),))] * 2]
    image = tokens.view(2, 8, 8, 5).permute(0, 3, 1, 2)
    for factor in (1, 2, 4, 8):
        members, slot, keep = squares(raster(layouts), factor)
        found = pooled(tokens, members)
        expected = F.avg_pool2d(image, factor).permute(0, 2, 3, 1).reshape(-1, 5)
        torch.testing.assert_close(found, expected)
        assert keep.nonzero().flatten().tolist() == slot.tolist() == sorted(slot.tolist())
    small, _, _ = squares(raster([[Layout(16, (Block(0, 4, 4),))] * 2]), 2)
    once, _, _ = squares(raster(layouts), 2)
    twice, _, _ = squares(raster(layouts), 4)
    torch.testing.assert_close(pooled(pooled(tokens, once), small), pooled(tokens, twice))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 8), st.booleans())
def test_squares_at_the_edge_are_smaller(rows: int, columns: int, factor: int, newline: bool) -> None:
    block = Block(1, rows, columns, newline)
    layout = Layout(1 + rows * (columns + newline), (block,))
    members, slot, keep = squares(raster([[layout]]), factor)
    place = {(r, c): 1 + r * (columns + newline) + c for r in range(rows) for c in range(columns)}
    number, stays = 0, {0}
    for top in range(0, rows, factor):
        inside_rows = range(top, min(top + factor, rows))
        middle = inside_rows[(len(inside_rows) - 1) // 2]
        for left in range(0, columns, factor):
            inside = range(left, min(left + factor, columns))
            assert [m for m in members[number].tolist() if m >= 0] == [place[r, c] for r in inside_rows for c in inside]
            assert int(slot[number]) == place[middle, inside[(len(inside) - 1) // 2]]
            stays.add(int(slot[number]))
            number += 1
        if newline:
            stays.add(place[middle, columns - 1] + 1)
    assert number == len(members)
    assert keep.nonzero().flatten().tolist() == sorted(stays)


# GlobalCom2


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_tile_sums_add_up_each_cell(side: int, rows: int, columns: int, seed: int) -> None:
    thumbnail = noise(side, side, seed=seed)
    expected = [0.0] * (rows * columns)
    for r in range(side):
        for c in range(side):
            row = min(r // max(side // rows, 1), rows - 1)
            column = min(c // max(side // columns, 1), columns - 1)
            expected[row * columns + column] += float(thumbnail[r, c])
    found = tile_sums(thumbnail, (rows, columns))
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    shares = tile_shares(found, 0.25, 10.0)
    weights = [math.exp((s - max(expected)) / 10) for s in expected]
    sigma = [w / sum(weights) for w in weights]
    assert shares.tolist() == pytest.approx([0.25 * (1 + s - sum(sigma) / len(sigma)) for s in sigma])
    assert float(shares.mean()) == pytest.approx(0.25)
    assert float(tile_shares(found * 1000, 0.9, 1.0).max()) <= 1


def test_a_canvas_without_padding_knows_its_tiles() -> None:
    tiles, tile = lattice(Block(0, 5, 8, True, whole=False), (4, 4))  # 8 x 8 places less 3 rows of padding: 1 above, 2 below
    assert tiles == (2, 2)
    assert tile.tolist() == [[0] * 4 + [1] * 4] * 3 + [[2] * 4 + [3] * 4] * 2
    assert lattice(Block(0, 4, 8), (4, 4))[0] == (1, 2)


def test_guidance_is_own_plus_thumbnail_each_of_norm_one_in_a_tile() -> None:
    own, thumbnail = noise(4, 8), noise(4, 4, seed=1)
    _, tile = lattice(Block(0, 4, 8), (4, 4))
    found = guided(own, thumbnail, tile, 2)
    seen = F.interpolate(thumbnail[None, None], size=(4, 8), mode="bilinear", align_corners=False)[0, 0]
    for number, columns in enumerate((slice(0, 4), slice(4, 8))):
        expected = own[:, columns] / own[:, columns].norm() + seen[:, columns] / seen[:, columns].norm()
        torch.testing.assert_close(found[:, columns], expected)
        assert bool((tile[:, columns] == number).all())


def test_kept_tokens_are_counted_per_tile_and_newlines_stay() -> None:
    layout = tiled(4, 4, 6, 8)
    score = noise(layout.tokens) * 3
    places = raster([[layout], [layout]])
    both = torch.cat([score, score.flip(0)])
    both[places.newline] = torch.inf
    keep = compressed(both, places, 0.5, 10.0)
    assert bool(keep[places.newline].all())
    for image in range(2):
        own = both[image * layout.tokens : (image + 1) * layout.tokens]
        kept = keep[image * layout.tokens : (image + 1) * layout.tokens]
        thumbnail = own[:16].view(4, 4)
        assert kept[:16].nonzero().flatten().tolist() == sorted(own[:16].argsort(descending=True)[:8].tolist())
        canvas = own[16:].view(6, 9)[:, :8]
        tiles, tile = lattice(layout.blocks[1], (4, 4))
        ranked = guided(canvas, thumbnail, tile, 4)
        shares = tile_shares(tile_sums(thumbnail, tiles), 0.5, 10.0)
        stays = kept[16:].view(6, 9)[:, :8]
        for number in range(4):
            inside = tile == number
            count = int(int(inside.sum()) * float(shares[number]))
            assert int(stays[inside].sum()) == count
            assert set(ranked[inside & stays].tolist()) == set(ranked[inside].sort(descending=True).values[:count].tolist())


def test_images_without_a_thumbnail_are_refused() -> None:
    for layouts in ([[Layout(4, (Block(0, 2, 2),))]], [[Layout(8, (Block(0, 2, 2), Block(4, 2, 2)))]], [[Layout(4)]]):
        places = raster(layouts)
        with pytest.raises(UserError, match="lets a thumbnail guide the tiles"):
            compressed(torch.zeros(len(places.row)), places, 0.5, 10.0)


def test_class_logits_are_the_first_query_in_front_of_the_softmax() -> None:
    query, key = noise(2, 3, 5, 4), noise(2, 3, 5, 4, seed=1)
    expected = torch.einsum("bhd,bhkd->bk", query[:, :, 0], key) / 3 * 0.5
    for scaling, times in ((None, 1), (1.0, 2)):
        torch.testing.assert_close(probabilities(nn.Identity(), query, key, None, scaling, "class logits"), expected * times)


# EViT


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.sampled_from([0.01, 0.3, 0.5, 0.7, 1.0]), st.booleans(), st.integers(0, 99), st.booleans())
def test_reorganised_tokens_equal_the_loop(patches: int, keep: float, fuse: bool, seed: int, ties: bool) -> None:
    tokens, score = noise(2, 1 + patches, 3, seed=seed), noise(2, patches, seed=seed + 1).softmax(1)
    score = (score > 0.2).float() / 2 if ties else score
    found, origin = reorganised(tokens, score, keep, fuse)
    count = math.ceil(keep * patches)
    for image in range(2):
        ranked = sorted(range(patches), key=lambda p: (-float(score[image, p]), p))
        kept, rest = sorted(ranked[:count]), ranked[count:]
        expected = [tokens[image, 0], *(tokens[image, 1 + p] for p in kept)]
        places = list(kept)
        if rest and fuse:
            expected.append(torch.stack([tokens[image, 1 + p] * score[image, p] for p in rest]).sum(0))
            places.append(rest[0])
        torch.testing.assert_close(found[image], torch.stack(expected))
        assert origin[image].tolist() == places
    full = put_back(found[:, 1:], origin, patches)
    assert full.shape == (2, patches, 3)
    torch.testing.assert_close(full.gather(1, origin[..., None].expand_as(found[:, 1:])), found[:, 1:])
    assert int((full != 0).any(-1).sum()) <= origin.numel()
    with_class = put_back(found, origin, patches)
    torch.testing.assert_close(with_class[:, 0], tokens[:, 0])
    torch.testing.assert_close(with_class[:, 1:], full)


def test_projectors_that_mix_tokens_are_told_from_those_that_map_each() -> None:
    class Mixing(torch.nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            return tokens.cumsum(1)

    class Folding(torch.nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            return tokens.view(tokens.shape[0], tokens.shape[1] // 2, -1)

    block = torch.nn.Sequential(torch.nn.LayerNorm(8), torch.nn.Linear(8, 8))
    assert maps_each_token(torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.GELU()), block)
    assert not maps_each_token(torch.nn.Linear(32, 6), block)
    assert not maps_each_token(Mixing(), block)
    assert not maps_each_token(Folding(), block)
    assert not maps_each_token(torch.nn.Linear(8, 6), torch.nn.Linear(8, 8))


# PyramidDrop and the controls


def test_stages_are_evenly_spaced() -> None:
    assert evenly(32, 3) == (8, 16, 24)
    assert evenly(12, 3) == (3, 6, 9)
    assert evenly(28, 1) == (14,)


def test_uniform_order_puts_the_lattice_first() -> None:
    place = torch.arange(36)
    score = order(place // 6, place % 6)
    best = score.argsort(descending=True)[:9].tolist()
    assert sorted(best) == [r * 6 + c for r in (0, 2, 4) for c in (0, 2, 4)]
    assert order(torch.tensor([-1]), torch.tensor([-1])) == order(torch.tensor([0]), torch.tensor([0]))
