"""Token reduction on tiny hosts: which tokens stay equals brute force, and what the language model then reads."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tessera.errors import UserError
from tessera.hosts.contract import Host
from tessera.hosts.plug import plug
from tessera.hosts.reader import layouts_of
from tessera.hosts.sequence import Sequence
from tessera.hosts.tiny_configs import LAYERS
from tessera.hosts.zoo import inputs, tiny
from tessera.nn.raster import raster
from tessera.parts.tokens.aim import falling, merged_to
from tessera.parts.tokens.globalcom2 import compressed
from tessera.parts.tokens.m3 import pooled, squares

HOSTS = ("llava", "llava_next", "qwen2_5_vl")


@functools.cache
def model_of(name: str) -> Any:
    return tiny(name).model


@contextmanager
def run(name: str, part: str, images: tuple[int, ...] = (1, 2), **options: Any) -> Iterator[tuple[Host, Sequence, Tensor]]:
    """One prefill: the host, its sequence, the logits."""
    with torch.no_grad(), plug(model_of(name), part, **options) as host:
        logits = host.model(**inputs(name, images)).logits
        sequence = host.sequence
        assert sequence is not None
        yield host, sequence, logits


def kept(sequence: Sequence, layer: int) -> list[list[int]]:
    """Logical places of the visual tokens that enter a layer, per row."""
    stage = sequence.stages[layer]
    return [stage.index[row][stage.visual[row]].tolist() for row in range(len(stage.index))]


def image_places(sequence: Sequence) -> list[list[list[int]]]:
    """Logical places of each image of each row."""
    return [[(row == image).nonzero().flatten().tolist() for image in range(int(row.max()) + 1)] for row in sequence.image_of]


def newline_places(host: Host, sequence: Sequence) -> set[tuple[int, int]]:
    """(row, place) of newline tokens."""
    layouts = layouts_of(host.model, host.architecture, sequence)
    visual = sequence.visual.nonzero().tolist()
    return {(visual[i][0], visual[i][1]) for i in raster(layouts).newline.nonzero().flatten().tolist()}


def best(places: list[int], score: Tensor, count: int) -> list[int]:
    return sorted(sorted(places, key=lambda place: (-float(score[place]), place))[:count])


def eager_attention(name: str, images: tuple[int, ...], layer: int) -> Tensor:
    """[B, S, S] of a language-model layer of the bare host, from transformers' own eager code, averaged over heads."""
    model = tiny(name).model
    model.set_attn_implementation("eager")
    with torch.no_grad():
        found = model(**inputs(name, images), output_attentions=True).attentions[layer]
    return found.mean(1)


def scores_of_tower(name: str, images: tuple[int, ...], kind: str) -> Tensor:
    """[B, S] score of each visual token of the bare host by the tower block that its projector reads from."""
    from tessera.hosts.part import HostPart, LayerView
    from tessera.hosts.values import Selection

    class Reading(HostPart):
        claims = ("visual tokens",)
        seen: Tensor

        def tower_taps(self, host: Host) -> Any:
            return {host.architecture.feature_block: kind}

        def select(self, view: LayerView) -> Selection | None:
            if view.layer == 0:
                self.seen = view.tower_scores()
            return None

    reading = Reading(None)
    with torch.no_grad(), plug(model_of(name), reading):
        model_of(name)(**inputs(name, images))
    return reading.seen


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("keep", [0.25, 0.6])
def test_fopru_keeps_each_images_most_attended_tokens(name: str, keep: float) -> None:
    score = scores_of_tower(name, (1, 2), "received")
    with run(name, "fopru", keep=keep) as (host, sequence, _):
        ends = newline_places(host, sequence)
        for row, images in enumerate(image_places(sequence)):
            expected = sorted(place for r, place in ends if r == row)
            for places in images:
                ranked = [place for place in places if (row, place) not in ends]
                expected += best(ranked, score[row], int(len(ranked) * keep))
            assert kept(sequence, 0)[row] == sorted(expected)


def test_fopru_reads_the_class_token_if_asked() -> None:
    score = scores_of_tower("llava", (1, 1), "class")
    with run("llava", "fopru", (1, 1), keep=0.25, score="class") as (_, sequence, _):
        for row, images in enumerate(image_places(sequence)):
            assert kept(sequence, 0)[row] == best(images[0], score[row], 16)


