"""What the probe does to tokens, pictures and layers, on a tiny composed model of random weights."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tessera.config import build
from tessera.errors import UserError
from tessera.evaluation.provenance import weights_hash
from tessera.generation.generate import Generator
from tessera.hosts.plug import attach
from tessera.parts.probes.intriguing_properties import (
    IntriguingProperties,
    Tokens,
    disturbed_layer,
    drop_patches,
    features,
    mutual_knn,
    order,
    patch_boxes,
    shuffle_patches,
)
from tessera.recipes import nano
from tessera.recipes.recipe import Recipe
from tessera.training.run import build as built
from tessera.world import WorldConfig

WORLD = WorldConfig(split="val", kinds={"scene": 1.0}, things=(1, 3), width=64, height=64)


@pytest.fixture(scope="module")
def host() -> tuple[Any, Any]:
    plan = nano.model(layers=3, width=32, heads=2, hidden=48)
    plan["parts"]["encoders"] = [{"kind": "conv_vit", "image_size": 32, "width": 24, "heads": 2, "depth": 1}]
    plan["parts"]["experts"] = {"kind": "single"}
    plan["parts"]["connector"] = {"kind": "linear"}
    torch.manual_seed(1)
    model, processor = built(Recipe(name="tiny", about="", model=plan))
    return model.eval(), processor


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (28, 42, 3), dtype=np.uint8))


def probe(**options: Any) -> IntriguingProperties:
    return IntriguingProperties(IntriguingProperties.Config(**{"types": ("existence", "at"), "n": 8, "world": WORLD, **options}))


@pytest.mark.parametrize("n", [1, 16, 49, 50])
def test_orders(n: int) -> None:
    groups = [g.tolist() for g in torch.arange(n).tensor_split(min(7, n))]
    for how in ("tokens", "within", "between"):
        assert sorted(order(n, 7, how, generator()).tolist()) == list(range(n))  # type: ignore[arg-type]
    within, between = order(n, 7, "within", generator()).tolist(), order(n, 7, "between", generator()).tolist()
    assert [sorted(within[g[0] : g[-1] + 1]) for g in groups] == groups
    starts = {g[0]: g for g in groups}
    at = 0
    while at < n:
        whole = starts[between[at]]
        assert between[at : at + len(whole)] == whole
        at += len(whole)


def test_patches_are_shuffled_and_dropped(image: Image.Image) -> None:
    boxes = patch_boxes(image, 7)
    tiles = [np.asarray(image.crop(b)).tobytes() for b in boxes]
    mixed = [np.asarray(shuffle_patches(image, 7, generator()).crop(b)).tobytes() for b in boxes]
    assert mixed != tiles and sorted(mixed) == sorted(tiles)
    gone = [np.asarray(drop_patches(image, 7, 0.5, "drop", generator()).crop(b)).tobytes() for b in boxes]
    assert sum(a != b for a, b in zip(gone, tiles, strict=True)) == round(0.5 * 49)
    assert drop_patches(image, 7, 0.0, "drop", generator()).tobytes() == image.tobytes()


def test_salient_patches_go_first() -> None:
    pixels = np.full((28, 28, 3), 100, np.uint8)
    pixels[:4, :4] = np.random.default_rng(0).integers(0, 255, (4, 4, 3))
    picture = Image.fromarray(pixels)
    salient, plain = (np.asarray(drop_patches(picture, 7, 1 / 49, which, generator())) for which in ("salient", "plain"))
    assert not np.array_equal(salient[:4, :4], pixels[:4, :4]) and np.array_equal(plain[:4, :4], pixels[:4, :4])


def test_neighbours() -> None:
    a = torch.randn(20, 6, generator=generator())
    turn, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator(1)))
    assert mutual_knn(a, 3 * a @ turn, 5).tolist() == [1.0] * 20
    assert mutual_knn(a, torch.randn(20, 6, generator=generator(2)), 5).mean() < 0.6


def test_unchanged_tokens_answer_as_the_model_does(host: tuple[Any, Any], image: Image.Image) -> None:
    rows = [([image], ["Is there a dog?", "Where is the cat?"]), ([], ["Is there a dog?"])]
    plain = Generator(*host).answer_batch(rows, 4)
    same = Tokens(*host, lambda found: found).answer_batch(rows, 4)
    assert [[a.tokens for a in row] for row in same] == [[a.tokens for a in row] for row in plain]


def test_mean_tokens_do_not_feel_their_order(host: tuple[Any, Any], image: Image.Image) -> None:
    def flat(tokens: list[torch.Tensor]) -> list[torch.Tensor]:
        return [t.mean(0, keepdim=True).expand_as(t) for t in tokens]

    rows = [([image], ["Is there a dog?"])]
    mixed = Tokens(*host, lambda found: flat([t[order(len(t), 4, "tokens", generator())] for t in found]))
    plain = Tokens(*host, flat)
    (one,), (two,) = mixed.answer_batch(rows, 4)[0], plain.answer_batch(rows, 4)[0]
    assert one.tokens == two.tokens


def test_noise_and_skipping_of_one_layer(host: tuple[Any, Any]) -> None:
    model, processor = host
    layer = attach(model).architecture.layers[1]
    ids = torch.tensor([processor.prefix_ids(0) + processor.question_ids("Is there a dog?")])
    seen: list[torch.Tensor] = []
    with torch.no_grad():
        intact = model(input_ids=ids).logits
        for how, scale in (("noise", 0.0), ("noise", 1.0), ("skip", 1.0)):
            with disturbed_layer(layer, how, scale, generator()):  # type: ignore[arg-type]
                seen.append(model(input_ids=ids).logits)
        assert torch.equal(model(input_ids=ids).logits, intact)
    assert torch.allclose(seen[0], intact, atol=1e-6)
    assert not torch.allclose(seen[1], intact, atol=1e-4) and not torch.allclose(seen[2], intact, atol=1e-4)


def with_idle_layer(model: Any, at: int) -> None:
    """Puts a decoder layer that adds nothing into a composed model, in front of layer `at`."""
    inner: Any = attach(model).architecture.language_model
    idle = deepcopy(inner.layers[min(at, len(inner.layers) - 1)])
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        idle.get_submodule(name).weight.data.zero_()
    inner.layers.insert(at, idle)
    for number, layer in enumerate(inner.layers):
        layer.self_attn.layer_idx = number
    inner.config.num_hidden_layers = len(inner.layers)
    if getattr(inner.config, "layer_types", None):
        inner.config.layer_types = [
            *inner.config.layer_types[:at],
            inner.config.layer_types[at - 1],
            *inner.config.layer_types[at:],
        ]


@pytest.mark.parametrize("at", [1, 2])
def test_an_idle_layer_changes_nothing_and_has_no_importance(host: tuple[Any, Any], at: int) -> None:
    model, processor = deepcopy(host[0]), host[1]
    ids = torch.tensor([processor.prefix_ids(0) + processor.question_ids("Is there a dog?")])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        with_idle_layer(model, at)
        assert torch.equal(model(input_ids=ids).logits, before)
    found = probe().layers(model, processor, probe(n=2).items(model))
    assert [i for i, v in enumerate(found) if v == 0] == [at] and len(found) == 4


def test_all_looks_give_their_numbers_and_leave_the_model_alone(host: tuple[Any, Any]) -> None:
    model, processor = host
    before = weights_hash(model)
    looks = ("tokens", "within", "between", "foreign", "patches", "drop", "salient", "plain", "blocks", "layers", "alignment")
    found = probe(looks=looks, shares=(0.0, 1.0), groups=2, pictures=12, neighbours=3).run(model, processor)
    assert set(found.numbers) == {
        "accuracy",
        "tokens",
        "within",
        "between",
        "foreign",
        "patches",
        "alignment",
        "alignment by chance",
    }
    assert {k: len(v) for k, v in found.profile.items()} == {"drop": 2, "salient": 2, "plain": 2, "blocks": 2, "layers": 3}
    assert found.profile["drop"][0] == 0 and found.n >= 8
    assert all(i.low <= i.value <= i.high for i in found.numbers.values())
    assert weights_hash(model) == before and not any(m._forward_hooks for m in model.modules())


def test_features_of_other_models_are_refused() -> None:
    with pytest.raises(UserError, match="patches or layers"):
        features(torch.nn.Linear(2, 2), None, [])


def test_bad_options_are_refused() -> None:
    for bad in ({"looks": ("layer",)}, {"noise": -1.0}, {"shares": (2.0,)}, {"n": 0}, {"neighbours": 500}, {"depth": 1}):
        with pytest.raises(UserError):
            build(IntriguingProperties.Config, bad)
