"""Where things are: relation, position, distance, box, at."""

from __future__ import annotations

from tessera.world.questions.base import ask, others, question_type, yes_no
from tessera.world.questions.boxes import box_cells, box_iou, box_text, cell_box, cells_text, iou
from tessera.world.questions.facts import AXES, GAP, THIRD_MARGIN, Facts, Frame, FrameThing
from tessera.world.questions.phrasing import DIRECTION_WORDS, OPPOSITE, POSITIONS, phrase, reason
from tessera.world.rng import Rng
from tessera.world.scene import Question

_NINTHS = tuple(p for row in POSITIONS for p in row)
# Centres are seldom near the rim: outer ninths are preferred, so that all nine are about equally frequent.
_WEIGHTS = {"center": 1.0, "top": 2.0, "left": 2.0, "right": 2.0, "bottom": 2.0}
_CORNER_WEIGHT = 4.0
_MAX_OVERLAP = 0.3  # of another thing's box with the box that is asked about


@question_type("relation", "open", "yesno", "choice")
def relation(facts: Facts, rng: Rng) -> list[Question]:
    """What is beside a thing, where that is one thing only; and whether one thing is beside another."""
    frame = facts.single
    if frame is None or len(frame.items) < 2:
        return []
    made: list[Question] = []
    cases = [(ref, way, there[0]) for ref, way, there in frame.references() if len(there) == 1 and there[0].askable]
    if cases:
        ref, way, found = rng.choice(cases)
        wrong, offered = facts.wrong_names(frame, rng, found, ref)
        made.append(
            ask(
                "relation",
                rng,
                phrase(rng, "beside", first=not frame.only_things, direction=DIRECTION_WORDS[way], name=ref.name),
                found.name,
                reason("beside", a=found.name, b=ref.name, direction=DIRECTION_WORDS[way]),
                ((frame.index, found.box), (frame.index, ref.box)),
                (("op", "beside"), ("concept", ref.concept), ("direction", way)),
                wrong=wrong,
                offered=offered,
            )
        )
    for _ in range(2):
        question = _is_beside(frame, rng)
        if question is not None and all(q.query != question.query for q in made):
            made.append(question)
    return made


def _is_beside(frame: Frame, rng: Rng) -> Question | None:
    if len(frame.askable) < 2:
        return None
    for _ in range(3):
        a, b = rng.pick(frame.askable, 2)
        axis = rng.below(2)
        gaps = (b.x - a.x, b.y - a.y)
        if abs(gaps[axis]) < GAP:
            axis = 1 - axis
        if abs(gaps[axis]) < GAP:
            continue
        way = AXES[axis][0 if gaps[axis] > 0 else 1]
        true = rng.chance(0.5)
        said = way if true else OPPOSITE[way]
        return yes_no(
            "relation",
            phrase(rng, "is_beside", a=a.name, b=b.name, direction=DIRECTION_WORDS[said]),
            true,
            reason("beside", a=a.name, b=b.name, direction=DIRECTION_WORDS[way]),
            ((frame.index, a.box), (frame.index, b.box)),
            (("op", "is_beside"), ("a", a.concept), ("b", b.concept), ("direction", said)),
        )
    return None


@question_type("position", "open", "choice")
def position(facts: Facts, rng: Rng) -> list[Question]:
    """In which ninth of the picture a thing is."""
    frame = facts.single
    if frame is None:
        return []
    found: list[FrameThing] = []
    weights: list[float] = []
    for item in frame.askable:
        if all(abs(v - third) >= THIRD_MARGIN for v in (item.x, item.y) for third in (1 / 3, 2 / 3)):
            found.append(item)
            weights.append(_WEIGHTS.get(item.place, _CORNER_WEIGHT))
    if not found:
        return []
    item = rng.weighted(found, weights)
    wrong = others(rng, _NINTHS, item.place)
    return [
        ask(
            "position",
            rng,
            phrase(rng, "where", name=item.name),
            item.place,
            reason("where", name=item.name, place=item.place),
            ((frame.index, item.box),),
            (("op", "where"), ("concept", item.concept)),
            wrong=wrong,
            offered=wrong,
        )
    ]


