"""EVE's layers written from their equations, window by window, token by token and head by head: what they are checked against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tessera.parts.couplings.eve.layers import OneQuery, PatchAligning, PatchEmbedding


def looped_query(module: OneQuery, token: Tensor, tokens: Tensor) -> Tensor:
    """`OneQuery` of one token [D] and its set [s, D], head by head."""
    query, both = module.query(token), module.key_value(tokens)
    width = len(token)
    step, found = width // module.heads, []
    for at in range(0, width, step):
        key, value = both[:, at : at + step], both[:, width + at : width + at + step]
        found.append((key @ query[at : at + step] / width**0.5).softmax(0) @ value)
    return token + module.out(torch.cat(found))


def looped_embedding(module: PatchEmbedding, pixels: Tensor) -> Tensor:
    """`PatchEmbedding`, window by window."""
    images = []
    for patches in module.patches(pixels):
        side = module.window
        rows = []
        for y in range(0, patches.shape[1], side):
            for x in range(0, patches.shape[2], side):
                inside = patches[:, y : y + side, x : x + side].flatten(1).T
                rows.append(looped_query(module.local, inside.mean(0), inside))
        overall = looped_query(module.whole, module.class_token, torch.stack(rows))
        width = patches.shape[2] // side
        lines = [torch.stack([*rows[i : i + width], module.row_end]) for i in range(0, len(rows), width)]
        images.append(torch.cat([overall[None], *lines]))
    return torch.stack(images)


def looped_aligning(module: PatchAligning, levels: Sequence[Tensor]) -> Tensor:
    """`PatchAligning`, token by token and head by head."""
    tokens = []
    for n in range(len(levels[0])):
        query, *others = (project(level[n]) for project, level in zip(module.levels, levels, strict=True))
        read = torch.stack(others)
        step, found = len(query) // module.heads, []
        for at in range(0, len(query), step):
            part = read[:, at : at + step]
            found.append((part @ query[at : at + step] / len(query) ** 0.5).softmax(0) @ part)
        tokens.append(module.last(levels[0][n]) + module.out(torch.cat(found)))
    return torch.stack(tokens)
