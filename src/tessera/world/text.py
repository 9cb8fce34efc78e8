"""Writing on images with the bundled DejaVu fonts: fitted lines, signs, and the box of every character.

Characters are set one after the other at whole-pixel advances, without kerning or shaping, so that a
character's box is known exactly and the same Pillow gives the same bytes on every machine.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

from tessera.world.rng import Rng
from tessera.world.scene import Box, Sign

RGB = tuple[int, int, int]
PixelBox = tuple[float, float, float, float]
Face = Literal["bold", "mono"]

ALPHABET = string.ascii_uppercase + string.digits  # what signs and labels are written in
CHART_ALPHABET = ALPHABET + "% "  # what panels are written in

SIGN_COLOURS: tuple[tuple[str, RGB, RGB], ...] = (  # name, board, ink
    ("white", (250, 250, 248), (18, 18, 22)),
    ("black", (26, 26, 30), (250, 250, 250)),
    ("yellow", (250, 214, 40), (20, 20, 20)),
    ("blue", (30, 78, 190), (255, 255, 255)),
    ("red", (196, 30, 38), (255, 255, 255)),
    ("green", (22, 122, 56), (255, 255, 255)),
)

_FONTS = Path(__file__).with_name("fonts")
_FILES: dict[Face, str] = {"bold": "DejaVuSans-Bold.ttf", "mono": "DejaVuSansMono-Bold.ttf"}
_CACHED_SIZE = 64  # glyphs of larger sizes are not kept, so that the cache stays below some 10 MB


@lru_cache(maxsize=128)
def load_font(size: int, face: Face = "bold") -> ImageFont.FreeTypeFont:
    """DejaVu of `size` pixels per em; capitals are 0.73 em high, J and Q reach at most 0.2 em below."""
    return ImageFont.truetype(str(_FONTS / _FILES[face]), size, layout_engine=ImageFont.Layout.BASIC)


@dataclass(frozen=True, slots=True)
class _Glyph:
    mask: Image.Image | None  # mode "L", None when there is no ink
    left: int  # ink relative to the pen and the baseline, y down
    top: int
    right: int
    bottom: int
    advance: int


def _make_glyph(char: str, size: int, face: Face) -> _Glyph:
    font = load_font(size, face)
    advance = max(1, int(font.getlength(char) + 0.5))
    pad = size // 2 + 2
    canvas = Image.new("L", (advance + 2 * pad, 2 * size + 2 * pad), 0)
    baseline = size + pad
    ImageDraw.Draw(canvas).text((pad, baseline), char, fill=255, font=font, anchor="ls")
    ink = canvas.getbbox()
    if ink is None:
        return _Glyph(None, 0, 0, advance, 0, advance)
    return _Glyph(canvas.crop(ink), ink[0] - pad, ink[1] - baseline, ink[2] - pad, ink[3] - baseline, advance)


_cached_glyph = lru_cache(maxsize=4096)(_make_glyph)


def _glyphs(text: str, size: int, face: Face) -> list[_Glyph]:
    make = _cached_glyph if size <= _CACHED_SIZE else _make_glyph
    return [make(char, size, face) for char in text]


def _extent(glyphs: list[_Glyph]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a line relative to the first pen position on the baseline; advances and all
    ink are inside.
    """
    pen = left = right = top = bottom = 0
    for glyph in glyphs:
        left, right = min(left, pen + glyph.left), max(right, pen + glyph.right)
        top, bottom = min(top, glyph.top), max(bottom, glyph.bottom)
        pen += glyph.advance
    return left, top, max(right, pen), bottom


@lru_cache(maxsize=4096)
def text_layout(text: str, height_px: int, face: Face = "bold") -> tuple[ImageFont.FreeTypeFont, int]:
    """The font of `height_px` pixels per em (at least 1) and the width in pixels of `text` set in it."""
    size = max(1, int(height_px))
    left, _, right, _ = _extent(_glyphs(text, size, face))
    return load_font(size, face), right - left


def sign_aspect(text: str) -> float:
    """Natural width of a sign's board divided by its height, margins included."""
    return (text_layout(text, _CACHED_SIZE)[1] + 32) / 80


