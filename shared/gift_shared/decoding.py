"""Encoded images that anyone may have made or damaged -> RGB of 8 bits: the one way for training, evaluation, packing and import.

What a file holds beyond that is decided here and nowhere else (docs/own_tasks.md says it to users):
16 bits and floats are scaled, what is transparent lies on white, palettes and CMYK are converted, the first frame counts, and the
orientation that EXIF tells is not applied, as the published protocol's loader does not. RGB files without transparency stay as they are.
"""

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, features

from gift_shared.errors import DataError, GiftError, first_line

SHARD_FORMATS = ("JPEG", "PNG", "WEBP")
_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),  # MPO: a JPEG with further pictures behind it
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif", ".avifs"),
}
# Of files that people bring: some of SUN397's .jpg files are other formats inside, so the suffix never decides how one is read.
FILE_FORMATS = tuple(form for form in _SUFFIXES if form != "AVIF" or features.check("avif"))
FILE_SUFFIXES = tuple(suffix for form in FILE_FORMATS for suffix in _SUFFIXES[form])
# UnidentifiedImageError is an OSError. The rest is what the readers of single chunks and tags run into.
UNDECODABLE = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, RuntimeError, struct.error, zlib.error,
    Image.DecompressionBombError,
)  # fmt: skip

SCALED_16_BITS = "scaled from 16 bits"
FEW_BITS = "of 12 bits or fewer in a file of 16, so nearly black"
SCALED_RANGE = "scaled from the range of its own values"
SCALED_UNIT = "scaled from 0..1"
ON_WHITE = "transparent, laid on white"
TURNED = "its EXIF orientation not applied"
_ORIENTATION_TAG, _UPRIGHT = 0x0112, 1
_PHOTOMETRIC_TAG, _WHITE_IS_ZERO = 0x0106, 0  # of TIFF


@dataclass(frozen=True)
class Decoded:
    """An RGB image of 8 bits, and what was done to make it one that a user may not expect: SCALED_16_BITS, FEW_BITS, ON_WHITE ..."""

    image: Image.Image
    done: tuple[str, ...]


def decode_rgb(
    content: bytes, where: str, error_class: type[GiftError] = DataError, formats: tuple[str, ...] = SHARD_FORMATS
) -> Image.Image:
    """Decode an image to RGB. Raises `error_class`, naming `where`, if it is none of `formats` or broken."""
    return decode(content, where, error_class, formats).image


def decode(content: bytes, where: str, error_class: type[GiftError] = DataError, formats: tuple[str, ...] = SHARD_FORMATS) -> Decoded:
    """As decode_rgb, with what was done to the values."""
    try:
        with Image.open(io.BytesIO(content), formats=formats) as image:
            return as_rgb(image)
    except UNDECODABLE as error:
        reason = "cannot identify its format" if isinstance(error, UnidentifiedImageError) else first_line(error)
        raise error_class(f"{where} does not decode as an image ({', '.join(formats)}): {reason}. Replace the file.") from error


def as_rgb(image: Image.Image) -> Decoded:
    """Any PIL image as RGB of 8 bits. Raises ValueError for values that are no numbers, and what PIL raises on broken files."""
    image.load()
    if image.mode == "RGB" and "transparency" not in image.info:
        return Decoded(image, ())  # as it is: converting would copy it
    if image.mode == "F" or image.mode.startswith("I"):
        return _scaled(image)
    if image.has_transparency_data:
        return _on_white(image)
    return Decoded(image.convert("RGB"), ())


def is_turned(content: bytes, formats: tuple[str, ...] = FILE_FORMATS) -> bool:
    """Whether an image that decodes says by EXIF that it is to be shown turned or mirrored."""
    try:
        with Image.open(io.BytesIO(content), formats=formats) as image:
            return bool(image.getexif().get(_ORIENTATION_TAG, _UPRIGHT) != _UPRIGHT)
    except UNDECODABLE:
        return False  # the tags are damaged; nobody else reads them


def _on_white(image: Image.Image) -> Decoded:
    with_alpha = image.convert("RGBA")
    alpha = with_alpha.getchannel("A")
    opaque = with_alpha.convert("RGB")
    if alpha.getextrema()[0] == 255:
        return Decoded(opaque, ())
    return Decoded(_over_white(opaque, alpha), (ON_WHITE,))


def _over_white(image: Image.Image, alpha: Image.Image) -> Image.Image:
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(image, mask=alpha)
    return canvas


def _scaled(image: Image.Image) -> Decoded:
    """One channel of more than 8 bits, as grey."""
    values = np.asarray(image)
    grey, done = _eight_bits(values, is_16_bits=image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")))
    if image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC_TAG) == _WHITE_IS_ZERO:  # type: ignore[attr-defined]
        grey = 255 - grey  # Pillow turns these round where they have 8 bits or fewer, and leaves it to others beyond (13.0)
    picture = Image.fromarray(grey).convert("RGB")
    see_through = image.info.get("transparency")  # of a grey PNG: the one value that is transparent
    if isinstance(see_through, int) and (values == see_through).any():
        return Decoded(_over_white(picture, Image.fromarray(np.where(values == see_through, 0, 255).astype(np.uint8))), (*done, ON_WHITE))
    return Decoded(picture, done)


def _eight_bits(values: NDArray[np.generic], *, is_16_bits: bool) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Values [H, W] as 0-255, rounded: 16 bits by 257; floats within 0..1 by 255; within 0..255 as they are; others by their range."""
    if is_16_bits:
        few = (FEW_BITS,) if 0 < values.max() < 2**12 else ()
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8), (SCALED_16_BITS, *few)
    numbers = values.astype(np.float64)
    low, high = float(numbers.min()), float(numbers.max())
    if not np.isfinite(low + high):
        raise ValueError("it holds values that are no numbers (NaN or infinite)")
    done: tuple[str, ...] = ()
    if low >= 0 and high <= 1 and np.issubdtype(values.dtype, np.floating):
        numbers, done = numbers * 255, (SCALED_UNIT,)
    elif low < 0 or high > 255:
        numbers, done = (numbers - low) * (255 / ((high - low) or 1)), (SCALED_RANGE,)
    return np.round(numbers).astype(np.uint8), done
