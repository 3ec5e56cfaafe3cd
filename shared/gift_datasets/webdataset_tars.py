"""Random access to local WebDataset tars of labelled images: `<key>.jpg` (or any other image suffix) beside `<key>.cls`.

Members are found by walking the headers once; contents are read by offset. Anything else in a tar is counted and never decoded,
and a tar that holds links, pickles or paths out of its folder is refused whole.
"""

import math
import os
import re
from collections.abc import Set
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
from braceexpand import UnbalancedBracesError, braceexpand  # type: ignore[attr-defined]  # its stubs lack the error

from gift_datasets.images import ImageSource, file_listing, files_identity
from gift_shared.decoding import FILE_FORMATS, FILE_SUFFIXES, Decoded, decode
from gift_shared.errors import DataError, ManifestError
from gift_shared.image_files import PassedOver, is_stray_member
from gift_shared.manifests import TaskManifest
from gift_shared.tar_members import plain_members

LABEL_SUFFIX = ".cls"
MOST_NAMES_TOLD = 3
MOST_TARS = 1_000_000  # of one pattern; a slip of the keyboard in a range would fill the memory with names
LONGEST_PATTERN, MOST_BRACES = 1000, 20
_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)")
_MAX_LABEL_BYTES = 32
_MAX_LABEL = np.iinfo(np.int64).max


class TarImages(ImageSource):
    """Images of WebDataset tars in the order of the tars and, within one, of its members."""

    def __init__(self, name: str, tars: list[Path], root: Path | None = None) -> None:
        self.tars = tars
        self.root = root or Path(os.path.commonpath([path.parent for path in tars]))
        self.passed_over = PassedOver()
        keys: list[str] = []
        places: list[tuple[int, int, int]] = []  # tar number, byte offset, byte size
        labels: list[int] = []
        for number, path in enumerate(tars):
            for key, (offset, size), label in _read_table(name, path, self.passed_over):
                keys.append(key)
                places.append((number, offset, size))
                labels.append(label)
        self.keys = keys
        self.places = places
        self.labels = np.array(labels, dtype=np.int64)

    def decoded(self, index: int) -> Decoded:
        return decode(self.encoded(index), self.where(index), formats=FILE_FORMATS)

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

    def listing(self, index: int) -> tuple[str, int]:
        number, _, size = self.places[index]
        return f"{self._names[number]}:{self.keys[index]}", size

    @cached_property
    def _names(self) -> list[str]:
        return [file_listing(path, self.root)[0] for path in self.tars]

    def identity(self) -> str:
        return files_identity(self.tars)


def open_tars(manifest: TaskManifest, data_root: Path, pattern: str) -> TarImages:
    """Open the tars a manifest names, e.g. `birds/train-{000000..000003}.tar`. Raises DataError if one is missing or broken."""
    tars = [data_root / name for name in tar_names(manifest.name, pattern)]
    missing = [path for path in tars if not path.is_file()]
    if missing:
        raise DataError(f"{manifest.name}: {len(missing)} of {len(tars)} tars of {pattern!r} are missing, first {missing[0]}.")
    return TarImages(manifest.name, tars, data_root)


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


def _read_table(name: str, path: Path, passed_over: PassedOver) -> list[tuple[str, tuple[int, int], int]]:
    """Key, place and label of each sample of a tar, in the order of its images. `passed_over` counts its other members."""
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    with path.open("rb") as content:
        for member in plain_members(path):
            key, suffix = key_and_suffix(member.name)
            if is_stray_member(member.name):
                continue
            if suffix not in (*FILE_SUFFIXES, LABEL_SUFFIX):
                passed_over.add(suffix, f"{path} ({member.name})")
                continue
            if key in (labels if suffix == LABEL_SUFFIX else images):
                raise DataError(f"{name}: sample {key!r} stands twice in {path}. Pack the data again.")
            if suffix == LABEL_SUFFIX:
                content.seek(member.offset_data)
                labels[key] = _label(name, path, member.name, content.read(min(member.size, _MAX_LABEL_BYTES)))
            else:
                images[key] = (member.offset_data, member.size)
    _check_whole(name, path, images.keys(), labels.keys(), passed_over)
    samples = [(key, place, labels[key]) for key, place in images.items() if key in labels]
    if not samples:
        raise DataError(f"{name}: {path} holds no sample, expected <key>{'|'.join(FILE_SUFFIXES)} beside <key>{LABEL_SUFFIX}.")
    return samples


def _check_whole(name: str, path: Path, images: Set[str], labels: Set[str], passed_over: PassedOver) -> None:
    """Every image has its label and every label its image. Of a key with dots, WebDataset's rule decides what it is part of.

    By that rule `a.mask.png` is another member of the sample `a`, and `22.04.png` one of a sample `22`. It is taken for a member of
    `a` if that is a sample and `a.mask` is none, for a sample of its own if `a` is none, and refused if both are: DataError.
    """
    whole = images & labels
    extra = {key for key in images ^ labels if (first := _first_dot(key)) != key and first in whole}
    lone = (images ^ labels) - extra
    if lone:
        names = ", ".join(map(repr, sorted(lone)[:MOST_NAMES_TOLD]))
        raise DataError(
            f"{name}: sample {names}{', ...' if len(lone) > MOST_NAMES_TOLD else ''} of {path} lacks its image or its {LABEL_SUFFIX}; "
            f"{len(lone)} are incomplete. Pack the data again with both, or without them."
        )
    for key in sorted(whole):
        if (first := _first_dot(key)) != key and first in whole:
            raise DataError(
                f"{name}: {path} holds {first!r} and {key!r}, each with image and {LABEL_SUFFIX}: to WebDataset, where a key ends at its "
                "first dot, they are one sample. Name the second one without a dot."
            )
    for key in sorted(extra):
        passed_over.add(f"more of a sample ({key.removeprefix(_first_dot(key))}.*)", f"{path} ({key}.*)")


def key_and_suffix(member: str) -> tuple[str, str]:
    """The key ends at the last dot of the last path component (`22.04.png`); see _check_whole for what WebDataset makes of it."""
    folder, slash, file = member.rpartition("/")
    stem, dot, extension = file.rpartition(".")
    return (folder + slash + stem, (dot + extension).lower()) if dot else (member, "")


def _first_dot(key: str) -> str:
    folder, slash, stem = key.rpartition("/")
    return folder + slash + stem.partition(".")[0]


def _label(name: str, path: Path, member: str, content: bytes) -> int:
    text = content.decode("ascii", errors="replace").strip()
    if not text.isdecimal() or int(text) > _MAX_LABEL:
        raise DataError(f"{name}: {member!r} of {path} must hold a label index such as 17, found {text!r}.")
    return int(text)
