"""Opens image-caption pairs: a folder with a caption file or with a .txt beside each image, such a file itself, WebDataset tars.

Every image must be there and have a caption, and every caption must have its image: what is missing is told by name, before any work.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from gift_datasets.images import ImageSource, digest_of, file_listing, files_identity
from gift_datasets.webdataset_tars import tar_names
from gift_shared.console import some_of
from gift_shared.decoding import FILE_FORMATS, FILE_SUFFIXES, Decoded, decode
from gift_shared.delimited_rows import open_text
from gift_shared.documents import is_file_name
from gift_shared.errors import DataError
from gift_shared.image_files import FoundImages, find_images, is_stray
from gift_shared.schema import INDEX_FILE, SHARD_FOLDER
from gift_shared.tar_members import read_range
from gift_train.data.pairs.caption_tables import TABLE_SUFFIXES, NamedPair, read_pairs
from gift_train.data.pairs.tars import read_tar
from gift_train.data.places import Place, Places

ANNOTATIONS = "annotations"  # COCO's folder of files beside its folders of images
_TEXT = ".txt"
T = TypeVar("T")
_log = logging.getLogger(__name__)


class PairImages(ImageSource):
    """The images of pairs, each once: files, or members of tars. An image's label is its number."""

    def __init__(self, places: Places, names: Sequence[str], root: Path) -> None:
        self.places = places
        self.names = names  # as people know them
        self.root = root
        self.labels = np.arange(len(places), dtype=np.int64)

    def decoded(self, index: int) -> Decoded:
        return decode(self.encoded(index), self.where(index), formats=FILE_FORMATS)

    def where(self, index: int) -> str:
        return self.names[index]

    def encoded(self, index: int) -> bytes:
        path, offset, size = self.places[index]
        return read_range(path, offset, size, self.where(index))

    def listing(self, index: int) -> tuple[str, int]:
        path, offset, size = self.places[index]
        name, num_bytes = file_listing(path, self.root)
        return (name, num_bytes) if size < 0 else (f"{name}:{offset}", size)

    def identity(self) -> str:
        files = sorted({path for path, _, _ in self.places})
        return files_identity(files, repr([(offset, size) for _, offset, size in self.places]).encode())


@dataclass(frozen=True)
class Pairs:
    """Images with their captions. `images_of`: for each caption the number of its image, [C]; an image may have several."""

    name: str
    images: PairImages
    captions: tuple[str, ...]
    images_of: NDArray[np.int64]

    def digest(self) -> str:
        """Of the images' names and sizes and of the captions: other pairs are another digest, a copy elsewhere is not."""
        return digest_of(self.images.listing_digest().encode(), "\n".join(self.captions).encode(), self.images_of.tobytes())


def open_pairs(path: Path) -> Pairs:
    """List the pairs at a path, none decoded but the first. Raises DataError for pairs that are not whole, naming them.

    A folder with one caption file is read by it, one with tars (an output folder of gift-generate too) by these, any other by the .txt
    beside each image, a caption a line. Its name is that of the folder or file.
    """
    if "{" in path.name and not path.exists():
        tars = [path.parent / name for name in tar_names(path.name, path.name)]
        return _of_tars(path.name.partition("{")[0].strip("-_."), tars, path.parent)
    if path.is_file():
        return _of_tars(path.stem, [path], path.parent) if path.suffix.lower() == ".tar" else _of_file(path.stem, path)
    if not path.is_dir():
        raise DataError(f"No image-caption pairs at {path}: neither a folder nor a file.")
    name = os.path.basename(os.path.abspath(path))
    folder = path / SHARD_FOLDER if (path / INDEX_FILE).is_file() else path
    if tars := sorted(folder.glob("*.tar")):
        return _of_tars(name, tars, path)
    found = find_images(path)
    if not found.files:
        raise DataError(f"{path} holds no image ({', '.join(FILE_SUFFIXES)}){f'; {found.passed_over}' if found.passed_over else ''}.")
    file = _caption_file(path, found)
    return _of_texts(name, path, found) if file is None else _of_file(name, file, path, found)


def _caption_file(folder: Path, found: FoundImages) -> Path | None:
    """The one file of the folder that can name images and captions; None if there is none. Raises DataError if there are several."""
    beside_images = {image.stem for image in found.files if image.parent == folder}
    candidates = [*sorted(folder.iterdir()), *sorted((folder / ANNOTATIONS).glob("captions*.json"))]
    candidates = [
        file
        for file in candidates
        if file.suffix.lower() in TABLE_SUFFIXES and file.is_file() and not is_stray(file.name) and file.stem not in beside_images
    ]
    if len(candidates) > 1:
        raise DataError(
            f"{folder} holds several files that may be captions ({some_of(list(map(str, candidates)))}): give the one that is meant."
        )
    return candidates[0] if candidates else None


