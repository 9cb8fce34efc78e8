"""Pictures of samples with the ground truth drawn in, for people who want to see what a model is asked about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFont

from tessera.world.dataset import Sample
from tessera.world.scene import Box, Change, Truth
from tessera.world.text import load_font

RGB = tuple[int, int, int]
PixelBox = tuple[float, float, float, float]

PALETTE: tuple[RGB, ...] = (
    (214, 39, 40), (31, 119, 180), (44, 140, 44), (148, 70, 200), (230, 110, 10), (0, 150, 160),
    (200, 30, 130), (110, 80, 60), (90, 100, 20), (70, 80, 220), (170, 110, 0), (60, 70, 80),
)  # fmt: skip
_PAPER, _INK, _FAINT, _WRITING, _STRING = (250, 250, 248), (28, 28, 32), (120, 120, 126), (20, 24, 30), (0, 120, 130)
_SIDE, _LARGEST, _WIDTH, _GAP, _ACROSS = 336, 512, 1440, 20, 4


@dataclass(slots=True)
class BoxDrawing:
    """An image on which boxes are drawn at once and their labels at the end, each where it covers the least of the others."""

    image: Image.Image
    _labels: list[tuple[PixelBox, str, RGB, bool]] = field(default_factory=list)
    _taken: list[PixelBox] = field(default_factory=list)

    @property
    def unit(self) -> int:
        """The height of small writing in pixels."""
        return max(10, round(min(self.image.size) / 30))

    def box(self, box: Box, colour: RGB, label: str = "", *, strong: float = 1.0, beside: bool = False) -> None:
        """The outline of a box of the unit square with a pale rim; its label above or below it, or `beside` it."""
        x0, y0, x1, y1 = self._pixels(box)
        width = max(1, round(strong * min(self.image.size) / 170))
        draw = ImageDraw.Draw(self.image)
        draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=(255, 255, 255), width=width + 2)
        draw.rectangle((x0, y0, x1, y1), outline=colour, width=width)
        if label:
            self._labels.append(((x0, y0, x1, y1), label, colour, beside))
        if beside:  # what stands in the box is to be read as well
            self._taken.append((x0, y0, x1, y1))

    def finish(self) -> Image.Image:
        """Writes the labels and gives the image."""
        for around, text, colour, beside in self._labels:
            self._label(around, text, colour, beside)
        self._labels.clear()
        return self.image

    def _pixels(self, box: Box) -> tuple[int, int, int, int]:
        """A box of the unit square in whole pixels, inside the image."""
        w, h = self.image.size
        x0, y0, x1, y1 = (round(v * s) for v, s in zip(box, (w, h, w, h), strict=True))
        return max(0, x0), max(0, y0), min(w - 1, max(x0 + 1, x1)), min(h - 1, max(y0 + 1, y1))

    def _label(self, around: PixelBox, text: str, colour: RGB, beside: bool) -> None:
        font = load_font(self.unit)
        wide, tall = round(font.getlength(text)) + 6, self.unit + 5
        x0, y0, x1, y1 = around
        places = [
            (x, y)
            for y in (y0 - tall, y1 + 1, y0 + 2, y1 - tall - 2, y1 + tall + 1, y0 - 2 * tall)
            for x in (x0 - 1, x1 - wide + 2, (x0 + x1 - wide) / 2)
        ]
        if beside:
            middle = (y0 + y1 - tall) / 2
            places = [(x1 + 2, middle), (x0 - wide - 1, middle), *places]
        spots = [self._inside(x, y, wide, tall) for x, y in places]
        spot = min(spots, key=lambda s: (round(self._crowded(s)), spots.index(s)))
        self._taken.append(spot)
        draw = ImageDraw.Draw(self.image)
        draw.rectangle((spot[0], spot[1], spot[2] - 1, spot[3] - 1), fill=colour)
        draw.text((spot[0] + 3, spot[3] - 4), text, fill=(255, 255, 255), font=font, anchor="ls")

    def _inside(self, x: float, y: float, wide: float, tall: float) -> PixelBox:
        w, h = self.image.size
        x, y = min(max(0, x), max(0, w - wide)), min(max(0, y), max(0, h - tall))
        return x, y, x + wide, y + tall

    def _crowded(self, spot: PixelBox) -> float:
        """Square pixels of labels that one at `spot` would cover."""
        return sum(self._over(spot, taken) for taken in self._taken)

    @staticmethod
    def _over(a: PixelBox, b: PixelBox) -> float:
        return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def enlarged(image: Image.Image, side: int = _SIDE) -> Image.Image:
    """The image with a shorter side of about `side` pixels: small ones by a whole factor, pixel for pixel."""
    shorter = min(image.size)
    if shorter < side:
        factor = max(1, round(side / shorter))
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    if shorter > max(side, _LARGEST):
        scale = max(side, _LARGEST) / shorter
        return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    return image.copy()


def pictures(sample: Sample, *, truth: bool = True, side: int = _SIDE) -> list[Image.Image]:
    """Every frame of the sample, enlarged, with its ground truth drawn in if `truth`.

    Things: their box, depth rank (0 is farthest), name, tint, and how much of them is visible where not all of it is. Signs and
    panels: every string with its box. Pairs and clips: what changes, on the thing concerned.
    """
    drawn = []
    for number, drawing in enumerate(sample.drawings()):
        canvas = BoxDrawing(enlarged(drawing.image, side))
        if truth:
            for text, box, *_ in drawing.strings:
                canvas.box(box, _STRING, text.strip(), strong=0.5, beside=True)
            for _, box in drawing.characters:
                canvas.box(box, _STRING, strong=0.5)
            for sign in sample.frames[number].signs:
                canvas.box(sign.box, _WRITING, sign.text)
            for found in sample.truth(number):
                changed = [c for c in sample.changes if found.key in (c.key, c.other)]
                strong = 2.0 if changed else 1.0
                canvas.box(found.box, PALETTE[found.key % len(PALETTE)], _name(found, changed, number), strong=strong)
        drawn.append(canvas.finish())
    return drawn


def _name(found: Truth, changes: Sequence[Change], frame: int) -> str:
    parts = [f"{found.depth} {found.name}"]
    if found.tint:
        parts.append(found.tint)
    if found.visible < 0.995:
        parts.append(f"{100 * found.visible:.0f} %")
    # What happened to it is said from the frame on that shows it; what will be gone, while it is there.
    parts += [f"{c.kind} {c.direction}".strip() for c in changes if frame >= c.frame or c.kind in ("removed", "vanishes")]
    return ", ".join(parts)


def contact_sheet(samples: Sequence[Sample], *, truth: bool = True, side: int = _SIDE) -> Image.Image:
    """All samples on one RGB sheet, each with its number, kind and short caption; frames stand side by side.

    side: the pixels to which small frames are enlarged.
    """
    cards = [_card(sample, truth, side) for sample in samples]
    width = max([_WIDTH, *(card.width + 2 * _GAP for card in cards)])
    rows: list[list[Image.Image]] = []
    used = width
    for card in cards:
        if used + _GAP + card.width > width - _GAP:
            rows.append([])
            used = 0
        rows[-1].append(card)
        used += _GAP + card.width
    height = sum(max(c.height for c in row) + _GAP for row in rows) + _GAP
    right = max((sum(c.width + _GAP for c in row) + _GAP for row in rows), default=width)
    sheet = Image.new("RGB", (right, height), _PAPER)
    y = _GAP
    for row in rows:
        x = _GAP
        for card in row:
            sheet.paste(card, (x, y))
            x += card.width + _GAP
        y += max(c.height for c in row) + _GAP
    return sheet


def _card(sample: Sample, truth: bool, side: int) -> Image.Image:
    frames = pictures(sample, truth=truth, side=side)
    across = min(len(frames), _ACROSS)
    w, h = frames[0].size
    rows = [frames[i : i + across] for i in range(0, len(frames), across)]
    wide = across * w + (across - 1) * _GAP // 2
    head, font = load_font(15), load_font(12)
    lines = _wrapped(sample.captions()["short"], wide, font)[:3]
    tall = 24 + len(rows) * (h + _GAP // 2) + 16 * len(lines) + 4
    card = Image.new("RGB", (wide, tall), _PAPER)
    draw = ImageDraw.Draw(card)
    title = f"{sample.config.split}:{sample.index}"
    draw.text((0, 15), title, fill=_INK, font=head, anchor="ls")
    about = sample.kind + (f", {len(frames)} frames" if len(frames) > 1 else "")
    draw.text((head.getlength(title) + 10, 15), about, fill=_FAINT, font=font, anchor="ls")
    y = 24
    for row in rows:
        for i, frame in enumerate(row):
            card.paste(frame, (i * (w + _GAP // 2), y))
        y += h + _GAP // 2
    for i, line in enumerate(lines):
        draw.text((0, y + 12 + 16 * i), line, fill=_FAINT, font=font, anchor="ls")
    return card


def _wrapped(text: str, width: int, font: ImageFont.FreeTypeFont) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
