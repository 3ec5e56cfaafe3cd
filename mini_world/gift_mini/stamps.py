"""What each class of the mini world looks like, before any style: a stamp of 128 x 128 pixels.

A stamp is a mask (mode "L", ink = 255), or a colour picture with alpha (mode "RGBA") where the colours are the class, as for
flags. Its middle 96 x 96 pixels are the frame that becomes 32 x 32; the margin lets textures shift and turn without bare corners.
Stamps are drawn once per process and cached; colours, position and noise are `drawing.py`'s work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

STAMP = 128
FRAME = 96
MIDDLE = STAMP / 2
GLYPH_BOX = 78  # a glyph's larger side, in stamp pixels: 26 of the picture's 32
_OVERSAMPLING = 3

Point = tuple[float, float]


# --- glyphs: letters, digits, pictographs ---------------------------------------------------------------------------------


@cache
def _font(name: str) -> ImageFont.FreeTypeFont:
    """A font that matplotlib ships; imported lazily because only glyph classes need it."""
    import matplotlib

    return ImageFont.truetype(str(files(matplotlib) / "mpl-data" / "fonts" / "ttf" / f"{name}.ttf"), 200)


@cache
def glyph(character: str, font: str = "DejaVuSans") -> Image.Image:
    """One character, scaled so that its ink fills the glyph box in one direction and sits in the middle."""
    left, top, right, bottom = _font(font).getbbox(character)
    ink = Image.new("L", (math.ceil(right - left), math.ceil(bottom - top)))
    ImageDraw.Draw(ink).text((-left, -top), character, font=_font(font), fill=255)
    ink = ink.crop(ink.getbbox())
    scale = GLYPH_BOX / max(ink.size)
    ink = ink.resize([max(1, round(side * scale)) for side in ink.size], Image.Resampling.LANCZOS)
    stamp = Image.new("L", (STAMP, STAMP))
    stamp.paste(ink, ((STAMP - ink.width) // 2, (STAMP - ink.height) // 2))
    return stamp


# --- drawn masks: shapes, objects, textures -------------------------------------------------------------------------------


class Pen:
    """Draws on a mask in frame units: x and y from 0 to 1 across the middle 96 pixels; ink=False erases."""

    def __init__(self) -> None:
        self._size = STAMP * _OVERSAMPLING
        self.image = Image.new("L", (self._size, self._size))
        self._draw = ImageDraw.Draw(self.image)

    def _at(self, points: Sequence[Point]) -> list[Point]:
        margin = (STAMP - FRAME) / 2
        return [((margin + x * FRAME) * _OVERSAMPLING, (margin + y * FRAME) * _OVERSAMPLING) for x, y in points]

    def polygon(self, *points: Point, ink: bool = True) -> None:
        self._draw.polygon(self._at(points), fill=255 * ink)

    def box(self, left: float, top: float, right: float, bottom: float, ink: bool = True) -> None:
        self.polygon((left, top), (right, top), (right, bottom), (left, bottom), ink=ink)

    def oval(self, x: float, y: float, rx: float, ry: float | None = None, ink: bool = True) -> None:
        ry = rx if ry is None else ry
        self.polygon(*arc(x, y, rx, ry, 0, 360), ink=ink)

    def line(self, *points: Point, width: float = 0.08, ink: bool = True) -> None:
        self._draw.line(self._at(points), fill=255 * ink, width=round(width * FRAME * _OVERSAMPLING), joint="curve")
        for x, y in (points[0], points[-1]):
            self.oval(x, y, width / 2, ink=ink)

    def stamp(self) -> Image.Image:
        return self.image.reduce(_OVERSAMPLING)


def arc(x: float, y: float, rx: float, ry: float, start: float, end: float) -> list[Point]:
    """Points of an ellipse arc, degrees clockwise from three o'clock."""
    return [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in np.radians(np.linspace(start, end, 48))]


def regular(corners: int, radius: float = 0.42, turn: float = -90, x: float = 0.5, y: float = 0.5) -> list[Point]:
    """Corners of a regular polygon; the first lies at angle `turn`."""
    return [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in np.radians(turn + np.arange(corners) * 360 / corners)]


def _drawn(draw: Callable[[Pen], None]) -> Image.Image:
    pen = Pen()
    draw(pen)
    return pen.stamp()


def _polygon(*points: Point) -> Callable[[Pen], None]:
    return lambda pen: pen.polygon(*points)


