"""Encoded images that anyone may have made or damaged: the formats that are read, and what PIL raises on a broken one. No pixels here."""

import struct
import zlib

from PIL import Image

SHARD_FORMATS = ("JPEG", "PNG", "WEBP")
# UnidentifiedImageError is an OSError. The rest is what the readers of single chunks and tags run into.
UNDECODABLE = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