@question_type("distance", "open", "choice")
def distance(facts: Facts, rng: Rng) -> list[Question]:
    """Which thing is nearest to another one, or farthest from it."""
    frame = facts.single
    if frame is None or len(frame.items) < 3:
        return []
    made: list[Question] = []
    for nearest in (True, False):
        for ref in rng.pick(frame.askable, 3):
            item = frame.extreme(ref, nearest=nearest)
            if item is None or not item.askable:
                continue
            op = "nearest" if nearest else "farthest"
            wrong, offered = facts.wrong_names(frame, rng, item, ref)
            made.append(
                ask(
                    "distance",
                    rng,
                    phrase(rng, op, name=ref.name),
                    item.name,
                    reason(op, a=item.name, b=ref.name),
                    ((frame.index, item.box), (frame.index, ref.box)),
                    (("op", op), ("concept", ref.concept)),
                    wrong=wrong,
                    offered=offered,
                )
            )
            break
    return made


@question_type("box", "open")
def box(facts: Facts, rng: Rng) -> list[Question]:
    """The box of a thing as text."""
    frame = facts.single
    if frame is None:
        return []
    made: list[Question] = []
    for item in rng.pick(frame.askable, 2):
        answer = box_text(item.box)
        wrong = [t for t in dict.fromkeys(box_text(i.box) for i in frame.items) if t != answer][:3]
        for _ in range(20):
            if len(wrong) == 3:
                break
            shifted = _shifted(rng, box_cells(item.box))
            if iou(shifted, box_cells(item.box)) < 0.5 and cells_text(shifted) not in wrong:
                wrong.append(cells_text(shifted))
        made.append(
            ask(
                "box",
                rng,
                phrase(rng, "box", name=item.name),
                answer,
                reason("box", name=item.name, box=answer),
                ((frame.index, item.box),),
                (("op", "box"), ("concept", item.concept)),
                wrong=wrong,
            )
        )
    return made


def _shifted(rng: Rng, cells: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """A box of about the same size elsewhere."""
    x0, y0, x1, y1 = cells
    width, height = min(98, x1 - x0 + rng.below(3)), min(98, y1 - y0 + rng.below(3))
    x, y = rng.below(100 - width), rng.below(100 - height)
    return x, y, x + width, y + height


@question_type("at", "open", "choice")
def at(facts: Facts, rng: Rng) -> list[Question]:
    """What is in a box, or in a quarter of the picture."""
    frame = facts.single
    if frame is None:
        return []
    made: list[Question] = []
    for item in rng.pick(frame.askable, 2):
        cells = box_cells(item.box)
        if not _alone(frame, item, cell_box(cells)):
            continue
        text = cells_text(cells)
        wrong, offered = facts.wrong_names(frame, rng, item)
        made.append(
            ask(
                "at",
                rng,
                phrase(rng, "at_box", first=not frame.only_things, box=text),
                item.name,
                reason("box", name=item.name, box=text),
                ((frame.index, item.box),),
                (("op", "at_box"), ("box", cells)),
                wrong=wrong,
                offered=offered,
            )
        )
    corners = [(region, item) for region, item in frame.quadrants().items() if item.askable]
    if corners:
        region, item = rng.choice(corners)
        wrong, offered = facts.wrong_names(frame, rng, item)
        made.append(
            ask(
                "at",
                rng,
                phrase(rng, "at_region", first=not frame.only_things, region=region),
                item.name,
                reason("at_region", name=item.name, region=region),
                ((frame.index, item.box),),
                (("op", "at_region"), ("region", region)),
                wrong=wrong,
                offered=offered,
            )
        )
    return made


def _alone(frame: Frame, item: FrameThing, region: tuple[float, float, float, float]) -> bool:
    """Whether no other thing has its centre in the region or fills a good part of it."""
    x0, y0, x1, y1 = region
    for other in frame.items:
        if other is item:
            continue
        if x0 <= other.x <= x1 and y0 <= other.y <= y1:
            return False
        if box_iou(other.box, region) > _MAX_OVERLAP:
            return False
    return True
