from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from PIL import Image, ImageDraw

from tessera import registry
from tessera.config import build
from tessera.errors import UserError
from tessera.parts.agents.zoomeye import ZoomEye, singular, speaks_of_others
from tessera.parts.agents.zoomeye.crops import crop_box, merged, union
from tessera.parts.agents.zoomeye.tree import Kind, RegionNode, depth_of, grow, search_all, split, weight


def eye(**options: Any) -> ZoomEye:
    return ZoomEye(build(ZoomEye.Config, options))


def nodes_of(root: RegionNode) -> list[RegionNode]:
    return [root, *(node for child in root.children for node in nodes_of(child))]


# The tree


@pytest.mark.parametrize("size", [(100, 100), (1000, 300), (300, 1000), (777, 501), (1024, 1024), (113, 5)])
def test_children_cover_their_parent_and_leaves_are_small(size: tuple[int, int]) -> None:
    for node in nodes_of(grow(size, 112)):
        x, y, width, height = node.region
        if not node.children:
            assert max(width, height) < 112
            continue
        assert len(node.children) == 4
        assert sum(c.region[2] * c.region[3] for c in node.children) == width * height
        assert union((c.region[0], c.region[1], c.region[0] + c.region[2], c.region[1] + c.region[3]) for c in node.children) == (
            x,
            y,
            x + width,
            y + height,
        )
        assert all(c.depth == node.depth + 1 for c in node.children)


def test_long_regions_are_split_along_their_length() -> None:
    assert split((0, 0, 200, 100)) == [(0, 0, 50, 100), (50, 0, 50, 100), (100, 0, 50, 100), (150, 0, 50, 100)]
    assert split((5, 7, 10, 21)) == [(5, 7, 10, 5), (5, 12, 10, 5), (5, 17, 10, 5), (5, 22, 10, 6)]
    assert split((0, 0, 101, 61)) == [(0, 0, 50, 30), (50, 0, 51, 30), (0, 30, 50, 31), (50, 30, 51, 31)]


def test_the_weight_of_existence_grows_with_the_square_of_the_depth() -> None:
    for deepest in range(1, 6):
        for depth in range(deepest + 1):
            wanted = (1 - 0.2) / deepest**2 * depth**2 + 0.2
            assert weight(depth, deepest, 0.2) == pytest.approx(wanted, abs=1e-12)


# The search


