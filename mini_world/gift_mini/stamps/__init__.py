"""What each class of the mini world looks like, before any style: a stamp of 128 x 128 pixels.

A stamp is a mask (mode "L", ink = 255), or a colour picture with alpha (mode "RGBA") where the colours are the class, as for
flags. Its middle 96 x 96 pixels are the frame that becomes 32 x 32; the margin lets textures shift and turn without bare corners.
Stamps are drawn once per process and cached; colours, position and noise are `drawing.py`'s work.

One module per kind of stamp, each with the table of its classes; here, what every task's classes are and which looks they have.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from gift_mini.stamps.base import BASE
from gift_mini.stamps.flags import FLAGS
from gift_mini.stamps.frame import FRAME, MIDDLE, STAMP
from gift_mini.stamps.glyphs import glyph
from gift_mini.stamps.objects import OBJECTS
from gift_mini.stamps.pen import drawn
from gift_mini.stamps.shapes import SHAPES
from gift_mini.stamps.textures import TEXTURES, pattern

__all__ = ["CLASSES", "FRAME", "MIDDLE", "task_stamps", "web_stamps"]

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
            return (drawn(SHAPES[class_name]),)
        case "mini_objects":
            return (drawn(OBJECTS[class_name]),)
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
