"""Families: architecture, maps from patches to visual tokens, rasters. Maps are proved by changing one patch, watching tokens."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tessera.errors import TesseraError, UserError
from tessera.hosts import architecture as architectures
from tessera.hosts import zoo
from tessera.hosts.architecture import Architecture, architecture
from tessera.hosts.tiny_configs import LAYERS, RECIPES

NAMES = list(RECIPES)
MAPPED = [name for name in NAMES if name != "fast_vlm" and not name.startswith("instructblip")]


@functools.cache
def _tiny(name: str) -> zoo.Tiny:
    package = RECIPES[name].package
    if package is not None:
        pytest.importorskip(package)
    return zoo.tiny(name)


def _host(name: str) -> tuple[Any, Architecture]:
    model = _tiny(name).model
    return model, architecture(model)


def _image_inputs(name: str, images: tuple[int, ...]) -> dict[str, Any]:
    """What `get_image_features` takes of the prepared inputs."""
    text = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
    return {key: value for key, value in zoo.inputs(name, images).items() if key not in text}


@torch.no_grad()
def _features(found: Architecture, inputs: dict[str, Any]) -> Tensor:
    """All visual tokens [n, E] in the order of the prompt."""
    out = found.base.get_image_features(**inputs)
    tokens = getattr(out, "pooler_output", out)
    parts = [tokens] if isinstance(tokens, Tensor) else list(tokens)
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])


def _moved(before: Tensor, after: Tensor) -> list[int]:
    change = (after - before).abs().amax(-1)
    return (change > 1e-3 * change.max()).nonzero().flatten().tolist()


def _attentions(found: Architecture, block: int, inputs: dict[str, Any]) -> list[tuple[int, int]]:
    """(views, tokens) of every call of one tower block's attention kernel."""
    from tessera.hosts.taps import listen

    shapes: list[tuple[int, int]] = []
    assert found.tower_blocks is not None
    with ExitStack() as undo:
        module = found.attention(found.tower_blocks[block])
        listen(module, lambda _, query, *rest: shapes.append((query.shape[0], query.shape[2])), undo)
        _features(found, inputs)
    return shapes