@pytest.mark.parametrize("seed", range(200))
def test_an_oracle_finds_a_small_target_in_1_plus_4_visits_per_level(seed: int) -> None:
    rng = random.Random(seed)
    side = 896
    target = (rng.randrange(side - side // 16), rng.randrange(side - side // 16))
    middle = (target[0] + side // 32, target[1] + side // 32)

    def oracle(node: RegionNode, kind: Kind, about: str) -> float:
        x, y, width, height = node.region
        inside = x <= middle[0] < x + width and y <= middle[1] < y + height
        return 1.0 if inside and (kind != "answering" or width * height <= side * side / 64) else -1.0

    root = grow((side, side), 112)
    found = eye(patience=99).search(root, "q", "thing", oracle)
    assert len(found.nodes) == 1 and oracle(found.nodes[0], "answering", "q") == 1
    assert found.pops <= 1 + 4 * depth_of(root)
    assert found.zoomed_in == found.nodes[0].depth and found.zoomed_out == 0


def plain_search(
    root: RegionNode, answers: dict[int, float], priorities: dict[int, float], tau: float, floor: float
) -> tuple[Any, int]:
    """Best-first search as the paper's algorithm has it, written down once more."""
    deepest, steps, limit = depth_of(root), [0.1, 0.1, 0.2], 3 * depth_of(root)
    queue, visited = [root], []
    while queue:
        best = max(queue, key=lambda n: priorities[id(n)])
        queue.remove(best)
        visited.append(best)
        if answers[id(best)] >= tau:
            return best, len(visited)
        if len(visited) >= limit:
            tau -= steps[0]
            steps = steps[1:] or steps
            limit += 2
            good = [n for n in visited if answers[id(n)] >= tau]
            if good:
                return max(good, key=lambda n: answers[id(n)]), len(visited)
            if tau < floor:
                return None, len(visited)
        if best.depth < deepest:
            queue += best.children
    return None, len(visited)


@pytest.mark.parametrize("seed", range(40))
def test_the_search_is_the_papers(seed: int) -> None:
    rng = random.Random(seed)
    root = grow((rng.randrange(200, 900), rng.randrange(200, 900)), 112)
    table = {
        (node.region, kind): rng.uniform(-1, 1 if kind != "answering" else 0.62)
        for node in nodes_of(root)
        for kind in ("existence", "latent", "answering")
    }
    deepest = depth_of(root)
    priorities = {}
    for node in nodes_of(root):
        share = weight(node.depth, deepest, 0.2)
        priorities[id(node)] = table[node.region, "existence"] * share + (1 - share) * table[node.region, "latent"]
    answers = {id(node): table[node.region, "answering"] for node in nodes_of(root)}
    wanted, visits = plain_search(root, answers, priorities, 0.6, 0.0)
    found = eye().search(root, "q", "thing", lambda node, kind, about: table[node.region, kind])
    assert found.nodes == ([] if wanted is None else [wanted])
    assert found.pops == visits


def test_a_thorough_search_goes_to_the_bottom_and_not_for_the_root() -> None:
    root = grow((448, 448), 112)

    def sure(node: RegionNode, kind: Kind, about: str) -> float:
        return 1.0

    assert eye().search(root, "q", "thing", sure).nodes == [root]
    found = eye().search(grow((448, 448), 112), "q", "thing", sure, thorough=True)
    assert all(node.depth for node in found.nodes) and any(not node.children for node in found.nodes)


def test_all_things_of_a_kind_are_found_where_they_are_seen_best() -> None:
    root = grow((448, 448), 112)
    a, b = root.children[0], root.children[3].children[1]
    seen = {id(a): 0.9, id(b): 0.8, id(root.children[3]): 0.7}
    visits: list[int] = []

    def confidence(node: RegionNode, kind: Kind, about: str) -> float:
        assert kind == "existence" and about == "dog"
        visits.append(node.depth)
        return seen.get(id(node), -0.5)

    assert search_all(root, "dog", confidence, 2, 0.6) == [a, b]
    assert max(visits) == 2 and visits[-1] == 0
    seen[id(a.children[2])] = 0.95
    assert search_all(root, "dog", confidence, 2, 0.6) == [a.children[2], b]


# What is shown


def test_crops_have_at_least_the_models_size_and_stay_inside() -> None:
    assert crop_box((0, 0, 50, 50), (400, 300), 112, 1.0) == (0, 0, 112, 112)
    assert crop_box((100, 100, 200, 120), (400, 300), 112, 1.0) == (100, 100, 300, 220)
    left, top, right, bottom = crop_box((350, 250, 50, 50), (400, 300), 112, 1.2)
    assert (right, bottom) == (400, 300) and left >= 0 and top >= 0


def test_near_boxes_become_one() -> None:
    boxes = [(0, 0, 10, 10), (100, 0, 110, 10), (55, 0, 60, 10)]
    assert merged(boxes, 20) == boxes
    assert merged(boxes, 25) == [(0, 0, 110, 10)]


@pytest.mark.parametrize("view", ["local", "global"])
def test_the_model_is_shown_what_was_found(view: str) -> None:
    picture = Image.new("RGB", (448, 300), "white")
    ImageDraw.Draw(picture).rectangle((300, 200, 340, 240), fill="blue")
    root = grow(picture.size, 112)
    node = next(
        n for n in nodes_of(root) if n.depth == 1 and n.region[0] <= 320 <= n.region[0] + n.region[2] and n.region[1] > 100
    )
    views = eye(view=view).look(picture, [node], 112)
    assert len(views) == (1 if view == "local" else 2)
    if view == "global":
        assert views[0].image.size == (112, 112) and views[0].box == (0, 0, 1, 1)
        assert (255, 0, 0) in {colour for _, colour in views[1].image.getcolors(10**6)}, "the frame is seen"
    x0, y0, x1, y1 = views[-1].box
    assert (x0, y0, x1, y1) == (node.region[0] / 448, node.region[1] / 300, 1.0, 1.0)
    assert (0, 0, 255) in {colour for _, colour in views[-1].image.getcolors(10**6)}
    nothing = eye(view=view).look(picture, [], 112)
    assert [v.image.size for v in nothing] == [(112, 112) if view == "local" else (448, 300)]


def test_two_far_things_are_shown_side_by_side() -> None:
    picture = Image.new("RGB", (900, 900), "white")
    corners = [RegionNode((0, 0, 112, 112), 3), RegionNode((780, 780, 112, 112), 3)]
    (view,) = eye(apart=300).look(picture, corners, 112)
    assert view.image.size == (224, 224)
    (view,) = eye(apart=1000).look(picture, corners, 112)
    assert view.image.size == (892, 892)


# Around a model


class Painter:
    """A model that sees blue: it says yes when a good part of the image is blue."""

    size = 112

    def __init__(self, said: str = "So I need the information about the following objects: blue square.") -> None:
        self.said, self.prompts = said, list[str]()

    def ask(self, images: Sequence[Image.Image], question: str) -> str:
        self.prompts.append(question)
        return self.said if not images else f"{self._blue(images):.2f}"

    def yes(self, images: Sequence[Image.Image], question: str) -> float:
        self.prompts.append(question)
        return min(1.0, 4 * self._blue(images)) if "answer the question" in question else float(self._blue(images) > 0)

    def losses(self, images: Sequence[Image.Image], question: str, answers: Sequence[str]) -> list[float]:
        return [abs(float(answer) - self._blue(images)) for answer in answers]

    @staticmethod
    def _blue(images: Sequence[Image.Image]) -> float:
        pixels = images[-1].resize((56, 56), Image.Resampling.NEAREST).getcolors(10**6)
        return sum(n for n, (r, g, b) in pixels if b > 200 > r + g) / 56**2


def painted(*corners: tuple[int, int]) -> Image.Image:
    picture = Image.new("RGB", (896, 896), "white")
    for x, y in corners:
        ImageDraw.Draw(picture).rectangle((x, y, x + 60, y + 60), fill=(0, 0, 255))
    return picture


@pytest.mark.parametrize("view", ["local", "global"])
def test_a_small_thing_is_found_and_the_question_answered_from_it(view: str) -> None:
    model = Painter()
    done = eye(view=view).answer(model, painted((700, 120)), "What colour is the square?")
    assert done.cues == ("blue square",)
    assert float(done.text) > 0.15 and done.asked > 5 and done.pops >= 4
    ((x0, y0, x1, y1),) = done.boxes
    assert x0 <= 700 / 896 and x1 >= 760 / 896 and y0 <= 120 / 896 and y1 >= 180 / 896
    assert (x1 - x0) * (y1 - y0) <= 1 / 16
    assert len(done.views) == (1 if view == "local" else 2)
    assert "{}" not in "".join(model.prompts)


def test_options_are_told_apart_by_their_loss() -> None:
    done = eye().answer(Painter(), painted((100, 100)), "How blue is it?", options=["0.9", "0.3", "0.0"], cues=["blue square"])
    assert done.text == "0.3" and done.cues == ("blue square",)


def test_all_of_a_kind() -> None:
    done = eye().answer(Painter(), painted((100, 100), (600, 700)), "How many?", cues=["all blue squares"])
    assert len(done.boxes) >= 2 and done.pops == 0


def test_without_cues_the_whole_picture_is_looked_at() -> None:
    done = eye().answer(Painter(said="I do not know."), painted((0, 0)), "Is it blue?")
    assert done.cues == () and done.boxes == () and done.asked == 0
    assert [view.image.size for view in done.views] == [(112, 112)]
    assert eye().answer(Painter(), painted((0, 0)), "?", cues=["his bag"]).cues == ()


def test_in_the_global_view_things_in_plain_sight_are_not_searched() -> None:
    done = eye(view="global").answer(Painter(), Image.new("RGB", (300, 300), (0, 0, 255)), "?", cues=["wall", "sea"])
    assert done.cues == () and done.asked == 1 and len(done.views) == 1


def test_words() -> None:
    assert speaks_of_others("man and his bag") and not speaks_of_others("theatre")
    assert singular("red balloons") == "red balloon"


def test_it_is_registered_and_refuses_wrong_settings() -> None:
    assert registry.get("agents", "zoomeye").target is ZoomEye
    for wrong in ({"bias": 2.0}, {"steps": ()}, {"depth": 0}, {"crop_scale": 0.0}, {"prompts": {"existense": "?"}}):
        with pytest.raises(UserError):
            eye(**wrong)