def _ring(pen: Pen) -> None:
    pen.oval(0.5, 0.5, 0.42)
    pen.oval(0.5, 0.5, 0.24, ink=False)


def _crescent(pen: Pen) -> None:
    pen.oval(0.46, 0.5, 0.4)
    pen.oval(0.64, 0.5, 0.34, ink=False)


def _cross(pen: Pen) -> None:
    pen.box(0.38, 0.1, 0.62, 0.9)
    pen.box(0.1, 0.38, 0.9, 0.62)


def _arch(pen: Pen) -> None:
    pen.polygon(*arc(0.5, 0.5, 0.38, 0.38, 180, 360), (0.88, 0.88), (0.12, 0.88))
    pen.polygon(*arc(0.5, 0.54, 0.18, 0.18, 180, 360), (0.68, 0.9), (0.32, 0.9), ink=False)


def _teardrop(pen: Pen) -> None:
    pen.oval(0.5, 0.64, 0.28)
    pen.polygon((0.5, 0.06), (0.755, 0.53), (0.245, 0.53))


SHAPES: dict[str, Callable[[Pen], None]] = {
    "circle": lambda pen: pen.oval(0.5, 0.5, 0.4),
    "square": lambda pen: pen.box(0.16, 0.16, 0.84, 0.84),
    "triangle": _polygon((0.5, 0.1), (0.92, 0.86), (0.08, 0.86)),
    "rectangle": lambda pen: pen.box(0.06, 0.29, 0.94, 0.71),
    "diamond": _polygon((0.5, 0.05), (0.82, 0.5), (0.5, 0.95), (0.18, 0.5)),
    "hexagon": _polygon(*regular(6, 0.46, turn=0)),
    "oval": lambda pen: pen.oval(0.5, 0.5, 0.46, 0.27),
    "semicircle": _polygon(*arc(0.5, 0.7, 0.45, 0.45, 180, 360)),
    "ring": _ring,
    "cross": _cross,
    "crescent": _crescent,
    "trapezoid": _polygon((0.3, 0.25), (0.7, 0.25), (0.95, 0.77), (0.05, 0.77)),
    "parallelogram": _polygon((0.3, 0.28), (0.97, 0.28), (0.7, 0.74), (0.03, 0.74)),
    "right triangle": _polygon((0.14, 0.1), (0.14, 0.88), (0.9, 0.88)),
    "arch": _arch,
    "teardrop": _teardrop,
}


def _house(pen: Pen) -> None:
    pen.polygon((0.5, 0.06), (0.96, 0.48), (0.04, 0.48))
    pen.box(0.14, 0.48, 0.86, 0.92)
    pen.box(0.42, 0.62, 0.6, 0.92, ink=False)


def _tree(pen: Pen) -> None:
    pen.box(0.43, 0.6, 0.57, 0.96)
    pen.oval(0.5, 0.26, 0.22)
    pen.oval(0.3, 0.46, 0.2)
    pen.oval(0.7, 0.46, 0.2)


def _boat(pen: Pen) -> None:
    pen.polygon((0.04, 0.68), (0.96, 0.68), (0.78, 0.92), (0.22, 0.92))
    pen.box(0.46, 0.06, 0.52, 0.7)
    pen.polygon((0.57, 0.1), (0.9, 0.6), (0.57, 0.6))
    pen.polygon((0.41, 0.2), (0.41, 0.6), (0.14, 0.6))


def _car(pen: Pen) -> None:
    pen.polygon((0.03, 0.5), (0.22, 0.47), (0.36, 0.26), (0.7, 0.26), (0.84, 0.47), (0.97, 0.52), (0.97, 0.72), (0.03, 0.72))
    pen.polygon((0.4, 0.33), (0.5, 0.33), (0.5, 0.46), (0.31, 0.46), ink=False)
    pen.polygon((0.56, 0.33), (0.67, 0.33), (0.75, 0.46), (0.56, 0.46), ink=False)
    for x in (0.26, 0.74):
        pen.oval(x, 0.72, 0.15, ink=False)
        pen.oval(x, 0.73, 0.11)


def _fish(pen: Pen) -> None:
    pen.oval(0.42, 0.5, 0.38, 0.25)
    pen.polygon((0.68, 0.5), (0.97, 0.24), (0.97, 0.76))
    pen.oval(0.22, 0.44, 0.055, ink=False)


