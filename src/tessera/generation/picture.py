"""A question, its images and the answer as one picture; a box in the answer is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from tessera.errors import UserError
from tessera.world.look import PALETTE, BoxDrawing, enlarged
from tessera.world.questions import cell_box, parse_box
from tessera.world.scene import Box
from tessera.world.text import load_font

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_PAPER, _INK, _FAINT = (250, 250, 248), (28, 28, 32), (110, 110, 116)
_GAP, _SIZE = 12, 18


def box_of(answer: str) -> Box | None:
    """The region of the unit square that an answer such as "12 20 45 60" names, or None if it names none."""
    cells = parse_box(answer)
    return None if cells is None else cell_box(cells)


def picture(images: Sequence[Image.Image], question: str, answer: str) -> Image.Image:
    """The images side by side, question and answer below; a box is drawn into the first image, which it is about."""
    box = box_of(answer)
    canvases = [BoxDrawing(enlarged(image)) for image in images]
    if box is not None and canvases:
        canvases[0].box(box, PALETTE[0], answer, strong=2.0)
    drawn = [canvas.finish() for canvas in canvases]
    height = max(image.height for image in drawn)
    width = max(320, sum(image.width + _GAP for image in drawn) + _GAP)
    asked, said = load_font(_SIZE - 3), load_font(_SIZE)
    lines = [(line, asked, _FAINT) for line in wrapped(question, width - 2 * _GAP, asked)]
    lines += [(line, said, _INK) for line in wrapped(answer or "(nothing)", width - 2 * _GAP, said)]
    sheet = Image.new("RGB", (width, height + 3 * _GAP + len(lines) * (_SIZE + 6)), _PAPER)
    x = _GAP
    for image in drawn:
        sheet.paste(image, (x, _GAP))
        x += image.width + _GAP
    draw = ImageDraw.Draw(sheet)
    for number, (line, font, ink) in enumerate(lines):
        draw.text((_GAP, height + 2 * _GAP + (number + 1) * (_SIZE + 6) - 6), line, fill=ink, font=font, anchor="ls")
    return sheet


def picture_format(path: Path) -> str:
    """Pillow's name of the format that a file name asks for. Raises `UserError` for others than PNG, JPEG and WebP."""
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"--save wants a file that ends in {', '.join(FORMATS)}; got {path}.")
    return FORMATS[path.suffix.lower()]


def wrapped(text: str, width: int, font: ImageFont.FreeTypeFont) -> list[str]:
    """The text in lines of at most `width` pixels; a longer word is cut."""
    lines: list[str] = []
    for word in text.split():
        while font.getlength(word) > width:
            fits = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or font.getlength(word[:n]) <= width)
            lines.append(word[:fits])
            word = word[fits:]
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
