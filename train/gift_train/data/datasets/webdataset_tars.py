"""Random access to local WebDataset tars of labelled images: `<key>.jpg|.png|.webp` beside `<key>.cls`.

Members are found by walking the headers once; contents are read by offset. Anything else in a tar is never decoded,
and a tar that holds links, pickles or paths out of its folder is refused whole.
"""

import math
import re
from itertools import islice
from pathlib import Path

import numpy as np
from braceexpand import UnbalancedBracesError, braceexpand  # type: ignore[attr-defined]  # its stubs lack the error
from PIL import Image

from gift_shared.errors import DataError, ManifestError
from gift_shared.manifests import TaskManifest
from gift_shared.shards import IMAGE_SUFFIXES
from gift_shared.tar_members import plain_members
from gift_train.data.datasets.images import ImageSource, decode_rgb, files_identity

LABEL_SUFFIX = ".cls"
MOST_TARS = 1_000_000  # of one pattern; a slip of the keyboard in a range would fill the memory with names
LONGEST_PATTERN, MOST_BRACES = 1000, 20
_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)")
_MAX_LABEL_BYTES = 32
_MAX_LABEL = np.iinfo(np.int64).max


class TarImages(ImageSource):
    """Images of WebDataset tars in the order of the tars and, within one, of its members."""

    def __init__(self, name: str, tars: list[Path]) -> None:
        self.tars = tars
        keys: list[str] = []
        places: list[tuple[int, int, int]] = []  # tar number, byte offset, byte size
        labels: list[int] = []
        for number, path in enumerate(tars):
            for key, (offset, size), label in _read_table(name, path):
                keys.append(key)
                places.append((number, offset, size))
                labels.append(label)
        self.keys = keys
        self.places = places
        self.labels = np.array(labels, dtype=np.int64)

    def image(self, index: int) -> Image.Image:
        return decode_rgb(self.encoded(index), self.where(index))

    def where(self, index: int) -> str:
        return f"{self.tars[self.places[index][0]]} ({self.keys[index]})"

    def encoded(self, index: int) -> bytes:
        number, offset, size = self.places[index]
        try:
            with self.tars[number].open("rb") as tar:
                tar.seek(offset)
                content = tar.read(size)
        except OSError as error:
            raise DataError(f"{self.tars[number]} cannot be read ({error.strerror}). Put the file back.") from error
        if len(content) != size:
            raise DataError(f"{self.where(index)}: the tar was cut short while it was in use. Copy it again.")
        return content

    def identity(self) -> str:
        return files_identity(self.tars)


def open_tars(manifest: TaskManifest, data_root: Path, pattern: str) -> TarImages:
    """Open the tars a manifest names, e.g. `birds/train-{000000..000003}.tar`. Raises DataError if one is missing or broken."""
    tars = [data_root / name for name in tar_names(manifest.name, pattern)]
    missing = [path for path in tars if not path.is_file()]
    if missing:
        raise DataError(f"{manifest.name}: {len(missing)} of {len(tars)} tars of {pattern!r} are missing, first {missing[0]}.")
    return TarImages(manifest.name, tars)


def tar_names(name: str, pattern: str) -> list[str]:
    """The names a brace pattern stands for. Raises ManifestError, naming the dataset, if it stands for none or too many."""
    too_many = ManifestError(f"{name}: [data] names {pattern!r}, which stands for more than {MOST_TARS} tars. Correct its ranges.")
    if len(pattern) > LONGEST_PATTERN or pattern.count("{") > MOST_BRACES:
        raise too_many  # before anything is expanded: alternatives multiply, and nested ones recurse
    try:
        if math.prod(abs(int(last) - int(first)) + 1 for first, last in _RANGE.findall(pattern)) > MOST_TARS:
            raise too_many  # before the ranges are expanded: each of them is held in memory
        names = list(islice(braceexpand(pattern), MOST_TARS + 1))
    except UnbalancedBracesError as error:
        raise ManifestError(f"{name}: [data] names {pattern!r}, whose braces do not close.") from error
    if len(names) > MOST_TARS:
        raise too_many
    return names


def _read_table(name: str, path: Path) -> list[tuple[str, tuple[int, int], int]]:
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    with path.open("rb") as content:
        for member in plain_members(path):
            key, suffix = _key_and_suffix(member.name)
            if suffix not in (*IMAGE_SUFFIXES, LABEL_SUFFIX):
                continue
            if key in (labels if suffix == LABEL_SUFFIX else images):
                raise DataError(f"{name}: sample {key!r} stands twice in {path}. Pack the data again.")
            if suffix == LABEL_SUFFIX:
                content.seek(member.offset_data)
                labels[key] = _label(name, path, member.name, content.read(min(member.size, _MAX_LABEL_BYTES)))
            else:
                images[key] = (member.offset_data, member.size)
    lone = images.keys() ^ labels.keys()
    if lone:
        raise DataError(f"{name}: sample {min(lone)!r} of {path} lacks its image or its {LABEL_SUFFIX}; {len(lone)} are incomplete.")
    if not images:
        raise DataError(f"{name}: {path} holds no sample, expected <key>{'|'.join(IMAGE_SUFFIXES)} beside <key>{LABEL_SUFFIX}.")
    return [(key, place, labels[key]) for key, place in images.items()]


def _key_and_suffix(member: str) -> tuple[str, str]:
    """WebDataset's rule: the key ends at the first dot of the last path component."""
    folder, slash, file = member.rpartition("/")
    stem, dot, extension = file.partition(".")
    return folder + slash + stem, (dot + extension).lower()


def _label(name: str, path: Path, member: str, content: bytes) -> int:
    text = content.decode("ascii", errors="replace").strip()
    if not text.isdecimal() or int(text) > _MAX_LABEL:
        raise DataError(f"{name}: {member!r} of {path} must hold a label index such as 17, found {text!r}.")
    return int(text)