def fit_size(text: str, width: float, height: float, face: Face = "bold") -> int:
    """The largest font size (pixels per em, at least 1) whose line of `text`, ink and advances, fits `width`
    x `height` pixels.
    """
    _, wide = text_layout(text, _CACHED_SIZE, face)
    size = max(1, min(int(height / 0.70), int(width * _CACHED_SIZE / max(1, wide))) + 2)
    while size > 1:
        left, top, right, bottom = _extent(_glyphs(text, size, face))
        if right - left <= width and bottom - top <= height:
            break
        size -= 1
    return size


def draw_line(image: Image.Image, text: str, x: int, baseline: int, size: int, ink: RGB, face: Face = "bold") -> list[PixelBox]:
    """Write `text` from pen position `x` on `baseline` in place; the box of each character in pixels.

    The boxes stand side by side, one advance wide; the first and the last reach out to their ink where that
    overhangs. All are as high as the line's ink.
    """
    glyphs = _glyphs(text, size, face)
    left, top, right, bottom = _extent(glyphs)
    boxes: list[PixelBox] = []
    pen = x
    for glyph in glyphs:
        if glyph.mask is not None:
            image.paste(ink, (pen + glyph.left, baseline + glyph.top), glyph.mask)
        boxes.append((pen, baseline + top, pen + glyph.advance, baseline + bottom))
        pen += glyph.advance
    if boxes:
        boxes[0] = (x + left, *boxes[0][1:])
        boxes[-1] = (*boxes[-1][:2], x + right, boxes[-1][3])
    return boxes


def draw_text(image: Image.Image, text: str, box_px: PixelBox, ink: RGB, fit: bool = True, face: Face = "bold") -> list[PixelBox]:
    """Write one line, its ink centred in the box `(x0, y0, x1, y1)` in pixels, in place; the box of each
    character in pixels.

    With `fit` the font is the largest that stays inside the box (1 px per em at the least); without, its size
    follows from the box's height alone and a long line runs out at both sides.
    """
    x0, y0, x1, y1 = box_px
    if not text:
        return []
    size = fit_size(text, x1 - x0, y1 - y0, face) if fit else max(1, int((y1 - y0) / 0.95))
    left, top, right, bottom = _extent(_glyphs(text, size, face))
    x = _middle(x0, x1, right - left) - left
    baseline = _middle(y0, y1, bottom - top) - top
    return draw_line(image, text, x, baseline, size, ink, face)


def _middle(low: float, high: float, length: int) -> int:
    """The whole-pixel start of `length` pixels centred between `low` and `high`, inside if there is room."""
    start = int((low + high - length) / 2 + 0.5)
    if high - low >= length:  # rounding must not push it over the edge
        if start + length > high:
            start -= 1
        if start < low:
            start += 1
    return start


def to_pixels(box: Box, width: int, height: int) -> tuple[int, int, int, int]:
    """A unit-square box in whole pixels of an image `width` x `height`, at least one pixel each way."""
    x0, y0 = int(box[0] * width + 0.5), int(box[1] * height + 0.5)
    return x0, y0, max(x0 + 1, int(box[2] * width + 0.5)), max(y0 + 1, int(box[3] * height + 0.5))


