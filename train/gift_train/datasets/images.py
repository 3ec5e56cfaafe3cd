"""Encoded bytes -> RGB images, and a bounded memory for those that are read at every epoch. PIL only, named formats only."""

import io
import struct
import zlib
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from gift_shared.errors import DataError, GiftError

SHARD_FORMATS = ("JPEG", "PNG", "WEBP")
FILE_FORMATS = (*SHARD_FORMATS, "BMP", "GIF", "PPM", "TIFF")  # a few of SUN397's .jpg files are other formats inside
SUFFIX_OF_FORMAT = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}
# What PIL's decoders raise on broken files; UnidentifiedImageError is an OSError.
UNDECODABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
CACHE_BYTES = 128 * 2**20  # for each split of each dataset: the mini world fits, 224-pixel benchmarks are read from disk
_BYTES_PER_PIXEL = 4  # PIL's own storage of an RGB pixel


def decode_rgb(
    content: bytes, where: str, error_class: type[GiftError] = DataError, formats: tuple[str, ...] = SHARD_FORMATS
) -> Image.Image:
    """Decode an image to RGB. Raises `error_class`, naming `where`, if it is none of `formats` or broken."""
    try:
        with Image.open(io.BytesIO(content), formats=formats) as image:
            return image.convert("RGB")
    except UNDECODABLE as error:
        reason = "no such image format" if isinstance(error, UnidentifiedImageError) else str(error)
        raise error_class(f"{where} does not decode as an image ({', '.join(formats)}): {reason}. Replace the file.") from error


class ImageSource(ABC):
    """Labelled images in a fixed order. Listing is done on construction; an image is only read when asked for."""

    labels: NDArray[np.int64]  # [N], label index of the manifest's class names
    class_names_found: tuple[str, ...] | None = None  # what the data itself calls its classes, in label order, if it does

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """The index-th image, RGB. Raises DataError naming the file."""

    @abstractmethod
    def where(self, index: int) -> str:
        """Where the index-th image lies, for messages."""

    @abstractmethod
    def encoded(self, index: int) -> bytes | None:
        """The image's bytes as they lie on disk; None where it is not kept as a file of its own."""


class FileImages(ImageSource):
    """Images that are files of their own."""

    def __init__(self, paths: list[Path], labels: NDArray[np.int64]) -> None:
        self.paths = paths
        self.labels = labels

    def image(self, index: int) -> Image.Image:
        return decode_rgb(self.encoded(index), self.where(index), formats=FILE_FORMATS)

    def where(self, index: int) -> str:
        return str(self.paths[index])

    def encoded(self, index: int) -> bytes:
        try:
            return self.paths[index].read_bytes()
        except OSError as error:
            raise DataError(f"{self.where(index)} cannot be read ({error.strerror}). Put the file back.") from error


class Selected(ImageSource):
    """Some images of another source, in the given order: one side of a split."""

    def __init__(self, source: ImageSource, indices: NDArray[np.int64]) -> None:
        self.source = source
        self.indices = indices
        self.labels = source.labels[indices]
        self.class_names_found = source.class_names_found

    def image(self, index: int) -> Image.Image:
        return self.source.image(int(self.indices[index]))

    def where(self, index: int) -> str:
        return self.source.where(int(self.indices[index]))

    def encoded(self, index: int) -> bytes | None:
        return self.source.encoded(int(self.indices[index]))


class DecodedCache:
    """Keeps decoded images until its room is used up; those that no longer fit are decoded at each use."""

    def __init__(self, num_bytes: int = CACHE_BYTES) -> None:
        self.room = num_bytes
        self.kept: dict[int, Image.Image] = {}

    def get(self, index: int) -> Image.Image | None:
        """The kept image, or None."""
        return self.kept.get(index)

    def offer(self, index: int, image: Image.Image) -> None:
        """Keep the image if there is room."""
        size = image.width * image.height * _BYTES_PER_PIXEL
        if size <= self.room and index not in self.kept:
            self.room -= size
            self.kept[index] = image