def _flower(pen: Pen) -> None:
    pen.line((0.5, 0.5), (0.5, 0.95), width=0.07)
    pen.polygon((0.5, 0.92), (0.78, 0.66), (0.8, 0.82))
    for x, y in regular(5, 0.2, x=0.5, y=0.32):
        pen.oval(x, y, 0.125)
    pen.oval(0.5, 0.32, 0.09, ink=False)


def _cup(pen: Pen) -> None:
    pen.oval(0.74, 0.5, 0.2)
    pen.oval(0.74, 0.5, 0.11, ink=False)
    pen.polygon((0.1, 0.22), (0.74, 0.22), (0.68, 0.82), (0.16, 0.82))
    pen.box(0.04, 0.86, 0.8, 0.94)


def _chair(pen: Pen) -> None:
    pen.box(0.2, 0.06, 0.32, 0.94)
    pen.box(0.2, 0.5, 0.8, 0.62)
    pen.box(0.68, 0.5, 0.8, 0.94)
    pen.box(0.2, 0.06, 0.4, 0.16)


def _hat(pen: Pen) -> None:
    pen.box(0.26, 0.18, 0.74, 0.7)
    pen.box(0.26, 0.54, 0.74, 0.62, ink=False)
    pen.oval(0.5, 0.76, 0.47, 0.1)


def _apple(pen: Pen) -> None:
    pen.oval(0.36, 0.6, 0.26, 0.32)
    pen.oval(0.64, 0.6, 0.26, 0.32)
    pen.line((0.5, 0.36), (0.54, 0.14), width=0.06)
    pen.polygon((0.56, 0.24), (0.68, 0.08), (0.88, 0.08), (0.78, 0.22))


def _rocket(pen: Pen) -> None:
    pen.polygon((0.5, 0.03), (0.66, 0.26), (0.66, 0.72), (0.34, 0.72), (0.34, 0.26))
    pen.polygon((0.34, 0.5), (0.34, 0.76), (0.14, 0.84))
    pen.polygon((0.66, 0.5), (0.66, 0.76), (0.86, 0.84))
    pen.polygon((0.4, 0.77), (0.6, 0.77), (0.5, 0.98))
    pen.oval(0.5, 0.36, 0.075, ink=False)


def _mushroom(pen: Pen) -> None:
    pen.polygon(*arc(0.5, 0.52, 0.45, 0.42, 180, 360))
    pen.polygon((0.38, 0.52), (0.62, 0.52), (0.68, 0.93), (0.32, 0.93))
    for x, y in ((0.5, 0.24), (0.28, 0.39), (0.72, 0.39)):
        pen.oval(x, y, 0.06, ink=False)


def _bottle(pen: Pen) -> None:
    pen.box(0.43, 0.04, 0.57, 0.3)
    pen.polygon((0.43, 0.26), (0.57, 0.26), (0.7, 0.42), (0.7, 0.95), (0.3, 0.95), (0.3, 0.42))
    pen.box(0.3, 0.56, 0.7, 0.76, ink=False)


def _ladder(pen: Pen) -> None:
    for x in (0.28, 0.72):
        pen.box(x - 0.05, 0.04, x + 0.05, 0.96)
    for y in (0.16, 0.39, 0.62, 0.85):
        pen.box(0.28, y - 0.045, 0.72, y + 0.045)


OBJECTS: dict[str, Callable[[Pen], None]] = {
    "house": _house,
    "tree": _tree,
    "boat": _boat,
    "car": _car,
    "fish": _fish,
    "flower": _flower,
    "cup": _cup,
    "chair": _chair,
    "hat": _hat,
    "apple": _apple,
    "rocket": _rocket,
    "mushroom": _mushroom,
    "bottle": _bottle,
    "ladder": _ladder,
}


