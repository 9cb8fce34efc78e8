"""Drawing of charts and documents.

Straight edges and text are drawn at the image's own resolution, lines and circles three times finer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from PIL import Image

from tessera.errors import UserError, unknown
from tessera.world.backgrounds import COLOURS, contrast_ink
from tessera.world.panel_charts import bar, line, pie
from tessera.world.panel_sheet import FRAME, GRID, INK, PAPER, Area, Drawn, Sheet, common_size, inset
from tessera.world.scene import Panel
from tessera.world.text import RGB, to_pixels

PanelKind = Literal["bar", "line", "pie", "table", "receipt"]
PANEL_KINDS: tuple[PanelKind, ...] = get_args(PanelKind)

_ROW: RGB = (232, 236, 242)


def draw_panel(image: Image.Image, panel: Panel) -> Drawn:
    """Draw `panel` on an RGB image in place.

    Returns:
        Every string with its box in the image's unit square and its role: "title", "label", "value" or
        "axis". A receipt's last two are "TOTAL" (label) and the sum (value).

    Raises:
        UserError: unknown kind or colour, or labels, values and colours that do not fit together.
    """
    _check(panel)
    sheet = Sheet(image)
    area = to_pixels(panel.box, *image.size)
    edge = max(1, min(area[2] - area[0], area[3] - area[1]) // 120)
    image.paste(FRAME, area)
    inner = inset(area, edge)
    image.paste(PAPER, inner)
    _PAINTERS[panel.kind](sheet, panel, inset(inner, edge))
    return sheet.drawn


def _check(panel: Panel) -> None:
    if panel.kind not in PANEL_KINDS:
        raise unknown("panel kind", panel.kind, PANEL_KINDS)
    if not len(panel.labels) == len(panel.values) == len(panel.colours) >= 1:
        raise UserError(
            f"a panel needs as many values and colours as labels: it has {len(panel.labels)} labels, "
            f"{len(panel.values)} values, {len(panel.colours)} colours."
        )
    for colour in panel.colours:
        if colour not in COLOURS:
            raise unknown("panel colour", colour, COLOURS)
    if min(panel.values) < 0 or (panel.kind == "pie" and (sum(panel.values) != 100 or min(panel.values) < 1)):
        raise UserError(f"values must not be negative, and a pie's are percent with sum 100, not {panel.values}.")


def _table(sheet: Sheet, panel: Panel, area: Area) -> None:
    x0, y0, x1, y1 = area
    count = len(panel.labels)
    rows = count + bool(panel.title)
    edges = [y0 + (y1 - y0) * i // rows for i in range(rows + 1)]
    split = x0 + (x1 - x0) * 56 // 100
    tall = (y1 - y0) / rows
    thick = max(1, (y1 - y0) // 120)
    accent = COLOURS[panel.colours[0]]
    values = [str(value) for value in panel.values]
    size = min(
        common_size(panel.labels, (split - x0) * 0.86, tall * 0.56),
        common_size(values, (x1 - split) * 0.8, tall * 0.56),
    )
    first = 0
    if panel.title:
        first = 1
        sheet.fill(accent, x0, edges[0], x1, edges[1])
        head = common_size([panel.title], (x1 - x0) * 0.9, tall * 0.56)
        sheet.write(panel.title, "title", (x0 + x1) / 2, (edges[0] + edges[1]) / 2, head, ink=contrast_ink(accent))
    for i, (label, value) in enumerate(zip(panel.labels, values, strict=True)):
        top, bottom = edges[first + i], edges[first + i + 1]
        if i % 2 == 0:
            sheet.fill(_ROW, x0, top, x1, bottom)
        sheet.fill(GRID, x0, bottom - thick if i + 1 < count else bottom, x1, bottom)
        middle = (top + bottom) / 2
        sheet.write(label, "label", x0 + (split - x0) * 0.07, middle, size, anchor=0)
        sheet.write(value, "value", x1 - (x1 - split) * 0.1, middle, size, anchor=1)
    sheet.fill(GRID, split, edges[first], split + thick, y1)


def _receipt(sheet: Sheet, panel: Panel, area: Area) -> None:
    x0, y0, x1, y1 = area
    lines = [*zip(panel.labels, map(str, panel.values), strict=True), ("TOTAL", str(sum(panel.values)))]
    row = (y1 - y0) / (len(lines) + bool(panel.title) + 0.8)
    pad = max(1, (x1 - x0) // 20)
    columns = max(len(label) for label, _ in lines) + 2 + max(len(value) for _, value in lines)
    size = common_size(["0" * columns, panel.title], x1 - x0 - 2 * pad, row * 0.62, "mono")
    middle = y0 + row * 0.65
    if panel.title:
        sheet.write(panel.title, "title", (x0 + x1) / 2, middle, size, face="mono")
        middle += row
    for i, (label, value) in enumerate(lines):
        if i + 1 == len(lines):
            thick = max(1, (y1 - y0) // 110)
            for x in range(x0 + pad, x1 - pad, 4 * thick):
                dash = int(middle - row * 0.4)
                sheet.fill(INK, x, dash, min(x + 2 * thick, x1 - pad), dash + thick)
            middle += row * 0.3
        sheet.write(label, "label", x0 + pad, middle, size, anchor=0, face="mono")
        sheet.write(value, "value", x1 - pad, middle, size, anchor=1, face="mono")
        middle += row


_PAINTERS: dict[PanelKind, Callable[[Sheet, Panel, Area], None]] = {
    "bar": bar,
    "line": line,
    "pie": pie,
    "table": _table,
    "receipt": _receipt,
}
