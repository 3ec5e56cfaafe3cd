"""Reads what the authors' code leaves: one folder per task, `Aircraft_Syn` for one, with `image_text.csv` and the JPEGs it lists.

The number in a file's name decides, not the path: the CSV's path column holds the path on the machine that wrote it. Their program writes
the lists of all tasks first, each as long as the captions drawn, and then makes images from the first line on, task after task, and as many
as `--image_num` says. So a list may be longer than its images, and one without any belongs to a task that a stopped run did not come to.
What is assumed and what is left out is told in `notes`; nothing here decides what a plan says.
"""

import csv
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gift_shared import keys
from gift_shared.decoding import FILE_SUFFIXES
from gift_shared.errors import DataError, unknown_name
from gift_shared.image_files import find_images, is_stray
from gift_shared.manifests import Manifests

CSV_NAME = "image_text.csv"
FOLDER_SUFFIX = re.compile(r"[_-]syn$", re.IGNORECASE)  # of the names of their folders
PATH_COLUMNS = ("image", "image_path", "path", "file", "filename", "file_name", "filepath", "file_path", "image_name", "img", "img_path")
CAPTION_COLUMNS = ("caption", "text", "prompt", "sentence", "title")
SUFFIXES = {".jpg": ".jpg", ".jpeg": ".jpg", ".jpe": ".jpg", ".jfif": ".jpg", ".png": ".png", ".webp": ".webp"}


@dataclass(frozen=True)
class AuthorsTask:
    """One task's list and files, both by image number. Lines beyond the last image are left out of `captions`."""

    name: str
    folder: Path
    captions: dict[int, str]
    files: dict[int, Path]
    num_listed: int  # one more than the largest number in the whole list: captions that were drawn


@dataclass(frozen=True)
class AuthorsFolder:
    """The tasks that have images, in the order's order or by the folders' names, and what the user should know of the rest."""

    tasks: list[AuthorsTask]
    notes: list[str]


def read_authors_folder(folder: Path, order: str | None, manifests: Manifests) -> AuthorsFolder:
    """Read the lists and find the images. Raises DataError and ManifestError; DataError too if there is no image at all."""
    if not folder.is_dir():
        raise DataError(f"No folder at {folder}.")
    names = _TaskNames(order, manifests)
    notes: list[str] = []
    tasks: dict[str, AuthorsTask] = {}
    not_begun: list[str] = []
    longer: list[str] = []  # lists that are longer than their images
    for path in _folders_with_list(folder, notes):
        images = find_images(path, FILE_SUFFIXES).files
        if not images:  # its list may be cut short, or be the published lists' leftover of a header alone
            not_begun.append(path.name)
            continue
        name = names.of(path)
        if name in tasks:
            raise DataError(f"{tasks[name].folder} and {path} are both the task {name!r}. Import one of them, or rename it.")
        captions = _read_csv(path / CSV_NAME)
        files = _numbered(path, images, captions, notes)
        tasks[name] = AuthorsTask(name, path, _up_to_the_last_image(path, captions, files, longer), files, max(captions) + 1)
    if not tasks:
        raise DataError(f"{folder}: there is no image beside {CSV_NAME}, here or in the folders of tasks. Is it the right folder?")
    if longer:
        notes.append(
            f"Lists are longer than their images: {', '.join(longer)}. Lines after the last image are taken as never asked for "
            "(--image_num) or not yet painted, and are not imported."
        )
    if not_begun:
        notes.append(f"{', '.join(not_begun)}: {CSV_NAME} and no image, so taken as not begun; nothing is imported of it.")
    if missing := [name for name in names.all if name not in tasks]:
        notes.append(f"{len(missing)} of the {len(names.all)} tasks of order {order} have no image here: {', '.join(missing)}.")
    ordered = [tasks[name] for name in names.all if name in tasks] if names.all else list(tasks.values())
    return AuthorsFolder(ordered, notes)


class _TaskNames:
    """Names of folders -> tasks of an order, or of all manifests if none is given."""

    def __init__(self, order: str | None, manifests: Manifests) -> None:
        tasks = manifests.tasks_of(manifests.order(order)) if order else {}
        self.all = list(tasks)
        self._by_spelling = {_bare(task.display_name): name for name, task in tasks.items()}
        self._by_spelling |= {_bare(name): name for name in self.all or manifests.names("tasks")}

    def of(self, folder: Path) -> str:
        """`StanfordCars_Syn` -> `stanford_cars`, ignoring case and punctuation; in an order by display name too. Raises DataError.

        Without an order a folder that no manifest is called like is a task of its own name.
        """
        own_name = Path(os.path.abspath(folder)).name  # of `.` too; a link keeps the name it has here
        short_name = FOLDER_SUFFIX.sub("", own_name)
        for name in (own_name, short_name):
            if _bare(name) in self._by_spelling:
                return self._by_spelling[_bare(name)]
        if self.all:
            raise DataError(f"Folder {own_name!r}: " + unknown_name("task of the order", short_name, self.all))
        return keys.slug(short_name)