def pattern(ink: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Image.Image:
    """A texture over the whole stamp, margin included. `ink` gets x and y in frame units and says where ink is."""
    axis = (np.arange(STAMP * _OVERSAMPLING) + 0.5) / (FRAME * _OVERSAMPLING) - (STAMP / FRAME - 1) / 2
    x, y = np.meshgrid(axis, axis)
    return Image.fromarray((ink(x, y) * 255).astype(np.uint8)).reduce(_OVERSAMPLING)


def _brick(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    row = np.floor(y * 4)
    return ((y * 4) % 1 > 0.24) & ((x * 2 + row * 0.5) % 1 > 0.12)


def _scaly(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Overlapping roof-tile arcs: a cell's arc belongs to the row whose circle reaches down to it."""
    ink = np.zeros_like(x, dtype=bool)
    for shift in (0.0, 0.5):
        u = (x * 3 + shift) % 1 - 0.5
        v = (y * 3 + shift) % 1
        ink |= np.abs(np.hypot(u, v) - 0.5) < 0.1
    return ink


TEXTURES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "striped": lambda x, y: (x * 4) % 1 < 0.5,
    "banded": lambda x, y: (y * 4) % 1 < 0.5,
    "diagonal": lambda x, y: ((x + y) * 2.8) % 1 < 0.5,
    "checkered": lambda x, y: (np.floor(x * 4) + np.floor(y * 4)) % 2 < 1,
    "dotted": lambda x, y: np.hypot((x * 4) % 1 - 0.5, (y * 4) % 1 - 0.5) < 0.3,
    "zigzagged": lambda x, y: (y * 4 + np.abs((x * 3) % 1 - 0.5) * 2) % 1 < 0.45,
    "meshed": lambda x, y: ((x * 4 + 0.14) % 1 < 0.28) | ((y * 4 + 0.14) % 1 < 0.28),
    "bricked": _brick,
    "crosshatched": lambda x, y: (((x + y) * 2.8) % 1 < 0.28) | (((x - y) * 2.8) % 1 < 0.28),
    "circular": lambda x, y: (np.hypot(x - 0.5, y - 0.5) * 6) % 1 < 0.5,
    "radial": lambda x, y: (np.arctan2(y - 0.5, x - 0.5) / (2 * np.pi) * 8) % 1 < 0.5,
    "scaly": _scaly,
}


# --- flags ---------------------------------------------------------------------------------------------------------------

WHITE, BLACK = (250, 250, 250), (25, 25, 25)
RED, DARK_RED, ORANGE, YELLOW = (206, 32, 46), (155, 25, 50), (240, 130, 25), (250, 205, 20)
GREEN, BLUE, DARK_BLUE, SKY = (10, 135, 75), (25, 75, 175), (15, 35, 100), (100, 170, 225)
FLAG_WIDTH, FLAG_HEIGHT = 86, 60  # stamp pixels

Colour = tuple[int, int, int]


class FlagPen:
    """Draws in flag units: x and y from 0 to 1 across the cloth."""

    def __init__(self, ground: Colour) -> None:
        self._size = (FLAG_WIDTH * _OVERSAMPLING, FLAG_HEIGHT * _OVERSAMPLING)
        self.image = Image.new("RGB", self._size, ground)
        self._draw = ImageDraw.Draw(self.image)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], colour)

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        self._draw.polygon([(x * self._size[0], y * self._size[1]) for x, y in points], fill=colour)

    def disc(self, x: float, y: float, radius: float, colour: Colour) -> None:
        """`radius` in cloth heights, so that it stays round."""
        ratio = self._size[1] / self._size[0]
        self.polygon(arc(x, y, radius * ratio, radius, 0, 360), colour)

    def stamp(self) -> Image.Image:
        cloth = self.image.reduce(_OVERSAMPLING).convert("RGBA")
        stamp = Image.new("RGBA", (STAMP, STAMP))
        stamp.paste(cloth, ((STAMP - FLAG_WIDTH) // 2, (STAMP - FLAG_HEIGHT) // 2))
        return stamp


def upright(*colours: Colour) -> Image.Image:
    """Vertical bars, from the pole outwards."""
    pen = FlagPen(colours[0])
    for index, colour in enumerate(colours):
        pen.box(index / len(colours), 0, 1, 1, colour)
    return pen.stamp()


def level(*colours: Colour, shares: Sequence[float] | None = None) -> Image.Image:
    """Horizontal bars from the top; `shares` are their heights, equal if not given."""
    pen = FlagPen(colours[0])
    shares = shares or [1 / len(colours)] * len(colours)
    for index, colour in enumerate(colours):
        pen.box(0, sum(shares[:index]), 1, 1, colour)
    return pen.stamp()


def disc(ground: Colour, colour: Colour, x: float = 0.5) -> Image.Image:
    pen = FlagPen(ground)
    pen.disc(x, 0.5, 0.3, colour)
    return pen.stamp()


def nordic(ground: Colour, *crosses: tuple[Colour, float]) -> Image.Image:
    """A cross nearer the pole; several (colour, width) pairs lie on top of each other."""
    pen = FlagPen(ground)
    for colour, width in crosses:
        pen.box(0.37 - width * 0.35, 0, 0.37 + width * 0.35, 1, colour)
        pen.box(0, 0.5 - width / 2, 1, 0.5 + width / 2, colour)
    return pen.stamp()


def _switzerland() -> Image.Image:
    pen = FlagPen(RED)
    pen.box(0.42, 0.16, 0.58, 0.84, WHITE)
    pen.box(0.26, 0.39, 0.74, 0.61, WHITE)
    return pen.stamp()


def _czechia() -> Image.Image:
    pen = FlagPen(WHITE)
    pen.box(0, 0.5, 1, 1, RED)
    pen.polygon([(0, 0), (0.5, 0.5), (0, 1)], BLUE)
    return pen.stamp()


def _jamaica() -> Image.Image:
    pen = FlagPen(GREEN)
    pen.polygon([(0, 0.05), (0.45, 0.5), (0, 0.95)], BLACK)
    pen.polygon([(1, 0.05), (0.55, 0.5), (1, 0.95)], BLACK)
    for ends in ([(0, 0), (1, 1)], [(0, 1), (1, 0)]):
        (x0, y0), (x1, y1) = ends
        pen.polygon([(x0, y0 - 0.1), (x0, y0 + 0.1), (x1, y1 + 0.1), (x1, y1 - 0.1)], YELLOW)
    return pen.stamp()


def _greece() -> Image.Image:
    pen = FlagPen(BLUE)
    for row in (1, 3):
        pen.box(0, row / 5, 1, (row + 1) / 5, WHITE)
    pen.box(0, 0, 0.44, 0.6, BLUE)
    pen.box(0.17, 0, 0.27, 0.6, WHITE)
    pen.box(0, 0.22, 0.44, 0.38, WHITE)
    return pen.stamp()


FLAGS: dict[str, Callable[[], Image.Image]] = {
    "France": lambda: upright(BLUE, WHITE, RED),
    "Italy": lambda: upright(GREEN, WHITE, RED),
    "Belgium": lambda: upright(BLACK, YELLOW, RED),
    "Germany": lambda: level(BLACK, RED, YELLOW),
    "Austria": lambda: level(RED, WHITE, RED),
    "Poland": lambda: level(WHITE, RED),
    "Ukraine": lambda: level(BLUE, YELLOW),
    "Japan": lambda: disc(WHITE, RED),
    "Bangladesh": lambda: disc(GREEN, RED, x=0.45),
    "Sweden": lambda: nordic(BLUE, (YELLOW, 0.22)),
    "Denmark": lambda: nordic(RED, (WHITE, 0.2)),
    "Switzerland": _switzerland,
    "Czechia": _czechia,
    "Jamaica": _jamaica,
}


# --- the base classes: what the mini world's pre-training is about -------------------------------------------------------

_BASE_GLYPHS = {
    "heart": "♥", "star": "★", "sun": "☀", "crown": "♛", "umbrella": "☂", "snowflake": "❄", "airplane": "✈", "anchor": "⚓",
    "envelope": "✉", "telephone": "☎", "scissors": "✂", "smiling face": "☻", "skull": "☠", "yin yang": "☯", "gear": "⚙",
    "music note": "♫", "chess knight": "♞", "chess rook": "♜", "spade": "♠", "club": "♣", "balance scale": "⚖",
    "recycling symbol": "♻", "peace symbol": "☮", "check mark": "✔", "right arrow": "➡", "up arrow": "⬆", "question mark": "?",
    "exclamation mark": "!", "ampersand": "&", "percent sign": "%", "dollar sign": "$", "hash sign": "#", "euro sign": "€",
    "infinity sign": "∞", "pi": "π", "omega": "Ω", "sigma": "Σ", "psi": "Ψ", "lambda": "λ",
}  # fmt: skip


def _plaid(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    across, down = (x * 2) % 1, (y * 2) % 1
    bands = np.where((across > 0.2) & (across < 0.6), 0.5, 0.0) + np.where((down > 0.2) & (down < 0.6), 0.5, 0.0)
    return np.where((np.abs(across - 0.8) < 0.06) | (np.abs(down - 0.8) < 0.06), 1.0, bands)


def _cloud(pen: Pen) -> None:
    for x, y, radius in ((0.26, 0.58, 0.18), (0.46, 0.42, 0.22), (0.7, 0.54, 0.2)):
        pen.oval(x, y, radius)
    pen.polygon((0.24, 0.55), (0.72, 0.55), (0.72, 0.74), (0.24, 0.76))


def _snowman(pen: Pen) -> None:
    pen.oval(0.5, 0.7, 0.26)
    pen.oval(0.5, 0.34, 0.17)
    pen.box(0.36, 0.04, 0.64, 0.18)
    pen.box(0.26, 0.16, 0.74, 0.22)
    for x, y in ((0.43, 0.32), (0.57, 0.32), (0.5, 0.62), (0.5, 0.76)):
        pen.oval(x, y, 0.04, ink=False)


def _bullseye(pen: Pen) -> None:
    for index, radius in enumerate((0.46, 0.35, 0.24, 0.13)):
        pen.oval(0.5, 0.5, radius, ink=index % 2 == 0)


_BOLT = _polygon((0.62, 0.04), (0.2, 0.56), (0.46, 0.56), (0.36, 0.96), (0.8, 0.4), (0.53, 0.4))

BASE: dict[str, Callable[[], Image.Image]] = {
    **{name: (lambda character=character: glyph(character)) for name, character in _BASE_GLYPHS.items()},
    "plaid": lambda: pattern(_plaid),
    "cloud": lambda: _drawn(_cloud),
    "snowman": lambda: _drawn(_snowman),
    "lightning bolt": lambda: _drawn(_BOLT),
    "bullseye": lambda: _drawn(_bullseye),
    "rainbow": lambda: level(RED, ORANGE, YELLOW, GREEN, BLUE, (110, 45, 150)),
    "Norwegian flag": lambda: nordic(RED, (WHITE, 0.34), (DARK_BLUE, 0.15)),
    "Irish flag": lambda: upright(GREEN, WHITE, ORANGE),
    "Dutch flag": lambda: level(RED, WHITE, BLUE),
}


# --- by task -------------------------------------------------------------------------------------------------------------

LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
DIGITS = tuple("0123456789")
WEB_FONTS = ("DejaVuSans-Bold", "DejaVuSans")
TASK_FONTS = ("STIXGeneral", "STIXGeneralItalic", "cmr10", "cmtt10", "cmti10", "DejaVuSerif-Italic", "DejaVuSansMono-Oblique", "cmss10")

CLASSES: dict[str, tuple[str, ...]] = {
    "mini_base": tuple(BASE),
    "mini_shapes": tuple(SHAPES),
    "mini_digits": DIGITS,
    "mini_textures": tuple(TEXTURES),
    "mini_letters": LETTERS,
    "mini_flags": tuple(FLAGS),
    "mini_objects": tuple(OBJECTS),
}
"""Task name -> class names in label order; the manifests of the same names repeat them, and a test compares."""


@cache
def web_stamps(task: str, class_name: str) -> tuple[Image.Image, ...]:
    """The looks a class has on the mini world's web: one, or one per font."""
    match task:
        case "mini_base":
            return (BASE[class_name](),)
        case "mini_shapes":
            return (_drawn(SHAPES[class_name]),)
        case "mini_objects":
            return (_drawn(OBJECTS[class_name]),)
        case "mini_textures":
            return (pattern(TEXTURES[class_name]),)
        case "mini_flags":
            return (FLAGS[class_name](),)
        case "mini_letters" | "mini_digits":
            return tuple(glyph(class_name, font) for font in WEB_FONTS)
    raise KeyError(task)


@cache
def task_stamps(task: str, class_name: str) -> tuple[Image.Image, ...]:
    """The looks a class has in its own task: outlines of shapes and objects, other fonts for letters."""
    match task:
        case "mini_shapes" | "mini_objects":
            filled = web_stamps(task, class_name)[0]
            return outline(filled, 5), outline(filled, 7), dashed(outline(filled, 7))
        case "mini_letters" | "mini_digits":
            return tuple(glyph(class_name, font) for font in TASK_FONTS)
        case _:
            return web_stamps(task, class_name)


def outline(filled: Image.Image, width: int) -> Image.Image:
    """The rim of a mask, inside and outside of its edge together `width` (odd) stamp pixels wide."""
    return ImageChops.subtract(filled.filter(ImageFilter.MaxFilter(width)), filled.filter(ImageFilter.MinFilter(width)))


def dashed(mask: Image.Image) -> Image.Image:
    """A mask with gaps in eighteen directions seen from the middle."""
    axis = np.arange(STAMP) + 0.5 - MIDDLE
    angle = np.arctan2(axis[:, None], axis[None, :]) / (2 * np.pi)
    return ImageChops.multiply(mask, Image.fromarray((((angle * 18) % 1 < 0.7) * 255).astype(np.uint8)))
