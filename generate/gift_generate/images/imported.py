"""Images made by the authors' code -> shards of ours: one folder per task with `image_text.csv` and the JPEGs it lists.

The number in a file's name decides, not the path: the CSV's path column holds the path on the machine that wrote it.
"""

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from gift_generate.images.image_source import KEEPS_NOTHING, BatchStore, ImageSource, Picture, PlanRow
from gift_generate.images.import_request import ImportRequest
from gift_generate.planning.plan import IMPORTED, check_plan, make_plan
from gift_generate.planning.plan_request import PlanRequest, Seeding, check_numbers
from gift_shared import keys
from gift_shared.decoding import decode_rgb
from gift_shared.errors import DataError, unknown_name
from gift_shared.image_files import find_images, is_stray
from gift_shared.manifests import Manifests
from gift_shared.schema import PLAN_SCHEMA, PlanKind, SampleStatus

CSV_NAME = "image_text.csv"
PATH_COLUMNS = ("image", "image_path", "path", "file", "filename", "file_name", "filepath", "file_path", "image_name", "img", "img_path")
CAPTION_COLUMNS = ("caption", "text", "prompt", "sentence", "title")
SUFFIXES = {".jpg": ".jpg", ".jpeg": ".jpg", ".jpe": ".jpg", ".jfif": ".jpg", ".png": ".png", ".webp": ".webp"}
UNKNOWN_SEED = -1  # of images whose order is not given
SOURCE = "file:image_text"
MOST_UNUSABLE_AT_START = 100  # images without a usable one among them: then it is another folder, or a damaged one


@dataclass(frozen=True)
class _ImportedTask:
    name: str
    folder: Path
    captions: dict[int, str]  # by image number
    files: dict[int, Path]


class ImportedImages(ImageSource):
    """The files of an import: their bytes are kept as they are, unreadable and all-black ones are recorded."""

    def __init__(self, request: ImportRequest, tasks: list[_ImportedTask]) -> None:
        self._files = {task.name: task.files for task in tasks}
        self._order = request.order
        self._statuses: Counter[SampleStatus] = Counter()  # of all that was read so far

    @property
    def settings(self) -> dict[str, Any]:
        """Imported images are never mixed with rendered ones."""
        return {"model": "imported", "order": self._order}

    def pictures(self, rows: Sequence[PlanRow], on_images: Callable[[int], None], batches: BatchStore = KEEPS_NOTHING) -> list[Picture]:
        """The pictures of one shard, in row order. Nothing is kept of an unfinished one: files are read as fast as they are kept."""
        pictures = []
        for row in rows:
            pictures.append(_picture(self._files[row["task"]].get(row["index"]), row["sample_seed"]))
            on_images(1)
        self._statuses.update(picture.status for picture in pictures)
        num_images = self._statuses.total()
        if num_images >= MOST_UNUSABLE_AT_START and not self._statuses[SampleStatus.OK]:
            raise DataError(f"None of the first {num_images} images can be used ({pictures[0].message}). Is it the right folder?")
        return pictures


def plan_import(request: ImportRequest, manifests: Manifests) -> tuple[pa.Table, dict[str, str], ImportedImages]:
    """A plan for the images that are there, its metadata, and the images. Raises ConfigError, DataError, ManifestError, PlanError."""
    check_numbers(request)
    tasks = _find_tasks(request, manifests)
    published = _published_rows(request, manifests, tasks) if request.order else {}
    rows = [row for task in tasks for row in _rows(request, task, published)]
    if not rows:
        raise DataError(f"{request.folder}: the {CSV_NAME} files list no image.")
    metadata = {"arguments": "{}", "kind": str(PlanKind.PER_TASK), "order": request.order or "", IMPORTED: "true"}
    plan = pa.Table.from_pylist(rows, schema=PLAN_SCHEMA)
    check_plan(plan, request.folder)
    return plan, metadata, ImportedImages(request, tasks)


def _find_tasks(request: ImportRequest, manifests: Manifests) -> list[_ImportedTask]:
    folder = request.folder
    if not folder.is_dir():
        raise DataError(f"No folder at {folder}.")
    folders = [folder] if (folder / CSV_NAME).is_file() else _folders_with_list(folder)
    if not folders:
        raise DataError(f"{folder} holds no {CSV_NAME}, nor does a folder in it. Give the folder with one sub-folder per task.")
    names = list(manifests.order(request.order).tasks) if request.order else None
    tasks = [task for path in folders if (task := _read_task(path, names, manifests)) is not None]
    if names is not None:
        tasks.sort(key=lambda task: names.index(task.name))
    return tasks


