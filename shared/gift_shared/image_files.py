"""Finds the image files in a folder that people fill: the one walk for class folders, reference images and imports.

What is hidden or left there by an operating system is skipped at any depth. Links are followed, but no folder is entered twice and none
that holds the one the walk began in. Every other file that is no image is counted, so that nothing is passed over in silence.
"""

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from gift_shared.decoding import FILE_SUFFIXES
from gift_shared.errors import DataError

_SYSTEM_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")
_SYSTEM_FOLDERS = ("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found")
MOST_SUFFIXES_TOLD = 5
FolderId = tuple[int, int]  # device and inode: what a folder is, by whatever name


@dataclass
class PassedOver:
    """What lies among images and is not read: how many by suffix (`.heic`; a folder of links by `link`), and the first of them."""

    counts: Counter[str] = field(default_factory=Counter)
    first: str = ""

    def add(self, suffix: str, where: str) -> None:
        """Count one file."""
        self.counts[suffix or "no suffix"] += 1
        self.first = self.first or where

    def __add__(self, other: "PassedOver") -> "PassedOver":
        return PassedOver(self.counts + other.counts, self.first or other.first)

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __str__(self) -> str:
        """`8 files are passed over (5 .heic, 3 .txt), first a/b.heic`."""
        num_files = self.counts.total()
        kinds = [f"{count} {suffix}" for suffix, count in self.counts.most_common(MOST_SUFFIXES_TOLD)]
        more = ", ..." if len(self.counts) > MOST_SUFFIXES_TOLD else ""
        return f"{num_files} {'file is' if num_files == 1 else 'files are'} passed over ({', '.join(kinds)}{more}), first {self.first}"


@dataclass(frozen=True)
class FoundImages:
    """Image files, sorted, and what else lies there."""

    files: list[Path]
    passed_over: PassedOver


def is_stray(name: str, *, is_folder: bool = False) -> bool:
    """Whether a file or folder is hidden (a leading dot: .DS_Store, ._photo.jpg, .ipynb_checkpoints) or left by an operating system."""
    return name.startswith(".") or name.lower() in (_SYSTEM_FOLDERS if is_folder else _SYSTEM_FILES)


def is_stray_member(name: str) -> bool:
    """Whether a tar's member is a stray file, or lies in a stray folder: macOS packs the attributes of `a.png` beside it as `._a.png`."""
    *folders, file = PurePosixPath(name).parts or ("",)
    return is_stray(file) or any(is_stray(folder, is_folder=True) for folder in folders)


def find_images(folder: Path, suffixes: Iterable[str] = FILE_SUFFIXES, others: Collection[FolderId] = ()) -> FoundImages:
    """All image files under a folder, by their suffix in any case.

    others: folders that are read for themselves (the other classes) and are not entered from here. Raises DataError for a folder
    that cannot be read.
    """
    wanted = tuple(suffixes)
    files: list[Path] = []
    passed_over = PassedOver()
    for path in _walk(folder, set(others), passed_over):
        if path.name.lower().endswith(wanted):
            files.append(path)
        else:
            passed_over.add(path.suffix.lower(), str(path))
    return FoundImages(sorted(files), passed_over)


def find_strays(folder: Path) -> Iterator[Path]:
    """Hidden files and those of an operating system, and such folders, which are not entered. For messages."""
    for parent, names, files in os.walk(folder):
        yield from (Path(parent, name) for name in sorted(files) if is_stray(name))
        yield from (Path(parent, name) for name in sorted(names) if is_stray(name, is_folder=True))
        names[:] = [name for name in names if not is_stray(name, is_folder=True)]


def same_folder(folders: Iterable[Path]) -> tuple[Path, Path] | None:
    """Two of the folders that are one, by links; None if all differ."""
    seen: dict[FolderId, Path] = {}
    for folder in folders:
        first = seen.setdefault(folder_id(folder), folder)
        if first is not folder:
            return first, folder
    return None


def _walk(folder: Path, others: set[FolderId], passed_over: PassedOver) -> Iterator[Path]:
    """Files that are not stray. Real folders come before linked ones, so that a file is listed under its own name."""
    closed = (others | {folder_id(parent) for parent in folder.resolve().parents}) - {folder_id(folder)}
    todo = [folder]
    while todo:
        links: list[Path] = []
        for start in todo:
            if not _enter(start, closed, passed_over):
                continue
            for parent, names, files in os.walk(start, onerror=_unreadable):
                yield from (Path(parent, name) for name in sorted(files) if not is_stray(name))  # so that messages name the same first
                inner = [Path(parent, name) for name in sorted(names) if not is_stray(name, is_folder=True)]
                links += [path for path in inner if path.is_symlink()]
                names[:] = [path.name for path in inner if not path.is_symlink() and _enter(path, closed, passed_over)]
        todo = links


def _enter(folder: Path, closed: set[FolderId], passed_over: PassedOver) -> bool:
    place = folder_id(folder)
    if place in closed:
        passed_over.add("link", f"{folder} (a link to a folder that is read elsewhere)")
        return False
    closed.add(place)
    return True


def _unreadable(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be read ({error.strerror}). Allow it, or remove the folder.") from error


def folder_id(folder: Path) -> FolderId:
    """Device and inode of a folder, or of what a link leads to."""
    status = folder.stat()
    return status.st_dev, status.st_ino
