"""The base classes: what the mini world's pre-training is about, in every kind of stamp."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from gift_mini.stamps.flags import BLUE, DARK_BLUE, GREEN, ORANGE, RED, WHITE, YELLOW, level, nordic, upright
from gift_mini.stamps.glyphs import glyph
from gift_mini.stamps.pen import Pen, drawn, filled_polygon
from gift_mini.stamps.textures import pattern

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


_BOLT = filled_polygon((0.62, 0.04), (0.2, 0.56), (0.46, 0.56), (0.36, 0.96), (0.8, 0.4), (0.53, 0.4))

BASE: dict[str, Callable[[], Image.Image]] = {
    **{name: (lambda character=character: glyph(character)) for name, character in _BASE_GLYPHS.items()},
    "plaid": lambda: pattern(_plaid),
    "cloud": lambda: drawn(_cloud),
    "snowman": lambda: drawn(_snowman),
    "lightning bolt": lambda: drawn(_BOLT),
    "bullseye": lambda: drawn(_bullseye),
    "rainbow": lambda: level(RED, ORANGE, YELLOW, GREEN, BLUE, (110, 45, 150)),
    "Norwegian flag": lambda: nordic(RED, (WHITE, 0.34), (DARK_BLUE, 0.15)),
    "Irish flag": lambda: upright(GREEN, WHITE, ORANGE),
    "Dutch flag": lambda: level(RED, WHITE, BLUE),
}