@contextmanager
def _changed(block: nn.Module, place: int) -> Iterator[None]:
    """One token of a block's output is changed, before anyone reads it."""

    def change(module: nn.Module, args: Any, output: Any) -> Any:
        hidden = (output[0] if isinstance(output, tuple) else output).clone(memory_format=torch.contiguous_format)
        flat = hidden.view(-1, hidden.shape[-1])
        flat[place] += 3 * torch.randn(flat.shape[1], generator=torch.Generator().manual_seed(place))
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = block.register_forward_hook(change, prepend=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _blind(found: Architecture) -> Iterator[None]:
    """The tower's patches see each other no more: its attention (and what else mixes neighbours) gives nothing."""

    def nothing(module: nn.Module, args: Any, output: Any) -> Any:
        return (torch.zeros_like(output[0]), *output[1:]) if isinstance(output, tuple) else torch.zeros_like(output)

    assert found.tower_blocks is not None
    mixers = [found.attention(block) for block in found.tower_blocks]
    mixers += [block.local for block in found.tower_blocks if hasattr(block, "local")]  # type: ignore[misc]
    handles = [module.register_forward_hook(nothing) for module in mixers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _prove_map(model: Any, found: Architecture, inputs: dict[str, Any], samples: int = 12) -> None:
    """Changing one patch behind the block that is read changes those tokens, and only those, that its score reaches."""
    assert found.tower_blocks is not None
    before = _features(found, inputs)
    calls = _attentions(found, found.feature_block, inputs)
    total = sum(views * tokens for views, tokens in calls)
    checked = 0
    for place in range(3, total, max(1, total // samples)):
        one = torch.zeros(total)
        one[place] = 1
        raw = [part.view(call) for part, call in zip(one.split([a * b for a, b in calls]), calls, strict=True)]
        scores = found.family.token_scores(model, raw, inputs)
        assert scores.shape == before.shape[:1]
        reached = ((scores > 0) & scores.isfinite()).nonzero().flatten().tolist()
        with _changed(found.tower_blocks[found.feature_block], place):
            after = _features(found, inputs)
        if torch.equal(before, after):  # a class token, padding that is cut off
            assert reached == []
            continue
        assert _moved(before, after) == reached, place
        checked += 1
    assert checked >= samples // 2


@pytest.mark.parametrize("name", NAMES)
def test_architecture(name: str) -> None:
    _, found = _host(name)
    assert type(found.family) is not architectures.Family
    assert RECIPES[name].model_type in found.family.model_types
    assert len(found.layers) == LAYERS
    assert hasattr(found.base, "get_image_features")
    assert isinstance(found.tower, nn.Module)
    assert isinstance(found.projector, nn.Module)
    assert found.capabilities <= set(architectures.CAPABILITIES)
    assert "cache" in found.capabilities
    assert ("rope" in found.capabilities) + ("mrope" in found.capabilities) == (name != "instructblip_opt")
    assert ("mrope" in found.capabilities) == (name.startswith("qwen"))
    assert ("deepstack" in found.capabilities) == (name == "qwen3_vl")
    assert ("token map" in found.capabilities) == (name in MAPPED)
    assert zoo.IMAGE in found.image_token_ids
    for layer in found.layers:
        assert hasattr(found.attention(layer), "config")
        assert isinstance(found.norm(layer), nn.Module)
    if "tower attention" in found.capabilities:
        assert found.tower_blocks is not None
        assert all(hasattr(found.attention(block), "config") for block in found.tower_blocks)


@pytest.mark.parametrize("name", MAPPED)
def test_each_patch_reaches_the_tokens_that_its_score_goes_to(name: str) -> None:
    model, found = _host(name)
    _prove_map(model, found, _image_inputs(name, (1, 2)))


@pytest.mark.parametrize("name", NAMES)
def test_layouts_count_the_tokens(name: str) -> None:
    model, found = _host(name)
    most = RECIPES[name].most_images
    inputs = _image_inputs(name, (1, most))
    layouts = found.family.layouts(model, inputs)
    assert len(layouts) == 1 + most
    assert sum(layout.tokens for layout in layouts) == len(_features(found, inputs))
    placeholders = zoo.inputs(name, (1, most))["input_ids"] == zoo.IMAGE
    assert sum(layout.tokens for layout in layouts) == int(placeholders.sum())
    for layout in layouts:
        covered: list[int] = []
        for block in layout.blocks:
            step = block.columns + block.newline
            covered += [block.start + r * step + c for r in range(block.rows) for c in range(block.columns)]
        assert len(set(covered)) == len(covered) <= layout.tokens
        assert set(covered) <= set(range(layout.tokens))
        assert bool(layout.blocks) == ("raster" in found.capabilities)


def _pixels_of(name: str, pixels: Tensor, view: int, row: int, column: int, columns: int) -> Tensor:
    """The patch at (row, column) of a view, changed."""
    changed = pixels.clone()
    if pixels.ndim == 2:  # patches in a row, squares of 2 x 2 together
        square = (row // 2) * (columns // 2) + column // 2
        changed[view * 96 + square * 4 + (row % 2) * 2 + column % 2] += 4
    else:
        views = changed.view(-1, *changed.shape[-3:])
        views[view, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 4
    return changed


@pytest.mark.parametrize("name", [n for n in MAPPED if n != "tessera_vlm"])
def test_rasters_show_where_a_patch_of_the_image_stands(name: str) -> None:
    """Without attention in the tower a patch of the image touches one token: the one at its place in the raster."""
    model, found = _host(name)
    inputs = _image_inputs(name, (1,))
    (layout,) = found.family.layouts(model, inputs)
    stride = found.family.stride(model) if name != "video_llama_3" else 2  # type: ignore[attr-defined]
    with _blind(found):
        before = _features(found, inputs)
        for block, first_view in zip(layout.blocks, (0, 1), strict=False):
            step = block.columns + block.newline
            for row, column in ((0, 0), (0, 1), (1, 0), (3, 2), (5, 3), (7, 7)):
                columns = block.columns * stride
                changed = _pixels_of(name, inputs["pixel_values"], first_view, row, column, columns)
                token = block.start + (row // stride) * step + column // stride
                assert _moved(before, _features(found, {**inputs, "pixel_values": changed})) == [token]


def test_tessera_rasters_show_where_a_square_of_the_image_stands() -> None:
    """The convolutions of its encoder reach over to neighbours: over several random weights a token hangs most on the pixels of
    its own square."""
    inputs = _image_inputs("tessera_vlm", (1,))
    seeds = range(5)
    share = torch.zeros(16, 16)  # of each token's gradient in each square
    for seed in seeds:
        model = zoo.tiny("tessera_vlm", seed=seed).model
        found = architecture(model)
        ((block,),) = (layout.blocks for layout in found.family.layouts(model, inputs))
        assert (block.start, block.rows, block.columns) == (0, 4, 4)
        pixels = inputs["pixel_values"].clone().requires_grad_()
        with _blind(found):
            (features,) = model.get_image_features(pixels)
        for token, feature in enumerate(features):
            (gradient,) = torch.autograd.grad(feature.square().sum(), pixels, retain_graph=True)
            squares = gradient.square().sum((0, 1)).unflatten(0, (4, -1)).unflatten(2, (4, -1)).sum((1, 3))
            share[token] += squares.flatten() / squares.sum() / len(seeds)
    assert share.argmax(1).tolist() == list(range(16))
    assert float(share.diagonal().min()) > 0.5


def test_fast_vlm_rasters_show_where_a_place_of_the_feature_map_stands() -> None:
    model, found = _host("fast_vlm")
    inputs = _image_inputs("fast_vlm", (1,))
    (layout,) = found.family.layouts(model, inputs)
    (block,) = layout.blocks
    before = _features(found, inputs)
    for row, column in ((0, 0), (0, 3), (2, 1), (3, 3)):

        def change(module: nn.Module, args: Any, output: Any, row: int = row, column: int = column) -> None:
            output.last_hidden_state[:, :, row, column] += 1

        handle = found.tower.register_forward_hook(change)  # type: ignore[union-attr]
        after = _features(found, inputs)
        handle.remove()
        assert _moved(before, after) == [row * block.columns + column]


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
def test_padding_around_tiles_is_no_token(name: str) -> None:
    """An image of 40 x 128 pixels leaves 6 of the raster's 8 rows."""
    model, found = _host(name)
    inputs = {**_image_inputs(name, (1,)), "image_sizes": torch.tensor([[40, 128]])}
    (layout,) = found.family.layouts(model, inputs)
    assert [(b.start, b.rows, b.columns, b.newline, b.whole) for b in layout.blocks] == [
        (0, 8, 8, False, True),
        (64, 6, 16, True, False),
    ]
    _prove_map(model, found, inputs, samples=24)


def test_tiles_that_are_too_many_are_scaled_down() -> None:
    model, found = _host("llava_onevision")
    inputs = {**_image_inputs("llava_onevision", (1,)), "vision_aspect_ratio": "anyres_max_1"}
    (layout,) = found.family.layouts(model, inputs)
    assert (layout.blocks[1].rows, layout.blocks[1].columns) == (5, 11)
    _prove_map(model, found, inputs, samples=24)


def test_images_that_share_a_row_are_not_cut() -> None:
    model, found = _host("llava_onevision")
    layouts = found.family.layouts(model, _image_inputs("llava_onevision", (1, 2)))
    assert [(layout.tokens, len(layout.blocks)) for layout in layouts] == [(64 + 8 * 17, 2), (65, 1), (65, 1)]


def test_newlines_always_stay() -> None:
    model, found = _host("llava_next")
    scores = found.family.token_scores(model, [torch.rand(3, 65)], _image_inputs("llava_next", (1,)))
    assert scores.isinf().nonzero().flatten().tolist() == [64 + 17 * row + 16 for row in range(8)]


def test_a_class_token_in_the_prompt_always_stays() -> None:
    tiny = zoo.tiny("llava", vision_feature_select_strategy="full", image_seq_length=65)
    found = architecture(tiny.model)
    inputs = _image_inputs("llava", (1, 1))
    scores = found.family.token_scores(tiny.model, [torch.rand(2, 65)], inputs)
    assert scores.isinf().nonzero().flatten().tolist() == [0, 65]
    assert [(layout.tokens, layout.blocks[0].start) for layout in found.family.layouts(tiny.model, inputs)] == [(65, 1)] * 2
    _prove_map(tiny.model, found, inputs)


def test_feature_blocks_count_hidden_states() -> None:
    for layer, block in ((-2, -2), (-1, -1), (3, 2), (1, 0), ([1, 2], 1)):
        model = zoo.tiny("llava", vision_feature_layer=layer).model
        assert architecture(model).feature_block == block


def test_scores_of_another_number_of_patches_are_refused() -> None:
    model, found = _host("llava")
    with pytest.raises(TesseraError, match="scored 64 patches, but the images have 128"):
        found.family.token_scores(model, [torch.rand(1, 65)], _image_inputs("llava", (1, 1)))


@pytest.mark.parametrize("name", NAMES)
def test_without_images(name: str) -> None:
    model, found = _host(name)
    inputs = zoo.inputs(name, (1, 1))
    if name.startswith("instructblip"):
        with pytest.raises(UserError, match="always reads one"):
            found.family.no_image(model, inputs)
        return
    bare = found.family.no_image(model, inputs)
    assert not (bare["input_ids"] == zoo.IMAGE).any()
    for row in range(2):
        text = inputs["input_ids"][row][(inputs["attention_mask"][row] == 1) & (inputs["input_ids"][row] != zoo.IMAGE)]
        assert bare["input_ids"][row][bare["attention_mask"][row] == 1].tolist() == text.tolist()
    with torch.no_grad():
        assert model(**bare).logits.isfinite().all()


@pytest.mark.parametrize("name", ["instructblip", "fast_vlm"])
def test_families_without_a_map_say_so(name: str) -> None:
    model, found = _host(name)
    with pytest.raises(UserError, match="no map from the vision tower's patches"):
        found.family.token_scores(model, [torch.rand(1, 4)], {})
