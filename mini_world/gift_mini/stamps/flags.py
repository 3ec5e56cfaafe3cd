"""The flags of `mini_flags`, in colour, and the layouts they share with the flags of the base classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw

from gift_mini.stamps.frame import OVERSAMPLING, STAMP
from gift_mini.stamps.pen import Point, arc

WHITE, BLACK = (250, 250, 250), (25, 25, 25)
RED, ORANGE, YELLOW = (206, 32, 46), (240, 130, 25), (250, 205, 20)
GREEN, BLUE, DARK_BLUE = (10, 135, 75), (25, 75, 175), (15, 35, 100)
FLAG_WIDTH, FLAG_HEIGHT = 86, 60  # stamp pixels

Colour = tuple[int, int, int]


class FlagPen:
    """Draws in flag units: x and y from 0 to 1 across the cloth."""

    def __init__(self, ground: Colour) -> None:
        self._size = (FLAG_WIDTH * OVERSAMPLING, FLAG_HEIGHT * OVERSAMPLING)
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
        cloth = self.image.reduce(OVERSAMPLING).convert("RGBA")
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
