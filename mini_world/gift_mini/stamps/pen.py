"""The pen that draws masks, and the points it needs for arcs and regular polygons."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from gift_mini.stamps.frame import FRAME, OVERSAMPLING, STAMP

Point = tuple[float, float]


class Pen:
    """Draws on a mask in frame units: x and y from 0 to 1 across the middle 96 pixels; ink=False erases."""

    def __init__(self) -> None:
        self._size = STAMP * OVERSAMPLING
        self.image = Image.new("L", (self._size, self._size))
        self._draw = ImageDraw.Draw(self.image)

    def _at(self, points: Sequence[Point]) -> list[Point]:
        margin = (STAMP - FRAME) / 2
        return [((margin + x * FRAME) * OVERSAMPLING, (margin + y * FRAME) * OVERSAMPLING) for x, y in points]

    def polygon(self, *points: Point, ink: bool = True) -> None:
        self._draw.polygon(self._at(points), fill=255 * ink)

    def box(self, left: float, top: float, right: float, bottom: float, ink: bool = True) -> None:
        self.polygon((left, top), (right, top), (right, bottom), (left, bottom), ink=ink)

    def oval(self, x: float, y: float, rx: float, ry: float | None = None, ink: bool = True) -> None:
        ry = rx if ry is None else ry
        self.polygon(*arc(x, y, rx, ry, 0, 360), ink=ink)

    def line(self, *points: Point, width: float = 0.08, ink: bool = True) -> None:
        self._draw.line(self._at(points), fill=255 * ink, width=round(width * FRAME * OVERSAMPLING), joint="curve")
        for x, y in (points[0], points[-1]):
            self.oval(x, y, width / 2, ink=ink)

    def stamp(self) -> Image.Image:
        return self.image.reduce(OVERSAMPLING)


Drawing = Callable[[Pen], None]
"""How one class is drawn."""


def arc(x: float, y: float, rx: float, ry: float, start: float, end: float) -> list[Point]:
    """Points of an ellipse arc, degrees clockwise from three o'clock."""
    return [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in np.radians(np.linspace(start, end, 48))]


def regular(corners: int, radius: float = 0.42, turn: float = -90, x: float = 0.5, y: float = 0.5) -> list[Point]:
    """Corners of a regular polygon; the first lies at angle `turn`."""
    return [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in np.radians(turn + np.arange(corners) * 360 / corners)]


def drawn(draw: Drawing) -> Image.Image:
    """The stamp of a drawing: what the tables of shapes and objects hold, made with a fresh pen."""
    pen = Pen()
    draw(pen)
    return pen.stamp()


def filled_polygon(*points: Point) -> Drawing:
    """The drawing that is one polygon and nothing else."""
    return lambda pen: pen.polygon(*points)
