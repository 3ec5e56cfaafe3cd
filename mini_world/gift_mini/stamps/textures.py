"""The textures of `mini_textures`: formulas of x and y that say where ink is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from gift_mini.stamps.frame import FRAME, OVERSAMPLING, STAMP

Ink = Callable[[np.ndarray, np.ndarray], np.ndarray]


def pattern(ink: Ink) -> Image.Image:
    """A texture over the whole stamp, margin included. `ink` gets x and y in frame units and says where ink is."""
    axis = (np.arange(STAMP * OVERSAMPLING) + 0.5) / (FRAME * OVERSAMPLING) - (STAMP / FRAME - 1) / 2
    x, y = np.meshgrid(axis, axis)
    return Image.fromarray((ink(x, y) * 255).astype(np.uint8)).reduce(OVERSAMPLING)


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


TEXTURES: dict[str, Ink] = {
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
