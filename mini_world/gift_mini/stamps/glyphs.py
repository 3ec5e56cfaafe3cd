"""Letters, digits and pictographs from the fonts that matplotlib ships."""

from __future__ import annotations

import math
from functools import cache
from importlib.resources import files

from PIL import Image, ImageDraw, ImageFont

from gift_mini.stamps.frame import STAMP

GLYPH_BOX = 78  # a glyph's larger side, in stamp pixels: 26 of the picture's 32


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