def _bare(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _folders_with_list(folder: Path, notes: list[str]) -> Iterator[Path]:
    if (folder / CSV_NAME).is_file():
        yield folder
        return
    inner = [path for path in sorted(folder.iterdir()) if path.is_dir() and not is_stray(path.name, is_folder=True)]
    with_list = [path for path in inner if (path / CSV_NAME).is_file()]
    if not with_list:
        deeper = sorted(path for path in inner if any(path.glob(f"*/{CSV_NAME}")))
        hint = f" {', '.join(map(str, deeper))} {'does' if len(deeper) == 1 else 'do'}." if deeper else ""
        raise DataError(f"{folder} holds no {CSV_NAME}, nor does a folder in it.{hint} Give the folder with one sub-folder per task.")
    for path in inner:
        if path in with_list:
            yield path
        elif any(entry.suffix.lower() in SUFFIXES and not is_stray(entry.name) for entry in path.iterdir()):
            notes.append(f"{path}: images without a {CSV_NAME}, so without captions; the folder is passed over.")


def _numbered(folder: Path, images: list[Path], captions: dict[int, str], notes: list[str]) -> dict[int, Path]:
    """The images that the list names, by number. Raises DataError if two have one number, or if it names none of them."""
    files: dict[int, Path] = {}
    left_out: dict[str, list[str]] = {}
    for path in images:
        number = _number(path.stem)
        if path.suffix.lower() not in SUFFIXES:
            left_out.setdefault("neither JPEG, PNG nor WebP", []).append(path.name)
        elif number is None:
            left_out.setdefault("without a number", []).append(path.name)
        elif number not in captions:
            left_out.setdefault(f"without a line in {CSV_NAME}", []).append(path.name)
        elif number in files:
            raise DataError(f"{folder}: {files[number].name} and {path.name} have one number; which is image {number}?")
        else:
            files[number] = path
    counts = ", ".join(f"{len(names):,} {why} (first {names[0]})" for why, names in left_out.items())
    if not files:
        raise DataError(f"{folder}: none of the images there can be imported: {counts}. Is it the right folder?")
    if counts:
        notes.append(f"{folder}: images left out: {counts}.")
    return files


def _up_to_the_last_image(folder: Path, captions: dict[int, str], files: dict[int, Path], longer: list[str]) -> dict[int, str]:
    """The lines up to the last image, since images are made from the first line on. Raises DataError if most of these have none."""
    last = max(files)
    listed = {number: caption for number, caption in captions.items() if number <= last}
    num_missing = len(listed) - len(files)
    if num_missing > len(listed) // 2:
        raise DataError(
            f"{folder}: {num_missing:,} of the {len(listed):,} images that {CSV_NAME} lists up to {files[last].name}, the last one, "
            "are not there. Is it the right folder?"
        )
    if len(listed) < len(captions):
        longer.append(f"{folder.name or folder} up to {files[last].name} of {len(captions):,} lines")
    return listed


def _read_csv(path: Path) -> dict[int, str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = [cell.strip().lower() for cell in next(reader, [])]
            image_column, caption_column = _column(path, header, PATH_COLUMNS), _column(path, header, CAPTION_COLUMNS)
            captions: dict[int, str] = {}
            for line, cells in enumerate(reader, start=2):
                if not cells:
                    continue
                if len(cells) <= max(image_column, caption_column):
                    raise DataError(f"{path}, line {line}: expected {len(header)} columns, found {len(cells)}.")
                number = _number(re.split(r"[/\\]", cells[image_column])[-1].rpartition(".")[0])
                if number is None or number in captions:
                    problem = "has no number in its name" if number is None else f"repeats number {number}"
                    raise DataError(f"{path}, line {line}: the image {cells[image_column]!r} {problem}.")
                captions[number] = cells[caption_column]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a readable CSV: {error}.") from error
    return captions


def _column(path: Path, header: list[str], names: Sequence[str]) -> int:
    for name in names:
        if name in header:
            return header.index(name)
    raise DataError(f"{path}: the header {', '.join(header)!r} has none of the columns {', '.join(names)}.")


def _number(stem: str) -> int | None:
    digits = re.search(r"(\d{1,9})$", stem)
    return int(digits.group(1)) if digits else None