def draw_sign(image: Image.Image, sign: Sign) -> list[tuple[str, Box]]:
    """Draw a board with its text in place: each character and its box in the unit square, left to right."""
    width, height = image.size
    x0, y0, x1, y1 = to_pixels(sign.box, width, height)
    _, fill, ink = SIGN_COLOURS[sign.palette % len(SIGN_COLOURS)]
    tall = y1 - y0
    edge = max(1, tall // 24)
    side, rise = edge + max(1, tall // 12), edge + max(1, tall // 10)
    image.paste(ink, (x0, y0, x1, y1))
    image.paste(fill, (x0 + edge, y0 + edge, max(x0 + edge, x1 - edge), max(y0 + edge, y1 - edge)))
    inner = (x0 + side, y0 + rise, max(x0 + side + 1, x1 - side), max(y0 + rise + 1, y1 - rise))
    boxes = draw_text(image, sign.text, inner, ink)
    return [
        (char, (left / width, top / height, right / width, bottom / height))
        for char, (left, top, right, bottom) in zip(sign.text, boxes, strict=True)
    ]


def random_text(rng: Rng) -> str:
    """What a sign may say, of `ALPHABET`: random letters and digits (2 to 6, mostly 4), words, numbers."""
    sort = rng.weighted(("letters", "mixed", "word", "number"), (7, 4, 7, 2))
    if sort == "word":
        return rng.choice(WORDS)
    if sort == "number":
        return str(rng.below(10 ** rng.integer(1, 4)))
    length = rng.weighted((2, 3, 4, 5, 6), (1, 2, 5, 2, 1))
    letters = string.ascii_uppercase if sort == "letters" else ALPHABET
    return "".join(rng.choice(letters) for _ in range(length))


_WORDS = """
AIR ALL AND ANT APPLE ARM ART BABY BACK BAG BAKE BALL BAND BANK BAR BATH BAY BEACH BEAN BEAR BED BEE BELL
BELT BEST BIG BIKE BIRD BLUE BOAT BOOK BOOT BOWL BOX BOY BREAD BROWN BUS BUY CAB CAFE CAKE CALL CAMP CANDY
CAR CARD CARE CASH CAT CHAIR CHEAP CITY CLEAN CLOCK CLOSED CLUB COAL COAT COFFEE COLD COOK COOL CORN COW
CREAM CROSS CUP CUT DANCE DANGER DARK DAY DEAL DEER DESK DINER DOCK DOG DOOR DOWN DRAW DRESS DRINK DRIVE
DRUM DRY DUCK EAR EAST EASY EGG EIGHT END ENTER EVEN EXIT EYE FACE FALL FARM FAST FEET FILM FIND FIRE FISH
FIVE FLAG FLOOR FLOUR FLY FOOD FOOT FOR FORK FOUR FOX FREE FRESH FROG FRONT FRUIT FUN GAME GARDEN GAS GATE
GIFT GIRL GLASS GO GOAL GOAT GOLD GOOD GRASS GREEN GYM HALF HALL HAND HAPPY HARD HAT HEART HELP HEN HERE
HIGH HILL HOME HONEY HORSE HOT HOTEL HOUSE HOUR ICE INK INN JAM JAR JET JOB JOY JUICE JUMP KEEP KEY KIND
KING KITE KIWI LAKE LAMP LAND LAST LATE LEAF LEFT LEG LEMON LIFT LIGHT LIME LION LIVE LOCK LONG LOOK LOVE
LOW LUNCH MAIL MAP MARKET MEAL MEAT MENU MILK MINT MOON MORE MOUSE MUSIC NAIL NET NEW NEWS NEXT NICE NIGHT
NINE NO NORTH NOSE NOW NUT OAK OFF OIL OLD ON ONE ONLY OPEN ORANGE OUT OVEN OWL PAGE PAINT PARK PARTY PAY
PEACE PEAR PEN PET PIANO PICK PIE PIG PINK PIZZA PLANT PLAY PLUM POOL POST POT PRICE PULL PUSH QUEEN QUIET
QUIZ RACE RADIO RAIN RED REST RICE RING RIVER ROAD ROCK ROOF ROOM ROSE RUN SAFE SALE SALT SAND SEA SEAT
SEVEN SHIP SHOE SHOP SHOW SING SIX SKI SKY SLOW SNOW SOAP SOCK SOFA SOUP SOUTH SPACE SPORT STAR STAY STOP
SUGAR SUN SWEET SWIM TABLE TAXI TEA TEN TENT THREE TIGER TIME TO TOP TOY TRAIN TREE TRUCK TWO UP VAN VASE
VIEW WALK WALL WARM WASH WATER WAVE WAY WEST WET WHITE WIND WINE WOLF WOOD WORK YARD YEAR YES ZEBRA ZERO
ZONE ZOO
"""
WORDS: tuple[str, ...] = tuple(_WORDS.split())
