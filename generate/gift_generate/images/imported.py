"""Images made by the authors' code -> a plan for what is there, and the pictures of that plan: their bytes are kept as they are."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from gift_generate.images.authors_folder import SUFFIXES, AuthorsTask, read_authors_folder
from gift_generate.images.image_source import KEEPS_NOTHING, BatchStore, ImageSource, Picture, PlanRow
from gift_generate.images.import_request import ImportRequest
from gift_generate.planning.plan import IMPORTED, make_plan
from gift_generate.planning.plan_check import check_plan
from gift_generate.planning.plan_request import PlanRequest, Seeding, check_numbers
from gift_shared import keys
from gift_shared.decoding import decode_rgb
from gift_shared.errors import DataError
from gift_shared.manifests import Manifests
from gift_shared.schema import PLAN_SCHEMA, PlanKind, SampleStatus

UNKNOWN_SEED = -1  # of images whose order is not given
SOURCE = "file:image_text"
MOST_UNUSABLE_AT_START = 100  # images without a usable one among them: then it is another folder, or a damaged one


@dataclass(frozen=True)
class Import:
    """A plan for the images that are there with its metadata, the images, and what the user should know of the rest."""

    plan: pa.Table
    metadata: dict[str, str]
    images: "ImportedImages"
    notes: list[str]


class ImportedImages(ImageSource):
    """The files of an import: their bytes are kept as they are, unreadable and all-black ones are recorded."""

    def __init__(self, request: ImportRequest, tasks: list[AuthorsTask]) -> None:
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


def plan_import(request: ImportRequest, manifests: Manifests) -> Import:
    """Find the images and plan for them. Raises ConfigError, DataError, ManifestError, PlanError."""
    check_numbers(request)
    found = read_authors_folder(request.folder, request.order, manifests)
    published = _published_rows(request, manifests, found.tasks) if request.order else {}
    rows = [row for task in found.tasks for row in _rows(request, task, published)]
    metadata = {"arguments": "{}", "kind": str(PlanKind.PER_TASK), "order": request.order or "", IMPORTED: "true"}
    plan = pa.Table.from_pylist(rows, schema=PLAN_SCHEMA)
    check_plan(plan, request.folder)
    notes = [*found.notes, *_other_captions(request, rows)]
    return Import(plan, metadata, ImportedImages(request, found.tasks), notes)


def _published_rows(request: ImportRequest, manifests: Manifests, tasks: list[AuthorsTask]) -> dict[str, PlanRow]:
    """What the authors' rules say of every sample key: its draw tells the class a caption came from, its place the seed.

    How many captions were drawn per task decides those of all later tasks. It is what the published lists have, or the length of these
    lists: they may be the user's own draw, or the published ones cut to the images. The captions tell which.
    """
    assert request.order is not None
    num_listed = max(task.num_listed for task in tasks)
    draws = dict.fromkeys((max(num_listed, manifests.order(request.order).captions_drawn or 0), num_listed))
    drawn = [_rows_drawn(request, manifests, tasks, number) for number in draws]
    return max(drawn, key=lambda rows: _num_agreeing(tasks, rows))


def _rows_drawn(request: ImportRequest, manifests: Manifests, tasks: list[AuthorsTask], draws_per_task: int) -> dict[str, PlanRow]:
    plan_request = PlanRequest(
        kind=PlanKind.PER_TASK,
        order=request.order,
        images_per_task=max(max(task.captions) for task in tasks) + 1,
        draws_per_task=draws_per_task,
        seed=request.seed,
        seeding=Seeding.PUBLISHED,
    )
    return {row["sample_key"]: row for row in make_plan(plan_request, manifests)[0].to_pylist()}


def _num_agreeing(tasks: list[AuthorsTask], rows: Mapping[str, PlanRow]) -> int:
    return sum(
        rows[keys.task_sample_key(task.name, number)]["caption"] == caption for task in tasks for number, caption in task.captions.items()
    )


def _other_captions(request: ImportRequest, rows: Sequence[PlanRow]) -> list[str]:
    """A line if captions are not those that the order draws: then perhaps it is another order, and its seeds are wrong."""
    others = [row["sample_key"] for row in rows if row["source"] == SOURCE]
    if request.order is None or not others:
        return []
    return [
        f"{len(others):,} of {len(rows):,} captions are not what order {request.order} draws with seed {request.seed}, first {others[0]}: "
        "they get no class name. If you did not change them, it is another --order or --seed, and image seeds are wrong."
    ]


def _rows(request: ImportRequest, task: AuthorsTask, published: dict[str, PlanRow]) -> Iterator[PlanRow]:
    numbers = sorted(task.captions)[: request.images_per_task]
    for number in numbers:
        sample_key = keys.task_sample_key(task.name, number)
        row = published.get(sample_key)
        drawn = row if row is not None and row["caption"] == task.captions[number] else None
        yield {
            "task": task.name,
            "index": number,
            "sample_key": sample_key,
            "caption": task.captions[number],
            "source": drawn["source"] if drawn else SOURCE,
            "class_name": drawn["class_name"] if drawn else None,
            "class_index": drawn["class_index"] if drawn else None,
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