def _folders_with_list(folder: Path) -> list[Path]:
    return [path.parent for path in sorted(folder.glob(f"*/{CSV_NAME}")) if not is_stray(path.parent.name, is_folder=True)]


def _read_task(folder: Path, names: list[str] | None, manifests: Manifests) -> _ImportedTask | None:
    captions = _read_csv(folder / CSV_NAME)
    if not captions:
        return None  # the authors' lists hold a leftover folder with only a header line
    files: dict[int, Path] = {}
    for path in find_images(folder, SUFFIXES).files:
        number = _number(path.stem)
        if number is None:
            continue
        if number in files:
            raise DataError(f"{folder}: {files[number].name} and {path.name} have one number; which is image {number}?")
        files[number] = path
    num_missing = len(captions.keys() - files.keys())
    if num_missing > len(captions) // 2:
        raise DataError(f"{folder}: {num_missing} of the {len(captions)} images in {CSV_NAME} are not there. Is it the right folder?")
    return _ImportedTask(_task_name(folder.name, names, manifests), folder, captions, files)


def _task_name(folder_name: str, names: list[str] | None, manifests: Manifests) -> str:
    """`StanfordCars` -> `stanford_cars`: by name or display name, ignoring case and punctuation."""
    if names is None:
        return keys.slug(folder_name)
    spellings = {_bare(spelling): name for name in names for spelling in (name, manifests.task(name).display_name)}
    if _bare(folder_name) not in spellings:
        raise DataError(f"Folder {folder_name!r}: " + unknown_name("task of the order", folder_name, names))
    return spellings[_bare(folder_name)]


def _bare(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


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


def _published_rows(request: ImportRequest, manifests: Manifests, tasks: list[_ImportedTask]) -> dict[str, PlanRow]:
    """What the authors' rules say of every sample key: its draw tells the class a caption came from, its place the seed."""
    plan_request = PlanRequest(
        kind=PlanKind.PER_TASK,
        order=request.order,
        images_per_task=max(max(task.captions) for task in tasks) + 1 if tasks else 1,
        seed=request.seed,
        seeding=Seeding.PUBLISHED,
    )
    return {row["sample_key"]: row for row in make_plan(plan_request, manifests)[0].to_pylist()}


def _rows(request: ImportRequest, task: _ImportedTask, published: dict[str, PlanRow]) -> Iterator[PlanRow]:
    numbers = sorted(task.captions)[: request.images_per_task]
    for number in numbers:
        sample_key = keys.task_sample_key(task.name, number)
        row = published.get(sample_key)
        is_published = row is not None and row["caption"] == task.captions[number]
        yield {
            "task": task.name,
            "index": number,
            "sample_key": sample_key,
            "caption": task.captions[number],
            "source": row["source"] if is_published and row else SOURCE,
            "class_name": row["class_name"] if is_published and row else None,
            "class_index": row["class_index"] if is_published and row else None,
            "sample_seed": row["sample_seed"] if row else UNKNOWN_SEED,
            "guidance_scale": request.guidance_scale,
            "denoising_steps": request.denoising_steps,
            "shard": keys.shard_id(task.name, number // request.images_per_shard),
        }


def _picture(path: Path | None, sample_seed: int) -> Picture:
    if path is None:
        return Picture(status=SampleStatus.FAILED, message="the file is missing", attempts=1, used_seed=sample_seed)
    content = path.read_bytes()
    try:
        image = decode_rgb(content, "it")
    except DataError as error:
        message = str(error).removeprefix("it ").partition(" Replace")[0]
        return Picture(status=SampleStatus.FAILED, message=message, attempts=1, used_seed=sample_seed)
    is_black = image.getextrema() == ((0, 0),) * 3
    width, height = image.size
    if is_black:
        return Picture(status=SampleStatus.BLACK, message="all pixels are 0", attempts=1, used_seed=sample_seed)
    return Picture(
        status=SampleStatus.OK, message="", attempts=1, used_seed=sample_seed,
        content=content, suffix=SUFFIXES[path.suffix.lower()], width=width, height=height,
    )  # fmt: skip
