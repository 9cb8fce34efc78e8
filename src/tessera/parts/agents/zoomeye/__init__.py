"""ZoomEye: a model searches a picture as a tree of ever smaller views, and answers from what it has found.

Source: Shen et al., "ZoomEye: Enhancing Multimodal LLMs with Human-Like Zooming Capabilities through Tree-Based Image
Exploration", 2024, arXiv:2411.16044. Every node of the tree is a region of the picture. Three confidences, each 2 p(yes) - 1
in one forward: does the thing exist here, could zooming in reveal it, can the question be answered. A single thing is
searched best-first until the question can be answered, "all" things of a kind by visiting nodes bottom-up; the regions found
are shown as one crop, or as the picture with a box and the crop.

Deviations: cues come from one text prompt that holds the in-context examples, not from a conversation; a cue with a pronoun
in it (a list of words here, a tagger in the released code) is not searched for. Crops that show the box show it in the
configured colour also when the question speaks of a red rectangle: choose another then.

Shapes: regions are (x, y, width, height) in whole pixels of the picture, boxes (x0, y0, x1, y1).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from PIL import Image

from tessera.config import config
from tessera.hosts.agent import Agent
from tessera.hosts.pixels import UnitBox, View
from tessera.parts.agents.zoomeye.crops import crop_box, framed, merged, side_by_side, squared, union, unit
from tessera.parts.agents.zoomeye.tree import Confidence, Kind, RegionNode, depth_of, grow, search_all, weight
from tessera.registry import part

if TYPE_CHECKING:
    from tessera.hosts.agent import ModelInterface

PRONOUNS = re.compile(
    r"\b(i|me|my|mine|you|your|yours|he|him|his|she|hers?|its?|we|us|ours?|they|them|theirs?|th(is|at|ese|ose)|who|whom|whose"
    r"|which|what|(some|any)(one|thing))\b",
    re.IGNORECASE,
)
NEEDED = "So I need the information about the following objects:"
EXAMPLES = (
    ("What is the colour of the boy's bag?", "boy with a bag"),
    ("Is the yellow car on the left or right side of the white car?", "white car and yellow car"),
    ("How many red balloons are there?", "all red balloons"),
)
"""Questions and what has to be found to answer them."""


@dataclass(slots=True)
class Found:
    """What a best-first search came to: its nodes (the last accepted ones), nodes visited, steps down and up the tree."""

    nodes: list[RegionNode]
    pops: int = 0
    zoomed_in: int = 0
    zoomed_out: int = 0


@dataclass(frozen=True, slots=True)
class Zoomed:
    """An answer and how it came about.

    text   the answer
    cues   what was searched for
    views  what the model was shown for it
    boxes  found regions, in the picture's unit square
    pops   nodes visited by best-first searches
    asked  confidences that were asked for, each one forward
    """

    text: str
    cues: tuple[str, ...]
    views: tuple[View, ...]
    boxes: tuple[UnitBox, ...]
    pops: int
    asked: int


@config
class ZoomPrompts:
    """What the model is asked; {} is the cue or the question. The zoomed ones are for a picture with a box and a crop."""

    existence: str = "Is there a {} in the image? Answer Yes or No."
    latent: str = (
        "According to your common sense knowledge and the content of the image, is it possible to find a {} by further zooming "
        "in the image? Answer Yes or No and tell the reason."
    )
    answering: str = "Question: {}\nCould you answer the question based on the available visual information? Answer Yes or No."
    zoomed: str = (
        "The first image is the main image, and the section enclosed by the {} rectangle is the focus region. The second image "
        "is the zoomed-in view of the focus region.\n"
    )
    zoomed_existence: str = "Is there a {} in the zoomed-in view? Answer Yes or No."
    zoomed_latent: str = (
        "According to your common sense knowledge and the content of the zoomed-in view, along with its location in the image, "
        "is it possible to find a {} by further zooming in the current view? Answer Yes or No and tell the reason."
    )
    appearance: str = "What is the appearance of the {}?"
    cues: str = "Question: {}\nIf you want to answer the question, which objects' information do you need?"


@part("zoomeye", socket="agents", catalog=114)
class ZoomEye(Agent):
    """Searches, then answers."""

    @config
    class Config:
        """view: "local" shows the found crop, "global" the picture with a box and the crop. bias b of the weight b + (1 - b)
        d^2 / D^2; threshold of answering, its floor, steps by which it is lowered (the last one again and again) after
        patience times depth visits and every interval visits from then on; depth and all_depth of the tree for one thing
        and for all; cue_threshold of existence for all; crop_scale of crops; merge distance in pixels of boxes that become
        one; apart: side in pixels beyond which two boxes are shown next to each other (local); background of squares;
        colour of boxes."""

        view: Literal["local", "global"] = "local"
        bias: float = 0.2
        threshold: float = 0.6
        floor: float = 0.0
        steps: tuple[float, ...] = (0.1, 0.1, 0.2)
        patience: int = 3
        interval: int = 2
        depth: int = 5
        all_depth: int = 2
        cue_threshold: float = 0.6
        crop_scale: float = 1.0
        merge: int = 50
        apart: int = 1000
        background: tuple[int, int, int] = (122, 116, 104)
        colour: str = "red"
        prompts: ZoomPrompts = field(default_factory=ZoomPrompts)

        def validate_values(self) -> None:
            if not 0 <= self.bias <= 1:
                raise ValueError(f"bias is a weight between 0 and 1, not {self.bias}.")
            if not self.steps or min(self.steps) <= 0:
                raise ValueError(f"steps lower the threshold: one or more numbers above 0, not {self.steps}.")
            if min(self.depth, self.all_depth, self.patience, self.interval) < 1 or self.crop_scale <= 0:
                raise ValueError("depth, all_depth, patience and interval are at least 1, crop_scale is above 0.")

    def answer(
        self,
        model: ModelInterface,
        image: Image.Image,
        question: str,
        options: Sequence[str] = (),
        cues: Sequence[str] | None = None,
    ) -> Zoomed:
        """Answers a question about a picture; of `options`, if there are any, the one that the model finds least unlikely.

        cues: what to search for; None lets the model say it.
        """
        picture = image.convert("RGB")
        targets = [cue for cue in (self.cues(model, question) if cues is None else cues) if not speaks_of_others(cue)]
        asked = 0

        def confidence(node: RegionNode, kind: Kind, about: str) -> float:
            nonlocal asked
            asked += 1
            return self.confidence(model, picture, node, kind, about)

        settings, nodes, pops = self.config, list[RegionNode](), 0
        if settings.view == "global" and len(targets) > 1:
            root, appearance = RegionNode((0, 0, *picture.size)), settings.prompts.appearance
            single = [cue for cue in targets if not cue.startswith("all ")]
            if any(confidence(root, "answering", appearance.format(cue)) >= settings.threshold for cue in single):
                targets = []  # something is plain to see in the whole picture: that is enough
        alone = len(targets) == 1
        for cue in targets:
            tree = grow(picture.size, model.size)
            if cue.startswith("all "):
                nodes += search_all(tree, singular(cue[4:]), confidence, settings.all_depth, settings.cue_threshold)
                continue
            about = question if alone else settings.prompts.appearance.format(cue)
            found = self.search(tree, about, cue, confidence, thorough=not alone)
            pops += found.pops
            nodes += sorted(found.nodes, key=lambda node: -node.depth)[:1]
        views = self.look(picture, nodes, model.size)
        shown, prompt = [view.image for view in views], self._preface(views) + question
        if options:
            losses = model.losses(shown, prompt, options)
            text = options[losses.index(min(losses))]
        else:
            text = model.ask(shown, prompt)
        boxes = tuple(unit((x, y, x + w, y + h), picture.size) for x, y, w, h in (node.region for node in nodes))
        return Zoomed(text, tuple(targets), tuple(views), boxes, pops, asked)

    def cues(self, model: ModelInterface, question: str) -> list[str]:
        """What has to be found to answer a question, as the model says after some examples; "all ..." asks for every one."""
        template = self.config.prompts.cues
        turns = [f"{template.format(asked)}\nTo answer it, I need to see them. {NEEDED} {said}." for asked, said in EXAMPLES]
        said = model.ask([], "\n\n".join([*turns, template.format(question)]))
        found = re.search(re.escape(NEEDED) + r"\s*(.+)", said)
        return [cue for cue in re.split(r" and |, ", found[1].rstrip().removesuffix(".")) if cue] if found else []

    def confidence(self, model: ModelInterface, picture: Image.Image, node: RegionNode, kind: Kind, about: str) -> float:
        """2 p(yes) - 1."""
        prompts, views = self.config.prompts, self.look(picture, [node], model.size)
        template: str = getattr(prompts, kind if len(views) == 1 or kind == "answering" else f"zoomed_{kind}")
        return 2 * (model.yes([view.image for view in views], self._preface(views) + template.format(about)) - 0.5)

    def search(self, root: RegionNode, question: str, cue: str, confidence: Confidence, thorough: bool = False) -> Found:
        """Best-first search for one thing. thorough: not before a leaf has been visited, and (local view) not in the root."""
        settings = self.config
        skip_root = thorough and settings.view == "local"
        deepest = min(depth_of(root), settings.depth)
        threshold, steps, limit = settings.threshold, list(settings.steps), settings.patience * deepest
        queue, visited, found = [root], list[RegionNode](), Found([])
        bottom, before = False, -1
        while queue:
            node = queue.pop(0)
            if before >= 0:
                found.zoomed_in += node.depth > before
                found.zoomed_out += node.depth < before
            before = node.depth
            found.pops += 1
            visited.append(node)
            if not (skip_root and node is root):
                node.answering = confidence(node, "answering", question)
            if not (skip_root and node is root) and node.answering >= threshold:
                found.nodes.append(node)
                if not thorough or bottom:
                    break
            elif found.pops >= limit:
                threshold -= steps.pop(0) if len(steps) > 1 else steps[0]
                limit += settings.interval
                accepted = found.nodes + [n for n in visited if n.answering >= threshold and n not in found.nodes]
                found.nodes = sorted(accepted, key=lambda n: -n.answering)[:1]
                if found.nodes or threshold < settings.floor:
                    break
            if not node.children or node.depth == deepest:
                bottom = True
                if thorough and found.nodes:
                    break
            else:
                queue += node.children
            for waiting in queue:
                if waiting.priority is None:
                    share = weight(waiting.depth, deepest, settings.bias)
                    existence = confidence(waiting, "existence", cue)
                    waiting.priority = existence * share + confidence(waiting, "latent", cue) * (1 - share)
            queue.sort(key=_priority, reverse=True)
        return found

    def look(self, picture: Image.Image, nodes: Sequence[RegionNode], size: int) -> list[View]:
        """What the model is shown for some nodes."""
        settings = self.config
        root = any(node.depth == 0 for node in nodes)
        if settings.view == "global" and (root or not nodes):
            return [View(picture)]
        square, left, top = squared(picture, settings.background)
        if not nodes or (root and len(nodes) == 1):
            return [View(square.resize((size, size)))]
        crops = [crop_box(node.region, picture.size, size, settings.crop_scale) for node in nodes]
        boxes = merged(crops, settings.merge)
        seen = unit(union(boxes), picture.size)
        boxes = [(x0 + left, y0 + top, x1 + left, y1 + top) for x0, y0, x1, y1 in boxes]
        if settings.view == "global":
            whole = union([framed(square, box, settings.colour) for box in boxes])
            return [View(square.resize((size, size)), layer="global"), View(square.crop(whole), seen, "zoomed")]
        whole = union(boxes)
        if max(whole[2] - whole[0], whole[3] - whole[1]) > settings.apart and len(boxes) == 2:
            return [View(side_by_side(square, boxes[0], boxes[1], size, settings.background), seen, "zoomed")]
        return [View(square.crop(whole), seen, "zoomed")]

    def _preface(self, views: Sequence[View]) -> str:
        return self.config.prompts.zoomed.format(self.config.colour) if len(views) > 1 else ""


def _priority(node: RegionNode) -> float:
    assert node.priority is not None
    return node.priority


def speaks_of_others(cue: str) -> bool:
    """Whether a cue holds a pronoun, so that it means nothing by itself."""
    return PRONOUNS.search(cue) is not None


def singular(words: str) -> str:
    """Without a plural's s."""
    return words.removesuffix("s")
