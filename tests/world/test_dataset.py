"""The world as a dataset: deterministic, within its bounds, with splits that do not meet."""

from __future__ import annotations

import hashlib

import numpy as np
import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.errors import UserError
from tessera.world import World, WorldConfig
from tessera.world import concepts as table
from tessera.world.rng import Rng
from tessera.world.scene import KINDS, Scene, Thing

GOLDEN_PILLOW = "13.0"
GOLDEN = {
    "scene": "c1d2c7d7ac8baf1f7f4092ce",
    "text": "87dcf4a7d398e1aa36cdbfbd",
    "chart": "05742690521506d307343010",
    "pair": "efb643aaf0acbb5b15e97e35",
    "clip": "0093a23e0997386379cb1d5e",
}


def digest(world: World, kind: str, count: int = 8) -> str:
    """A hash of the pixels, questions and captions of some samples of a kind."""
    found = hashlib.blake2b(digest_size=12)
    for index in range(count):
        sample = world.sample(index, kind)
        for image in sample.images():
            found.update(np.asarray(image).tobytes())
        found.update(repr(sample.questions()).encode())
        found.update(repr(sample.captions()).encode())
    return found.hexdigest()


@pytest.mark.parametrize("kind", KINDS)
def test_the_world_is_what_it_was(kind: str) -> None:
    """Pixels and texts of version 1, bit for bit; a change of either wants a new version of the world."""
    if not PIL.__version__.startswith(GOLDEN_PILLOW):
        pytest.skip(f"glyphs are drawn by Pillow; the digests are of Pillow {GOLDEN_PILLOW}")
    assert digest(World(split="test", width=160, height=128), kind) == GOLDEN[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_does_not_depend_on_what_was_drawn_before(kind: str) -> None:
    first = World().sample(5, kind)
    other = World()
    for index in range(5):
        other.sample(index).images()
    again = other.sample(5, kind)
    assert first.frames == again.frames
    assert first.questions() == again.questions() == first.questions()


def test_splits_and_seeds_give_other_scenes() -> None:
    worlds = [World(split=s, seed=k) for s in ("train", "val", "test") for k in (0, 1)]
    scenes = [frames for w in worlds for i in range(50) for frames in [w[i].frames]]
    assert len(set(scenes)) == len(scenes)


def test_pools_part_the_everyday_concepts() -> None:
    base, novel = set(table.pool("base")), set(table.pool("novel"))
    assert not base & novel
    assert base | novel == set(table.pool("everyday"))
    assert len(novel) / len(base | novel) == pytest.approx(0.2, abs=0.05)
    assert 1300 <= len(table.pool("all")) <= 1700
    drawn = {t.concept for i in range(200) for s in World(pool="novel")[i].frames for t in s.things}
    assert drawn and drawn <= novel


def test_held_out_combinations_are_kept_apart() -> None:
    def pairs(combinations: str) -> set[tuple[int, str]]:
        world = World(combinations=combinations, kinds={"scene": 1.0})
        return {(t.concept, t.tint) for i in range(300) for t in world[i].frames[0].things if t.tint}

    seen, held_out = pairs("seen"), pairs("held-out")
    assert seen and held_out
    assert not seen & held_out
    assert all(table.held_out(c, t) for c, t in held_out)


def test_one_style_only_when_asked() -> None:
    world = World(styles=["twemoji"])
    assert {t.style for i in range(100) for s in world[i].frames for t in s.things} == {1}


@settings(max_examples=60, deadline=None)
@given(index=st.integers(0, 10**9), width=st.integers(64, 320), height=st.integers(64, 320), kind=st.sampled_from(KINDS))
def test_everything_stands_inside(index: int, width: int, height: int, kind: str) -> None:
    sample = World(width=width, height=height).sample(index, kind)
    for number, (scene, image) in enumerate(zip(sample.frames, sample.images(), strict=True)):
        assert image.size == (width, height) and image.mode == "RGB"
        assert len(scene.things) <= 12
        boxes = [t.box for t in sample.truth(number)] + [s.box for s in scene.signs] + ([scene.panel.box] if scene.panel else [])
        for x0, y0, x1, y1 in boxes:
            assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1


def test_more_than_half_of_everything_is_visible() -> None:
    truths = [t for i in range(400) for t in World()[i].truth()]
    assert min(t.visible for t in truths) > 0.5
    assert any(t.visible < 0.99 for t in truths), "nothing ever overlaps"


def test_truth_boxes_are_tight_around_the_drawn_outline() -> None:
    world = World(width=256, height=192, kinds={"scene": 1.0})
    for index in range(20):
        sample = world[index]
        full, visible = sample.masks()
        assert not (visible & ~full).any()
        for mask, truth in zip(full, sample.truth(), strict=True):
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            drawn = (columns[0] / 256, rows[0] / 192, (columns[-1] + 1) / 256, (rows[-1] + 1) / 192)
            assert drawn == pytest.approx(truth.box, abs=2.5 / 192)


def test_pairs_differ_in_exactly_one_thing() -> None:
    world = World()
    kinds = set()
    for index in range(120):
        sample = world.sample(index, "pair")
        (change,) = sample.changes
        kinds.add(change.kind)
        before, after = ({t.key: t for t in s.things} for s in sample.frames)
        different = {k for k in before.keys() | after.keys() if before.get(k) != after.get(k)}
        assert different == {change.key}
        assert sample.frames[0].background == sample.frames[1].background
    assert kinds == {"added", "removed", "moved", "recoloured", "grown", "shrunk"}


def _at(scene: Scene, key: int) -> Thing | None:
    return next((t for t in scene.things if t.key == key), None)


def test_clips_show_what_their_changes_say() -> None:
    world = World(frames=[2, 16])
    kinds, lengths = set(), set()
    for index in range(150):
        sample = world.sample(index, "clip")
        lengths.add(len(sample.frames))
        for change in sample.changes:
            kinds.add(change.kind)
            track = [_at(s, change.key) for s in sample.frames]
            if change.kind == "appears":
                assert [t is not None for t in track] == [f >= change.frame for f in range(len(track))]
            elif change.kind == "vanishes":
                assert [t is not None for t in track] == [f < change.frame for f in range(len(track))]
            elif change.kind == "moves":
                first, last = track[0], track[-1]
                assert first and last
                axis, sign = {"left": ("x", -1), "right": ("x", 1), "up": ("y", -1), "down": ("y", 1)}[change.direction]
                assert (getattr(last, axis) - getattr(first, axis)) * sign > 0.25
            else:
                other = [_at(s, change.other) for s in sample.frames]
                assert track[0] and other[0] and track[-1] and other[-1]
                assert (track[-1].x, track[-1].y) == (other[0].x, other[0].y)
                assert (other[-1].x, other[-1].y) == (track[0].x, track[0].y)
    assert kinds == {"appears", "vanishes", "moves", "swaps"}
    assert min(lengths) == 2 and max(lengths) == 16


def test_sizes_from_64_to_2048_are_drawn() -> None:
    for size in (64, 2048):
        (image,) = World(width=size, height=size).sample(3, "scene").images()
        assert image.size == (size, size)
        assert len(set(image.resize((32, 32)).tobytes())) > 8


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"split": "tset"}, "test"),
        ({"pool": "bas"}, "base"),
        ({"width": 63}, "64 to 2048"),
        ({"frames": [1, 4]}, "2 to 16"),
        ({"things": [0, 3]}, "1 to 12"),
        ({"styles": []}, "at least one style"),
        ({"kinds": {"secne": 1.0}}, "scene"),
        ({"corruption": "fgo"}, "fog"),
        ({"sizes": 3}, "field"),
        ({"width": "big"}, "width"),
    ],
)
def test_wrong_options_are_refused_with_a_hint(options: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        World(**options)


def test_negative_indices_are_refused() -> None:
    with pytest.raises(UserError, match="from 0"):
        World()[-1]


def test_corrupted_worlds_differ_in_pixels_only() -> None:
    plain, fog = World(split="test"), World(split="test", corruption="fog", strength=4)
    assert plain[3].questions() == fog[3].questions()
    assert plain[3].images()[0].tobytes() != fog[3].images()[0].tobytes()
    assert fog[3].images()[0].tobytes() == fog[3].images()[0].tobytes()


def test_rng_is_fixed_for_ever() -> None:
    rng = Rng("golden", 1)
    assert [rng.below(1000) for _ in range(5)] == GOLDEN_RNG
    assert sorted(Rng("a").shuffled(range(9))) == list(range(9))
    assert Rng("a", 1).uniform() != Rng("a1").uniform()


GOLDEN_RNG = [746, 563, 78, 728, 113]


def test_configs_are_plain_data() -> None:
    config = WorldConfig(split="val", width=96)
    assert World(config).config.width == 96
