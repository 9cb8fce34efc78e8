"""The tree of a picture's regions, and the two ways of searching it.

Regions are (x, y, width, height) in whole pixels of the picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, TypeAlias

Region: TypeAlias = tuple[int, int, int, int]
Kind: TypeAlias = Literal["existence", "latent", "answering"]


@dataclass(slots=True, eq=False)
class RegionNode:
    """A region of the picture.

    priority   its place in the queue, once asked for
    answering  confidence that the question can be answered from it, -1 before it was asked
    """

    region: Region
    depth: int = 0
    children: list[RegionNode] = field(default_factory=list)
    priority: float | None = None
    answering: float = -1.0


Confidence: TypeAlias = Callable[[RegionNode, Kind, str], float]
"""Confidence in [-1, 1] of a kind, for a node and what is asked about (a cue, or a question)."""


def grow(size: tuple[int, int], smallest: int) -> RegionNode:
    """The tree of a picture of (width, height) pixels: nodes are split until their longer side is below `smallest`."""
    root = RegionNode((0, 0, *size))
    nodes = [root]
    while nodes:
        node = nodes.pop()
        if max(node.region[2:]) >= smallest:
            node.children = [RegionNode(region, node.depth + 1) for region in split(node.region)]
            nodes += node.children
    return root


def split(region: Region) -> list[Region]:
    """2 x 2 regions in reading order, or 4 in a row along a side that is at least twice as long; what is left over goes to
    the last."""
    x, y, width, height = region
    ratio = height / width
    columns, rows = (1, 4) if ratio >= 2 else (4, 1) if ratio <= 0.5 else (2, 2)
    xs = [*(x + n * (width // columns) for n in range(columns)), x + width]
    ys = [*(y + n * (height // rows) for n in range(rows)), y + height]
    return [
        (left, above, right - left, below - above)
        for above, below in pairwise(ys)
        for left, right in pairwise(xs)
        if right > left and below > above
    ]


def depth_of(node: RegionNode) -> int:
    """Depth of the deepest node below (and with) this one."""
    return max([node.depth, *(depth_of(child) for child in node.children)])


def weight(depth: int, deepest: int, bias: float) -> float:
    """Share of existence in a node's priority: b + (1 - b) d^2 / D^2; the rest is the latent confidence's."""
    return bias + (1 - bias) * depth**2 / deepest**2 if deepest else 1.0


def search_all(root: RegionNode, cue: str, confidence: Confidence, depth: int, threshold: float) -> list[RegionNode]:
    """Nodes down to `depth` where the thing exists with at least `threshold`, and no less than anywhere below; children first."""
    found: list[RegionNode] = []

    def visit(node: RegionNode) -> float:
        below = max((visit(child) for child in node.children), default=-1.0) if node.depth < depth else -1.0
        here = confidence(node, "existence", cue)
        if here >= max(below, threshold):
            found.append(node)
        return max(below, here)

    visit(root)
    return found