@pytest.mark.parametrize("name", HOSTS)
def test_fopru_keeps_whole_rows(name: str) -> None:
    with run(name, "fopru", (1, 1), keep=0.5, strategy="row") as (host, sequence, _):
        layouts = layouts_of(host.model, host.architecture, sequence)
        places = raster(layouts)
        stays = torch.zeros_like(sequence.visual)
        for row, own in enumerate(kept(sequence, 0)):
            stays[row, own] = True
        stays_flat = stays[sequence.visual]
        for number, (_, block) in enumerate(places.blocks):
            inside = (places.block == number) & ~places.newline
            lines = stays_flat[inside].view(block.rows, block.columns)
            assert bool((lines.all(1) | ~lines.any(1)).all())
            assert int(lines.all(1).sum()) == int(block.rows * 0.5)
        assert bool(stays_flat[places.newline].all())


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("rank", ["next", "previous"])
def test_pyramiddrop_ranks_by_the_last_instruction_tokens_attention(name: str, rank: str) -> None:
    images, layer = (1, 2), 3
    attention = eager_attention(name, images, layer if rank == "next" else layer - 1)
    with run(name, "pyramiddrop", images, keep=(0.5,), layers=(layer,), rank=rank) as (_, sequence, _):
        for row, own in enumerate(kept(sequence, layer)):
            places = sequence.visual[row].nonzero().flatten().tolist()
            score = attention[row, int(sequence.query[row])]
            assert own == best(places, score, len(places) // 2)
        assert kept(sequence, layer - 1) == [row.nonzero().flatten().tolist() for row in sequence.visual]


@pytest.mark.parametrize("name", HOSTS)
def test_pyramiddrop_keeps_shares_of_the_original_tokens(name: str) -> None:
    with run(name, "pyramiddrop", keep=(0.5, 0.25, 0.125)) as (_, sequence, _):
        total = sequence.visual.sum(1).tolist()
        for layer, share in ((0, 1.0), (1, 0.5), (3, 0.25), (4, 0.125), (5, 0.125)):
            assert [len(own) for own in kept(sequence, layer)] == [int(n * share) for n in total]
        for earlier, later in ((0, 1), (1, 3), (3, 4)):
            for a, b in zip(kept(sequence, earlier), kept(sequence, later), strict=True):
                assert set(b) <= set(a)


def test_pyramiddrop_counts_positions_anew_where_it_can() -> None:
    with run("llava", "pyramiddrop", keep=(0.5,), layers=(0,)) as (_, _, keeps):
        pass
    with run("llava", "pyramiddrop", keep=(0.5,), layers=(0,), positions="reindex") as (_, _, anew):
        pass
    assert not torch.allclose(keeps[:, -1], anew[:, -1], atol=1e-3)
    with pytest.raises(UserError, match="use positions='keep'"), run("qwen2_5_vl", "pyramiddrop", positions="reindex"):
        pass


@pytest.mark.parametrize("name", HOSTS)
def test_aim_merges_each_image_and_prunes_by_page_rank(name: str) -> None:
    images = (1, 2)
    embedded = embeddings(name, images)
    with run(name, "aim", images, merge=0.5) as (host, sequence, _):
        ends = newline_places(host, sequence)
        merged: Tensor = entering(host, name, images, 0)
        stage = sequence.stages[0]
        counts = []
        for row, own in enumerate(image_places(sequence)):
            expected = {place: embedded[row, place] for r, place in ends if r == row}
            for places in own:
                ranked = [place for place in places if (row, place) not in ends]
                tokens, left = merged_to(embedded[row, ranked][None], len(ranked) // 2)
                expected |= {ranked[i]: tokens[0, n] for n, i in enumerate(left[0].tolist())}
            assert kept(sequence, 0)[row] == sorted(expected)
            found = merged[row][stage.visual[row]]
            torch.testing.assert_close(found, torch.stack([expected[place] for place in sorted(expected)]))
            counts.append(len(expected))
        for layer, share in falling(LAYERS).items():
            assert [len(own) for own in kept(sequence, layer)] == [int(n * share) for n in counts]


def test_aim_ranks_by_what_eager_attention_says() -> None:
    name, images, layer = "llava", (1, 2), 4
    model = tiny(name).model
    model.set_attn_implementation("eager")
    caught: dict[str, Tensor] = {}
    module = model.model.language_model.layers[layer - 1].self_attn
    hook = module.register_forward_pre_hook(
        lambda _, args, kwargs: caught.update(mask=kwargs["attention_mask"]), with_kwargs=True
    )
    with torch.no_grad():
        weights = model(**inputs(name, images), output_attentions=True).attentions[layer - 1]
    hook.remove()
    # softmax(logits / 0.1) is softmax(10 log p): what is added to the logits of a row drops out.
    walk = (weights.double().log() * 10).softmax(-1).nan_to_num(0)
    with run(name, "aim", images, merge=1.0, start=layer - 1) as (_, sequence, _):
        start = sequence.real.double() / sequence.real.sum(1, keepdim=True)
        mass = start[:, None, None].expand(-1, walk.shape[1], 1, -1)
        for _ in range(5):
            mass = mass @ walk
        score = mass[:, :, 0].square().mean(1).sqrt()
        share = falling(LAYERS, layer - 1)[layer]
        for row, own in enumerate(kept(sequence, layer)):
            places = sequence.visual[row].nonzero().flatten().tolist()
            assert own == best(places, score[row], int(len(places) * share))


@pytest.mark.parametrize("name", HOSTS)
def test_m3_puts_means_of_squares_in_their_middles(name: str) -> None:
    images = (1, 2)
    embedded = embeddings(name, images)
    with run(name, "m3", images, factor=2) as (host, sequence, _):
        hidden = entering(host, name, images, 0)
        members, slot, stays = squares(raster(layouts_of(host.model, host.architecture, sequence)), 2)
        tokens = embedded[sequence.visual]
        tokens = tokens.index_copy(0, slot, pooled(tokens, members))
        stage = sequence.stages[0]
        assert torch.equal(hidden[stage.visual], tokens[stays])
        if name == "llava":
            raw = embedded[0][sequence.visual[0]].view(1, 8, 8, -1).permute(0, 3, 1, 2)
            expected = F.avg_pool2d(raw, 2).flatten(2)[0].T
            torch.testing.assert_close(hidden[0][stage.visual[0]], expected)


def test_globalcom2_asks_the_towers_last_block_and_is_refused_without_tiles() -> None:
    name, images = "llava_next", (1, 2)
    model = model_of(name)
    caught: list[Tensor] = []
    attention = model.model.vision_tower.encoder.layers[-1].self_attn

    def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        shape = (*hidden.shape[:2], 4, 12)
        query, key = module.q_proj(hidden).view(shape), module.k_proj(hidden).view(shape)
        caught.append(torch.einsum("bhd,bkhd->bhk", query[:, 0], key).mean(1) * 12**-0.5)

    undo = attention.register_forward_pre_hook(hook, with_kwargs=True)
    with torch.no_grad():
        model(**inputs(name, images))
    undo.remove()
    with run(name, "globalcom2", images, keep=0.4) as (host, sequence, _):
        family = host.architecture.family
        score = family.token_scores(model, caught[:1], sequence.images.inputs)
        expected = compressed(score, raster(layouts_of(host.model, host.architecture, sequence)), 0.4, 10.0)
        visual = sequence.visual.nonzero()[expected].tolist()
        assert kept(sequence, 0) == [[place for r, place in visual if r == row] for row in (0, 1)]
    with pytest.raises(UserError, match="lets a thumbnail guide the tiles"), run("llava", "globalcom2"):
        pass
    with pytest.raises(UserError, match="class token"), run("qwen2_5_vl", "globalcom2"):
        pass


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("layer", [0, 3])
def test_the_controls_keep_their_share_and_know_nothing_of_the_image(name: str, layer: int) -> None:
    chosen = {}
    for part, options in (("random", {"seed": 0}), ("random", {"seed": 1}), ("uniform", {})):
        with run(name, part, keep=(0.3,), layers=(layer,), **options) as (host, sequence, _):
            ends = newline_places(host, sequence)
            found = kept(sequence, layer)
            chosen[part, options.get("seed")] = found
            for row, own in enumerate(image_places(sequence)):
                for places in own:
                    ranked = [place for place in places if (row, place) not in ends]
                    assert len(set(found[row]) & set(ranked)) == int(0.3 * len(ranked))
            assert ends <= {(row, place) for row, own in enumerate(found) for place in own}
            other = {key: (value.flip(-1) if value.is_floating_point() else value) for key, value in inputs(name, (1, 2)).items()}
            with torch.no_grad():
                host.model(**other)
            assert host.sequence is not None
            assert kept(host.sequence, layer) == found
    assert chosen["random", 0] != chosen["random", 1]


def test_uniform_keeps_every_second_row_and_column_at_a_quarter() -> None:
    with run("llava", "uniform", (1,), keep=(0.25,)) as (_, sequence, _):
        first = int(sequence.visual[0].nonzero()[0])
        assert [place - first for place in kept(sequence, 0)[0]] == [8 * r + c for r in range(0, 8, 2) for c in range(0, 8, 2)]


def test_evit_drops_in_the_tower_what_the_class_token_overlooks() -> None:
    model, images = model_of("llava"), (1, 1)
    tower, blocks = model.model.vision_tower, model.model.vision_tower.encoder.layers
    pixels = inputs("llava", images)["pixel_values"]
    with torch.no_grad():
        hidden = tower(pixel_values=pixels, output_hidden_states=True).hidden_states[0]
        block = blocks[0]
        states = block.layer_norm1(hidden)
        attended, _ = block.self_attn(hidden_states=states, attention_mask=None)
        residual = hidden + attended
        shape = (*states.shape[:2], 4, 12)
        query, key = (project(states).view(shape) for project in (block.self_attn.q_proj, block.self_attn.k_proj))
        score = (torch.einsum("bhd,bkhd->bhk", query[:, 0], key) * 12**-0.5).softmax(-1)[:, :, 1:].mean(1)
        fewer, slots = [], []
        for image in range(2):
            ranked = sorted(range(64), key=lambda p: (-float(score[image, p]), p))
            stay, rest = sorted(ranked[: math.ceil(0.7 * 64)]), ranked[math.ceil(0.7 * 64) :]
            fused = sum(residual[image, 1 + p] * score[image, p] for p in rest)
            fewer.append(torch.stack([residual[image, 0], *(residual[image, 1 + p] for p in stay), fused]))
            slots.append([*stay, rest[0]])
        out = torch.stack(fewer)
        out = out + block.mlp(block.layer_norm2(out))
        out = blocks[1](out, None)
        tokens = model.model.multi_modal_projector(out[:, 1:])
    with run("llava", "evit", images, keep=0.7, blocks=(0,)) as (host, sequence, _):
        entered = entering(host, "llava", images, 0)
        for row in range(2):
            first = int(sequence.visual[row].nonzero()[0])
            assert [place - first for place in kept(sequence, 0)[row]] == sorted(slots[row])
            order = torch.tensor(slots[row]).argsort()
            torch.testing.assert_close(entered[row][sequence.stages[0].visual[row]], tokens[row][order], rtol=1e-4, atol=1e-5)


def test_evit_counts_go_down_from_block_to_block_and_one_fused_token_is_added() -> None:
    for fuse, expected in ((True, 33 // 2 + 1 + 1), (False, 16)):
        with run("llava", "evit", (1,), keep=0.5, blocks=(0, 1), fuse=fuse) as (_, sequence, _):
            assert len(kept(sequence, 0)[0]) == expected  # 64 -> 32 (+ 1) -> 17 (+ 1) or 16


def test_evit_leaves_tiles_and_newlines_in_their_places() -> None:
    with run("llava_next", "evit", (1,), keep=0.5, blocks=(0,)) as (host, sequence, _):
        places = raster(layouts_of(host.model, host.architecture, sequence))
        stays = torch.zeros_like(sequence.visual)
        stays[0, kept(sequence, 0)[0]] = True
        flat = stays[sequence.visual]
        assert bool(flat[places.newline].all())
        assert int(flat[places.block == 0].sum()) == 33
        assert int(flat[(places.block == 1) & ~places.newline].sum()) == 66


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("qwen2_5_vl", {}, "class token"),
        ("internvl", {}, "does not map each patch to one token by itself"),
        ("instructblip", {}, "token map"),
        ("llava", {"blocks": (2,)}, "the projector reads up to 1; block 2 is behind it"),
        ("llava", {"keep": 0.0}, "keep is a share above 0"),
        ("llava", {"blocks": (1, 0)}, "blocks must be rising"),
    ],
)
def test_evit_is_refused_where_it_cannot_be(name: str, options: dict[str, Any], says: str) -> None:
    images = (1,)
    with pytest.raises(UserError, match=says), run(name, "evit", images, **options):
        pass


@pytest.mark.parametrize(
    ("name", "part", "options", "says"),
    [
        ("llava", "pyramiddrop", {"keep": (0.5,), "layers": (6,)}, "layer 6 does not exist; the host has layers 0 to 5"),
        ("llava", "pyramiddrop", {"keep": (0.5,), "layers": (0,), "rank": "previous"}, "no layer has attended yet"),
        ("llava", "pyramiddrop", {"keep": (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)}, "6 drops do not fit into 6 layers"),
        ("llava", "random", {"keep": (0.5, 0.2)}, "keep has 2 shares and layers 1 layers"),
        ("llava", "uniform", {"keep": (0.2,), "layers": (9,)}, "layer 9 does not exist"),
        ("llava", "fopru", {"keep": 1.5}, "from 0 to 1"),
        ("llava", "fopru", {"strategie": "row"}, "strategy"),
        ("qwen2_5_vl", "fopru", {"score": "class"}, "use score='received'"),
        ("instructblip", "m3", {}, "raster"),
        ("llava", "m3", {"factor": 0}, "at least 1"),
        ("llava_next", "globalcom2", {"block": 3}, "there is no tower block 3; there are 3"),
    ],
)
def test_what_does_not_fit_is_a_sentence(name: str, part: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says), run(name, part, (1,), **options):
        pass


@pytest.mark.parametrize("part", ["fopru", "pyramiddrop", "aim", "m3", "random", "uniform", "evit"])
def test_generation_with_a_cache_equals_computing_everything_again(part: str) -> None:
    model, prompt = model_of("llava"), inputs("llava", (1, 1))
    with torch.no_grad(), plug(model, part) as host:
        tokens = model.generate(**prompt, max_new_tokens=4, do_sample=False, pad_token_id=0)
        sequence = host.prefilled
        length = prompt["input_ids"].shape[1]
        ones = torch.ones_like(tokens[:, length:])
        again = {**prompt, "input_ids": tokens, "attention_mask": torch.cat([prompt["attention_mask"], ones], 1)}
        assert sequence is not None
        with host.replay(sequence):
            logits = model(**again).logits
    assert torch.equal(logits[:, length - 1 : -1].argmax(-1), tokens[:, length:])


def test_text_alone_goes_through_untouched() -> None:
    model, prompt = model_of("llava"), inputs("llava", (0, 0))
    with torch.no_grad():
        bare = model(**prompt).logits
        for part in ("fopru", "pyramiddrop", "aim", "m3", "random", "uniform", "evit"):
            with plug(model, part):
                assert torch.equal(model(**prompt).logits, bare), part


def embeddings(name: str, images: tuple[int, ...]) -> Tensor:
    """[B, S, E] that the bare language model is given."""
    model, caught = model_of(name), {}
    layer = model.get_decoder().layers[0]
    hook = layer.register_forward_pre_hook(
        lambda _, args, kwargs: caught.update(hidden=args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    with torch.no_grad():
        model(**inputs(name, images))
    hook.remove()
    return caught["hidden"]


def entering(host: Host, name: str, images: tuple[int, ...], layer: int) -> Tensor:
    """[B, K, E] that enters a layer while parts are plugged in; runs once more."""
    caught = {}
    hook = host.layers[layer].register_forward_pre_hook(
        lambda _, args, kwargs: caught.update(hidden=args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    host.model(**inputs(name, images))
    hook.remove()
    return caught["hidden"]