def _of_file(name: str, file: Path, folder: Path | None = None, found: FoundImages | None = None) -> Pairs:
    if folder is None:
        folder = file.parent.parent if file.parent.name == ANNOTATIONS else file.parent
    files = (found or find_images(folder)).files
    paths = _ByName(folder, files)
    images: dict[Path, int] = {}
    captions, numbers = [], []
    missing, empty = [], []
    for pair in _readable(file, read_pairs(file)):
        image = paths.find(file, pair)
        if image is None:
            missing.append(f"{pair.image} ({pair.where})")
        elif not pair.caption.strip():
            empty.append(f"{pair.image} ({pair.where})")
        else:
            captions.append(pair.caption.strip())
            numbers.append(images.setdefault(image, len(images)))
    _require_none(missing, f"of the images that {file} names are not under {folder}")
    _require_none(empty, f"captions of {file} are empty")
    if not captions:
        raise DataError(f"{file} holds no caption.")
    if len(images) < len(files):
        left_out = len(files) - len(images)
        _log.warning("%s names %d images; %d others under %s take no part in retrieval.", file, len(images), left_out, folder)
    places = Places.of(Place(path, 0, -1) for path in images)
    return _checked(Pairs(name, PairImages(places, [str(path) for path in images], folder), tuple(captions), np.array(numbers)))


def _of_texts(name: str, folder: Path, found: FoundImages) -> Pairs:
    captions, numbers, missing = [], [], []
    for number, image in enumerate(found.files):
        text = image.with_suffix(_TEXT)
        lines = [line.strip() for line in _readable(text, open_text(text)) if line.strip()] if text.is_file() else []
        if not lines:
            missing.append(f"{image.relative_to(folder)} ({'no' if not text.is_file() else 'an empty'} {text.name})")
        captions += lines
        numbers += [number] * len(lines)
    _require_none(missing, f"images of {folder} have no caption: expected {', '.join(TABLE_SUFFIXES)} in the folder, or a .txt beside each")
    places = Places.of(Place(path, 0, -1) for path in found.files)
    return _checked(Pairs(name, PairImages(places, [str(path) for path in found.files], folder), tuple(captions), np.array(numbers)))


def _of_tars(name: str, tars: Sequence[Path], root: Path) -> Pairs:
    places: list[Place] = []
    names, captions, numbers = [], [], []
    for path in tars:
        if not path.is_file():
            raise DataError(f"{path} is missing, one of {len(tars)} tars.")
        for key, place, own in read_tar(path):
            captions += own
            numbers += [len(places)] * len(own)
            places.append(place)
            names.append(f"{path} ({key})")
    if not places:
        raise DataError(f"{tars[0].parent} holds no image-caption pair: its {len(tars)} tars are empty.")
    return _checked(Pairs(name, PairImages(Places.of(places), names, root), tuple(captions), np.array(numbers)))


def _checked(pairs: Pairs) -> Pairs:
    if not is_file_name(pairs.name):
        raise DataError(f"{pairs.images.root}: its pairs would be called {pairs.name!r}, which is no name. Rename it.")
    pairs.images.image(0)  # a folder of broken files is told before any work
    return pairs


def _readable(path: Path, parts: Iterable[T]) -> Iterator[T]:
    """The parts of a text file. Raises DataError if it turns out to be none."""
    try:
        yield from parts
    except UnicodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}. Convert it first.") from error


def _require_none(names: Sequence[str], fault: str) -> None:
    if names:
        raise DataError(f"{len(names)} {fault}: {some_of(names)}.")


class _ByName:
    """Images of a folder by the names that caption files have for them: the path below it, or the file's name where no other has it."""

    def __init__(self, folder: Path, files: Iterable[Path]) -> None:
        self._paths: dict[str, Path] = {}
        self._names: dict[str, list[Path]] = {}
        for path in files:
            self._paths[path.relative_to(folder).as_posix()] = path
            self._names.setdefault(path.name, []).append(path)

    def find(self, file: Path, pair: NamedPair) -> Path | None:
        """The image of a pair; None if there is none. Raises DataError if several could be meant."""
        name = pair.image.replace("\\", "/").removeprefix("./")
        if name in self._paths:
            return self._paths[name]
        alike = self._names.get(name.rpartition("/")[2], [])
        if len(alike) > 1:
            raise DataError(f"{file}, {pair.where}: {pair.image} could be {some_of(list(map(str, alike)))}. Name it with its folder.")
        return alike[0] if alike else None
