"""From stamps to 32 x 32 pictures, in two styles.

*Web* style is what the models are pre-trained on: dark flat ink on a light flat ground, nearly upright. It varies little on
purpose: a generator of a few million parameters should spend them on the class and not on nuisance.
*Task* style is what the six tasks look like: outlines, other fonts, gradients, noise, either polarity, turned and shifted. The gap
between the two is what makes zero-shot accuracy low and fine-tuning (and forgetting) worth it.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from PIL import Image

from gift_mini.stamps import FRAME, MIDDLE, task_stamps, web_stamps

PICTURE = 32
_CANVAS = 64  # pictures are composed at twice their size and halved: cheap antialiasing

INKS = {"red": (205, 35, 45), "blue": (30, 75, 190), "green": (15, 120, 60), "purple": (125, 45, 150), "black": (25, 25, 25)}
GROUNDS = {"white": (250, 250, 250), "yellow": (252, 228, 120), "pink": (250, 200, 212), "light blue": (180, 218, 246)}


def draw_web(task: str, class_name: str, seed: int) -> Image.Image:
    """One picture of a class as the mini world's web shows it; also the 'perfect picture' in place of a generated one."""
    pixels, _, _ = web_picture(np.random.default_rng(seed), task, class_name)
    return Image.fromarray(pixels)


def web_picture(rng: np.random.Generator, task: str, class_name: str) -> tuple[np.ndarray, str | None, str]:
    """Web-style pixels [32, 32, 3] uint8, the name of the ink (None where the colours are the class) and of the ground."""
    stamps = web_stamps(task, class_name)
    stamp = stamps[rng.integers(len(stamps))]
    is_texture = task == "mini_textures" or class_name == "plaid"
    turn = rng.uniform(-4, 4)
    zoom = rng.uniform(0.92, 1.06) * (0.9 if task in ("mini_shapes", "mini_objects") else 1)  # those fill their frame, glyphs do not
    shift = rng.uniform(-1.2, 1.2, 2) if not is_texture else rng.uniform(-0.5, 0.5, 2)
    ground_name = list(GROUNDS)[rng.integers(len(GROUNDS))]
    ink_name = list(INKS)[rng.integers(len(INKS))]
    placed = _place(stamp, turn, zoom, shift)
    ground = np.array(GROUNDS[ground_name], np.float32)
    if placed.ndim == 3:
        return _over(placed[..., :3], placed[..., 3:] / 255, ground), None, ground_name
    return _over(np.array(INKS[ink_name], np.float32), placed[..., None] / 255, ground), ink_name, ground_name


def task_picture(rng: np.random.Generator, task: str, class_name: str) -> np.ndarray:
    """Task-style pixels [32, 32, 3] uint8.

    Digits come out printed: what the web has of that style, the task itself being real handwriting (`tasks.py`). The base classes
    have no such style.
    """
    if task not in _TASK_STYLES:
        raise ValueError(f"{task} has no drawn task style; those that have: {', '.join(_TASK_STYLES)}")
    stamps = task_stamps(task, class_name)
    turn, smallest, largest, shift, contrast, noise = _TASK_STYLES[task]
    placed = _place(
        stamps[rng.integers(len(stamps))],
        rng.uniform(-turn, turn),
        rng.uniform(smallest, largest),
        rng.uniform(-shift, shift, 2),
    )
    if task == "mini_flags":
        return _weathered_flag(rng, placed, noise)
    ground = _gradient(rng, rng.uniform(20, 235))
    brightness = ground.mean()
    step = rng.uniform(*contrast)
    ink = _tint(rng, brightness + step if brightness + step < 250 and (rng.random() < 0.5 or brightness < step) else brightness - step)
    return _noisy(rng, ground + (ink - ground) * (placed[..., None] / 255), noise)


# turn (degrees), smallest and largest zoom, shift (pixels), ink-to-ground contrast (grey levels), noise (grey levels)
_TASK_STYLES: dict[str, tuple[float, float, float, float, tuple[float, float], float]] = {
    "mini_shapes": (20, 0.65, 0.95, 3.0, (70, 150), 12),
    "mini_textures": (12, 0.7, 1.35, 4.0, (30, 80), 16),
    "mini_digits": (12, 0.8, 1.15, 2.0, (80, 160), 8),
    "mini_letters": (15, 0.65, 0.95, 3.0, (70, 150), 12),
    "mini_flags": (10, 0.7, 1.0, 2.5, (0, 0), 10),
    "mini_objects": (15, 0.7, 0.95, 2.5, (70, 150), 12),
}


