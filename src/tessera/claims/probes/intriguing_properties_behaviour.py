"""Disturbances of tokens, pictures and layers, which a model that is never right does not show."""

from __future__ import annotations

from tessera.lab.behaviour import Numbers, summary


def behaviour() -> Numbers:
    """Orders, shuffled and dropped patches, neighbours, disturbed layers."""
    import numpy as np
    import torch

    from tessera.parts.probes import intriguing_properties as probe
    from tessera.world import World

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    found: dict[str, list[float] | str] = {}
    for how in ("tokens", "within", "between"):
        found[f"order of {how}"] = str(probe.order(13, 4, how, generator()).tolist())
    image = World(split="train", width=96, height=80).sample(3, "scene").images()[0]
    pictures = {"shuffled": probe.shuffle_patches(image, 5, generator())}
    for which in ("drop", "salient", "plain"):
        pictures[which] = probe.drop_patches(image, 5, 0.3, which, generator())
    for name, made in pictures.items():
        pixels = torch.from_numpy(np.asarray(made, dtype=np.float64)[::3, ::3].copy())
        found[name] = summary(pixels, 6)
    found["boxes"] = str(probe.patch_boxes(image, 3))
    a, b = torch.randn(9, 5, generator=generator()), torch.randn(9, 7, generator=generator())
    found["neighbours"] = [float(x) for x in probe.mutual_knn(a, b[:, :5] + a, 3)]
    layer = torch.nn.Linear(5, 5)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(5, 5, generator=generator()))
        layer.bias.zero_()
        for disturbance in ("noise", "skip"):
            with probe.disturbed_layer(layer, disturbance, 0.7, generator()):
                found[f"layer under {disturbance}"] = summary(layer(a), 6)
    return found
