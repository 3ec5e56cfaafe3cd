"""The labelled images of a dataset: listed once, each read and decoded when it is asked for."""

import hashlib
import os
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gift_shared.decoding import FILE_FORMATS, Decoded, decode
from gift_shared.errors import DataError
from gift_shared.image_files import PassedOver

SUFFIX_OF_FORMAT = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}


class ImageSource(ABC):
    """Labelled images in a fixed order. Listing is done on construction; an image is only read when asked for."""

    labels: NDArray[np.int64]  # [N], label index of the manifest's class names
    class_names_found: tuple[str, ...] | None = None  # what the data itself calls its classes, in label order, if it does
    passed_over: PassedOver = PassedOver()  # what lies among the images and is not read

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """The index-th image, RGB. Raises DataError naming the file."""
        return self.decoded(index).image

    @abstractmethod
    def decoded(self, index: int) -> Decoded:
        """The index-th image, RGB, and what was done to its values. Raises DataError naming the file."""

    @abstractmethod
    def where(self, index: int) -> str:
        """Where the index-th image lies, for messages."""

    @abstractmethod
    def encoded(self, index: int) -> bytes | None:
        """The image's bytes as they lie on disk; None where it is not kept as a file of its own."""

    @abstractmethod
    def listing(self, index: int) -> tuple[str, int] | None:
        """The image's name below the data root, with `/`, and its size in bytes; None where it is not kept as a file of its own."""

    @abstractmethod
    def identity(self) -> str | None:
        """A digest that changes when the images or their order may have changed; None where nothing tells."""

    def listing_digest(self) -> str:
        """A digest of how many images there are, their names below the data root, sizes in bytes and labels, in order.

        The same on every machine and after copying, unlike `identity`; nothing is decoded, and only sizes are asked for. Images without
        files of their own (CIFAR) are told by their values.
        """
        lines = "".join(f"{self.listing(index)}\n" for index in range(len(self)))
        return digest_of(lines.encode("utf-8", "surrogateescape"), self.labels.tobytes())


class FileImages(ImageSource):
    """Images that are files of their own, below `root`, the data root."""

    def __init__(self, paths: list[Path], labels: NDArray[np.int64], root: Path, passed_over: PassedOver | None = None) -> None:
        self.paths = paths
        self.labels = labels
        self.root = root
        self.passed_over = passed_over or PassedOver()

    def decoded(self, index: int) -> Decoded:
        return decode(self.encoded(index), self.where(index), formats=FILE_FORMATS)

    def where(self, index: int) -> str:
        return str(self.paths[index])

    def encoded(self, index: int) -> bytes:
        return file_bytes(self.paths[index])

    def listing(self, index: int) -> tuple[str, int]:
        return file_listing(self.paths[index], self.root)

    def identity(self) -> str:
        return files_identity(self.paths)


class Selected(ImageSource):
    """Some images of another source, in the given order: one side of a split. `labels`: theirs, where they are other than there."""

    def __init__(self, source: ImageSource, indices: NDArray[np.int64], labels: NDArray[np.int64] | None = None) -> None:
        self.source = source
        self.indices = indices
        self.labels = source.labels[indices] if labels is None else labels
        self.class_names_found = source.class_names_found
        self.passed_over = source.passed_over

    def decoded(self, index: int) -> Decoded:
        return self.source.decoded(int(self.indices[index]))

    def where(self, index: int) -> str:
        return self.source.where(int(self.indices[index]))

    def encoded(self, index: int) -> bytes | None:
        return self.source.encoded(int(self.indices[index]))

    def listing(self, index: int) -> tuple[str, int] | None:
        return self.source.listing(int(self.indices[index]))

    def identity(self) -> str | None:
        whole = self.source.identity()
        return None if whole is None else digest_of(whole.encode(), self.indices.tobytes())

    def listing_digest(self) -> str:
        return digest_of(self.source.listing_digest().encode(), self.indices.tobytes())


class OfClasses(Selected):
    """The images of some classes of another source, in its order; a label is the place of the image's class in `classes`."""

    def __init__(self, source: ImageSource, classes: Sequence[int]) -> None:
        places = np.full(max(int(source.labels.max(initial=0)), *classes) + 1, -1, dtype=np.int64)
        places[list(classes)] = np.arange(len(classes))
        indices = np.flatnonzero(places[source.labels] >= 0)
        super().__init__(source, indices, labels=places[source.labels[indices]])
        self.class_names_found = None  # the source has checked them

    def identity(self) -> str | None:
        whole = super().identity()
        return None if whole is None else digest_of(whole.encode(), self.labels.tobytes())

    def listing_digest(self) -> str:
        """Of its own images alone where they are files: the steps of a dataset ask for the size of each file once in all."""
        if len(self) and self.listing(0) is not None:
            return ImageSource.listing_digest(self)
        return digest_of(super().listing_digest().encode(), self.labels.tobytes())


def file_bytes(path: Path) -> bytes:
    """All bytes of an image file. Raises DataError naming it if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). Put the file back.") from error


def file_listing(path: Path, root: Path) -> tuple[str, int]:
    """A file's name relative to `root`, with `/` and in one Unicode form, and its size in bytes. Raises DataError if it is gone."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). Put the file back.") from error
    return unicodedata.normalize("NFC", Path(os.path.relpath(path, root)).as_posix()), size


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
