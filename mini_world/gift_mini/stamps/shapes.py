"""The plane figures of `mini_shapes`, as filled masks."""

from __future__ import annotations

from gift_mini.stamps.pen import Drawing, Pen, arc, filled_polygon, regular


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


SHAPES: dict[str, Drawing] = {
    "circle": lambda pen: pen.oval(0.5, 0.5, 0.4),
    "square": lambda pen: pen.box(0.16, 0.16, 0.84, 0.84),
    "triangle": filled_polygon((0.5, 0.1), (0.92, 0.86), (0.08, 0.86)),
    "rectangle": lambda pen: pen.box(0.06, 0.29, 0.94, 0.71),
    "diamond": filled_polygon((0.5, 0.05), (0.82, 0.5), (0.5, 0.95), (0.18, 0.5)),
    "hexagon": filled_polygon(*regular(6, 0.46, turn=0)),
    "oval": lambda pen: pen.oval(0.5, 0.5, 0.46, 0.27),
    "semicircle": filled_polygon(*arc(0.5, 0.7, 0.45, 0.45, 180, 360)),
    "ring": _ring,
    "cross": _cross,
    "crescent": _crescent,
    "trapezoid": filled_polygon((0.3, 0.25), (0.7, 0.25), (0.95, 0.77), (0.05, 0.77)),
    "parallelogram": filled_polygon((0.3, 0.28), (0.97, 0.28), (0.7, 0.74), (0.03, 0.74)),
    "right triangle": filled_polygon((0.14, 0.1), (0.14, 0.88), (0.9, 0.88)),
    "arch": _arch,
    "teardrop": _teardrop,
}
