"""Charts and documents from data: what stands in them; `draw_panel`, which draws them, is in `panel_draw`.

Values of one panel differ from each other, and the highest and the lowest by at least 5 from the next, so
that each question about them has one answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from tessera.errors import UserError, unknown
from tessera.world.panel_charts import has_axis, labels_inside
from tessera.world.panel_draw import PANEL_KINDS, PanelKind, draw_panel
from tessera.world.rng import Rng
from tessera.world.scene import Box, Panel

__all__ = [
    "CHART_COLOURS",
    "LABELS",
    "PANEL_KINDS",
    "TITLES",
    "PanelKind",
    "draw_panel",
    "has_axis",
    "sample_panel",
]

CHART_COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "pink", "brown", "teal")

_LABELS = """
AD AI AM CD DJ EP EU FM GO HQ HR ID IN IP IT LA LP MY NO NY OK ON OS OX PC PI PM TV UK UN UP US UV WE
AIR ANT APP ART BAG BAR BED BEE BIN BOX BUS CAB CAN CAP CAR CAT COD COW CUP DAY DEN DOG EEL EGG ELM FAN FIG
FIN FIR FOX FUN GAS GYM HAM HAT HEN HIP ICE INK IVY JAM JAR JET JOY KEY KIT LAB LEG LID LIP MAP MUG NET NUT
OAK OIL OWL PAN PEA PEN PET PIE PIG PIN POT RAM RAT RED RIB RUM RYE SEA SKI SKY SUN TAX TEA TIE TIN TIP TOY
VAN WAX WEB YAK ZIP ZOO JAN FEB MAR APR MAY JUN JUL AUG SEP OCT NOV DEC MON TUE WED THU FRI SAT
BEEF BIKE BOAT BOOK CAKE CORN DUCK FISH FOOD GOAT GOLD KIWI LAMB LIME MILK PEAR PLUM RICE SALT SHOP SOAP TAXI
WINE WOOL
"""
LABELS: tuple[str, ...] = tuple(_LABELS.split())
TITLES: tuple[str, ...] = (
    "SALES",
    "SCORE",
    "STOCK",
    "VOTES",
    "GOALS",
    "COSTS",
    "VISITS",
    "POINTS",
    "RESULT",
    "REPORT",
)
_SHOPS = ("SHOP", "MARKET", "CAFE", "STORE", "DINER", "KIOSK")

# What a label may measure, in hundredths of an em of DejaVu Sans Bold, so that it is still read in a column
# of an image of 112 px; by the number of columns, without and with an axis beside them.
_ROOM = {3: (320, 250), 4: (240, 195), 5: (185, 160), 6: (157, 0)}
_WIDTHS = dict(
    zip(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        (
            77,
            76,
            73,
            83,
            68,
            68,
            82,
            84,
            37,
            37,
            77,
            64,
            100,
            84,
            85,
            73,
            85,
            77,
            72,
            68,
            81,
            77,
            110,
            77,
            72,
            73,
        ),
        strict=True,
    )
)
_AXIS_SHARE = {"bar": 0.35, "line": 0.25}
_LINE_COLOURS = tuple(colour for colour in CHART_COLOURS if colour not in ("yellow", "pink"))  # too light for lines


def sample_panel(rng: Rng, kinds: Sequence[PanelKind] = PANEL_KINDS) -> Panel:
    """A random panel of one of `kinds`, legible in an image of 112 px or more.

    Bars and slices have different colours; a line and a table's head have one, repeated for each label, and a
    receipt's is not drawn. Values: whole numbers 1..99, or tens up to 100 where they are to be read off an
    axis (see `has_axis`); a pie's are multiples of 5 with sum 100.

    Raises:
        UserError: no kinds, or an unknown one.
    """
    for kind in kinds:
        if kind not in PANEL_KINDS:
            raise unknown("panel kind", kind, PANEL_KINDS)
    if not kinds:
        raise UserError(f"a panel needs at least one kind of {', '.join(PANEL_KINDS)}.")
    kind = rng.choice(kinds)
    title = rng.choice(_SHOPS if kind == "receipt" else TITLES) if rng.chance(0.4) else ""
    if kind in ("bar", "line"):
        axis = rng.chance(_AXIS_SHARE[kind])
        count = rng.integer(3, 5 if axis else 6)
        labels = tuple(rng.pick(_narrow(_ROOM[count][axis]), count))
        values = _spread(rng, range(10, 101, 10), count) if axis else _no_tens(rng, count)
    elif kind == "pie":
        count = rng.weighted((3, 4, 5), (4, 4, 3))
        values = _shares(rng, count)
        labels = tuple(rng.pick(_narrow(215 if labels_inside(values) else 260), count))
    else:
        count = rng.integer(3, 6) if kind == "table" else rng.integer(2, 5)
        labels = tuple(rng.pick(_narrow(320), count))
        values = _spread(rng, range(1, 31) if kind == "receipt" and rng.chance(0.5) else range(1, 100), count)
    if kind in ("bar", "pie"):
        colours = tuple(rng.pick(CHART_COLOURS, count))
    else:
        colours = (rng.choice(_LINE_COLOURS if kind == "line" else CHART_COLOURS),) * count
    return Panel(kind=kind, labels=labels, values=values, colours=colours, box=_box(rng, kind, count), title=title)


@cache
def _narrow(room: int) -> tuple[str, ...]:
    """The labels no wider than `room`, without the shortest where there is room for longer ones."""
    shortest = 3 if room > 200 else 2
    return tuple(label for label in LABELS if len(label) >= shortest and sum(_WIDTHS[letter] for letter in label) <= room)


def _spread(rng: Rng, among: range, count: int) -> tuple[int, ...]:
    """Different values of which the highest and the lowest stand at least 5 apart from the next."""
    while True:
        values = rng.pick(among, count)
        ordered = sorted(values)
        if ordered[1] - ordered[0] >= 5 and ordered[-1] - ordered[-2] >= 5:
            return tuple(values)


def _no_tens(rng: Rng, count: int) -> tuple[int, ...]:
    """Values that are written beside their marks; all tens would mean an axis."""
    while True:
        values = _spread(rng, range(1, 100), count)
        if any(value % 10 for value in values):
            return values


def _shares(rng: Rng, count: int) -> tuple[int, ...]:
    """Different multiples of 5 with sum 100."""
    while True:
        parts = rng.pick(range(1, 15), count - 1)
        last = 20 - sum(parts)
        if last > 0 and last not in parts:
            return tuple(5 * part for part in (*parts, last))


def _box(rng: Rng, kind: str, count: int) -> Box:
    """A place in the unit square, large enough for the kind."""
    if kind == "receipt":
        width, height = rng.uniform(0.66, 0.84), min(0.96, 0.30 + 0.13 * count + rng.uniform(0.0, 0.1))
    elif kind == "table":
        width, height = rng.uniform(0.70, 0.96), min(0.96, 0.22 + 0.13 * count + rng.uniform(0.0, 0.1))
    else:
        width, height = rng.uniform(0.91, 0.98), rng.uniform(0.87 if kind == "pie" else 0.80, 0.98)
    x, y = rng.uniform(0.01, 0.99 - width), rng.uniform(0.01, 0.99 - height)
    return x, y, x + width, y + height