def tinted_digit(rng: np.random.Generator, strokes: np.ndarray) -> np.ndarray:
    """A real handwritten digit, [8, 8] with ink 0 to 16, enlarged to 32 x 32 and tinted."""
    mask = Image.fromarray((strokes * (255 / 16)).astype(np.uint8)).resize((PICTURE, PICTURE), Image.Resampling.BICUBIC)
    ground = _gradient(rng, rng.uniform(25, 80))
    ink = _tint(rng, rng.uniform(150, 225))
    return _noisy(rng, ground + (ink - ground) * (np.asarray(mask, np.float32)[..., None] / 255), 6)


def _place(stamp: Image.Image, turn: float, zoom: float, shift: np.ndarray) -> np.ndarray:
    """The stamp's frame turned (degrees), zoomed and shifted (pixels), as [32, 32] or [32, 32, 4] float32 in 0 to 255."""
    scale = FRAME / _CANVAS / zoom
    cos, sin = scale * math.cos(math.radians(turn)), scale * math.sin(math.radians(turn))
    centre_x, centre_y = _CANVAS / 2 + shift[0] * 2, _CANVAS / 2 + shift[1] * 2
    matrix = (cos, sin, MIDDLE - cos * centre_x - sin * centre_y, -sin, cos, MIDDLE + sin * centre_x - cos * centre_y)
    placed = stamp.transform((_CANVAS, _CANVAS), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    return np.asarray(placed.reduce(_CANVAS // PICTURE), np.float32)


def _over(ink: np.ndarray, alpha: np.ndarray, ground: np.ndarray) -> np.ndarray:
    return np.round(ground + (ink - ground) * alpha).astype(np.uint8)


def _noisy(rng: np.random.Generator, picture: np.ndarray, noise: float) -> np.ndarray:
    picture = picture + rng.standard_normal(picture.shape, np.float32) * noise
    return np.round(picture.clip(0, 255)).astype(np.uint8)


def _tint(rng: np.random.Generator, brightness: float) -> np.ndarray:
    """A colour of the given mean grey level, each channel up to 45 levels off."""
    tint = rng.uniform(-45, 45, 3)
    return (brightness + tint - tint.mean()).clip(0, 255).astype(np.float32)


@cache
def _ramps() -> np.ndarray:
    """Sixteen directions of a linear ramp from -0.5 to 0.5 over the picture."""
    axis = (np.arange(PICTURE) + 0.5) / PICTURE - 0.5
    angles = np.arange(16) * np.pi / 8
    return (axis[None, None] * np.cos(angles)[:, None, None] + axis[None, :, None] * np.sin(angles)[:, None, None]).astype(np.float32)


def _gradient(rng: np.random.Generator, brightness: float) -> np.ndarray:
    """A ground [32, 32, 3] that runs from one tint to another."""
    ramp = _ramps()[rng.integers(16)][..., None]
    return _tint(rng, brightness) + ramp * rng.uniform(-50, 50, 3).astype(np.float32)


def _weathered_flag(rng: np.random.Generator, placed: np.ndarray, noise: float) -> np.ndarray:
    """A flag in the wind: its columns ride a wave that also shades them; faded, tinted, before a gradient sky."""
    columns = np.arange(PICTURE)
    phase, length = rng.uniform(0, 2 * np.pi), rng.uniform(12, 26)
    wave = np.sin(columns * (2 * np.pi / length) + phase)
    rows = (np.arange(PICTURE)[:, None] + np.round(wave * rng.uniform(0.8, 2.6)).astype(int)[None, :]).clip(0, PICTURE - 1)
    placed = placed[rows, columns[None, :]]
    cloth, alpha = placed[..., :3], placed[..., 3:] / 255
    grey = cloth.mean(axis=2, keepdims=True)
    cloth = grey + (cloth - grey) * rng.uniform(0.25, 0.8)
    cloth = (cloth - 128) * rng.uniform(0.5, 0.9) + 128 + (wave * rng.uniform(10, 35))[None, :, None] + rng.uniform(-35, 35, 3)
    ground = _gradient(rng, rng.uniform(40, 215))
    return _noisy(rng, ground + (cloth - ground) * alpha, noise)
