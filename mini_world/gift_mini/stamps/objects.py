"""The things of `mini_objects`, as filled masks with a few erased details."""

from __future__ import annotations

from gift_mini.stamps.pen import Drawing, Pen, arc, regular


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


OBJECTS: dict[str, Drawing] = {
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
