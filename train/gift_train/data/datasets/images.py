"""Encoded bytes -> RGB images, and the labelled images of a dataset. PIL only, named formats only."""

import hashlib
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from gift_shared.decoding import SHARD_FORMATS, UNDECODABLE
from gift_shared.errors import DataError, GiftError

FILE_FORMATS = (*SHARD_FORMATS, "BMP", "GIF", "PPM", "TIFF")  # a few of SUN397's .jpg files are other formats inside
SUFFIX_OF_FORMAT = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}


def decode_rgb(
    content: bytes, where: str, error_class: type[GiftError] = DataError, formats: tuple[str, ...] = SHARD_FORMATS
) -> Image.Image:
    """Decode an image to RGB. Raises `error_class`, naming `where`, if it is none of `formats` or broken."""
    try:
        with Image.open(io.BytesIO(content), formats=formats) as image:
            if image.mode != "RGB":
                return image.convert("RGB")
            image.load()
            return image  # as it is: converting would copy it
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

    @abstractmethod
    def identity(self) -> str | None:
        """A digest that changes when the images or their order may have changed; None where nothing tells."""


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

    def identity(self) -> str:
        return files_identity(self.paths)


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

    def identity(self) -> str | None:
        whole = self.source.identity()
        return None if whole is None else digest_of(whole.encode(), self.indices.tobytes())


def files_identity(paths: Iterable[Path], *more: bytes) -> str:
    """A digest of the files' places, lengths and times of change, and of `more`. Nothing is read."""
    told = []
    for path in paths:
        status = path.stat()
        told.append(f"{os.path.abspath(path)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest_of(b"".join(told), *more)


def digest_of(*parts: bytes) -> str:
    """sha256 of parts that are told apart by their lengths."""
    return hashlib.sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).hexdigest()
