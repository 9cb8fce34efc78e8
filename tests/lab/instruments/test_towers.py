"""Truth per place, and boxes seen from places."""

from __future__ import annotations

import torch

from tessera.lab.instruments.towers import FirstLayer, categories, characters, look, overlap, untrained
from tessera.training.dense import character_labels
from tessera.world import World

SPEC = {"kind": "conv_vit", "image_size": 112, "width": 24, "depth": 2, "heads": 2}


def test_places_hold_what_the_world_shows() -> None:
    tower = untrained(SPEC)
    world = World(split="test", kinds={"scene": 1.0}, things=(2, 4))
    samples = [*(world[i] for i in range(4)), world.sample(4, "text")]
    seen = look([tower, FirstLayer(tower)], samples, layers=False, batch=2)
    assert [f.shape for f in seen.features] == [(5, 196, 24)] * 2 and seen.layers == []
    names = categories()
    for sample, found, boxes in zip(seen.samples, seen.category, seen.box, strict=True):
        truth = {names.index(t.category): t for t in sample.truth() if t.category in names}
        assert set(found[found >= 0].tolist()) <= set(truth)
        for place in (found >= 0).nonzero()[:, 0].tolist():
            x, y = (place % 14 + 0.5) / 14, (place // 14 + 0.5) / 14
            left, top, right, bottom = boxes[place].tolist()
            seen_box = torch.tensor([x - left, y - top, x + right, y + bottom])
            assert any(torch.allclose(seen_box, torch.tensor(t.box), atol=1e-5) for t in sample.truth())
    assert bool((seen.character[4] >= 0).any()) and int(seen.character.max()) < characters() == len(character_labels()) - 1


def test_layers_are_kept_where_they_are_wanted_and_weights_repeat() -> None:
    towers = [untrained(SPEC), untrained(SPEC)]
    seen = look(towers, [World(split="test").sample(0, "scene")], layers=True)
    assert [len(own) for own in seen.layers] == [2, 2]
    assert torch.equal(seen.layers[0][0], seen.layers[1][0]) and torch.equal(seen.layers[0][-1], seen.features[0])


def test_overlap_of_boxes_seen_from_one_place() -> None:
    one = torch.tensor([0.2, 0.2, 0.2, 0.2])
    shifted = torch.tensor([0.0, 0.2, 0.4, 0.2])
    found = overlap(torch.stack([one, one, one]), torch.stack([one, shifted, one / 2]))
    torch.testing.assert_close(found, torch.tensor([1.0, 1 / 3, 1 / 4]))
