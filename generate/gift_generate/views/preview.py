"""render --preview: a few images of every task before the long run, what they look like, how fast they come, how long all will take.

Nothing is written but the sheet: no folder is bound, and what was rendered is dropped.
"""

import heapq
import io
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from gift_generate.images.image_source import ImageSource, Picture, PlanRow
from gift_generate.output.folder import Shard
from gift_generate.planning.cost import BYTES_PER_SAMPLE, readable_bytes, readable_hours
from gift_generate.views.contact_sheet import Tile, draw_tiles, framed, spread, write_sheet
from gift_shared.console import some_of
from gift_shared.parquet_files import RowFile
from gift_shared.preemption import PreemptionNotice
from gift_shared.processor import processor_name
from gift_shared.progress import Progress
from gift_shared.schema import SampleStatus

WARM_UP_STEPS = 2  # of a batch before the clock runs: first uses load kernels, and graphs are compiled
NUMBERS_OF_WORKERS = (1, 8, 64)
SHORTEST = 1e-9  # seconds, so that a rate is a number


@dataclass(frozen=True)
class Timed:
    """Pictures and how long they took."""

    pictures: Sequence[Picture]
    seconds: float

    @property
    def images_per_second(self) -> float:
        """Of this one process."""
        return len(self.pictures) / max(self.seconds, SHORTEST)


def render_preview(
    plan: RowFile, left: Sequence[Shard], source: ImageSource, per_group: int, to: Path, notice: PreemptionNotice
) -> Iterator[str]:
    """Render `per_group` images of every task, draw them, and tell what rendering the shards that are left will take.

    The rate is that of whole batches: where the images do not fill the last, more of the plan are rendered for the clock alone.
    """
    groups = choose(plan, per_group)
    chosen = [row for rows in groups.values() for row in rows]
    batch_size = source.settings["batch_size"]
    timed = _render(source, [*chosen, *_more(plan, chosen, -len(chosen) % batch_size)], batch_size, notice)
    pictures = iter(timed.pictures)
    write_sheet(draw_tiles({name: [_tile(row, next(pictures)) for row in rows] for name, rows in groups.items()}), to)
    yield _sheet_line(to, groups, timed.pictures[: len(chosen)])
    device = source.machine.get("device")
    where = f" on {device}" if device else ""
    timing = f"{len(timed.pictures)} images in batches of {batch_size}, after warm-up"
    yield f"rate      {timed.images_per_second:.2f} images/s{where} ({timing})"
    unit = "worker" if device in (None, processor_name()) else "GPU"
    yield from estimate_lines([shard.num_rows for shard in left], timed.images_per_second, unit)
    sizes = [len(picture.content) for picture in timed.pictures if picture.content is not None]
    if sizes:
        num_bytes = sum(shard.num_rows for shard in left) * (sum(sizes) / len(sizes) + BYTES_PER_SAMPLE)
        yield f"disk      {readable_bytes(num_bytes)} ({sum(sizes) / len(sizes) / 1000:.1f} kB an image)"


def choose(plan: RowFile, per_group: int) -> dict[str, list[PlanRow]]:
    """`per_group` rows of every task, of a pool of every source, spread over the task's sources and over each source's rows."""
    columns = plan.read(["task", "source"])
    column = "source" if len(columns["task"].unique()) == 1 else "task"
    chosen = {}
    for name in columns[column].unique().to_pylist():
        positions = np.flatnonzero(pc.equal(columns[column], name).to_numpy(zero_copy_only=False))
        sources = columns["source"].take(pa.array(positions))
        names = spread(sources.unique().to_pylist(), per_group)
        places: list[int] = []
        for order, source in enumerate(names):
            count = per_group // len(names) + (order < per_group % len(names))
            places += spread(positions[pc.equal(sources, source).to_numpy(zero_copy_only=False)].tolist(), count)
        chosen[str(name)] = plan.take(sorted(places)).to_pylist()
    return chosen


def estimate_lines(shards: Sequence[int], images_per_second: float, unit: str) -> Iterator[str]:
    """How long shards of so many images take on one and on several workers that each make so many a second.

    A shard is one worker's: with more workers than shards, the largest shard decides.
    """
    if not shards:
        yield "estimate  nothing is left to render"
        return
    num_images = sum(shards)
    yield f"estimate  {num_images:,} images left: {num_images / images_per_second / 3600:.3g} {unit}-hours"
    for num in NUMBERS_OF_WORKERS:
        hours = _longest(shards, num) / images_per_second / 3600
        idle = f"; {num - len(shards)} without a shard, plan with fewer --images-per-shard" if num > len(shards) else ""
        yield f"          {num:>2} {unit}{'s' * (num > 1)}{' ' * (num == 1)}  {readable_hours(hours)}{idle}"


def _longest(shards: Sequence[int], num_workers: int) -> int:
    """Images that the busiest worker makes, when whoever is free takes the next shard."""
    loads = [0] * num_workers
    for size in shards:
        heapq.heapreplace(loads, loads[0] + size)
    return max(loads)


def _render(source: ImageSource, rows: Sequence[PlanRow], batch_size: int, notice: PreemptionNotice) -> Timed:
    with Progress("preview", len(rows), "image", stays=False) as progress:

        def on_images(count: int) -> None:
            progress.advance(count)
            notice.obey("no preview was written")

        first = [row | {"denoising_steps": min(row["denoising_steps"], WARM_UP_STEPS)} for row in rows[:batch_size]]
        source.pictures(first, lambda count: notice.obey("no preview was written"))
        started = time.monotonic()
        pictures = source.pictures(rows, on_images)
        return Timed(pictures, time.monotonic() - started)


def _more(plan: RowFile, chosen: Sequence[PlanRow], count: int) -> list[PlanRow]:
    """Further rows of the plan, as many as it has, up to `count`."""
    known = {row["sample_key"] for row in chosen}
    others = plan.slice(0, len(chosen) + count).to_pylist()
    return [row for row in others if row["sample_key"] not in known][:count]


def _tile(row: PlanRow, picture: Picture) -> Tile:
    if picture.content is None:
        return Tile(None, f"[{picture.status}: {picture.message}] {row['caption']}")
    return Tile(framed(Image.open(io.BytesIO(picture.content)).convert("RGB")), row["caption"])


def _sheet_line(to: Path, groups: dict[str, list[PlanRow]], pictures: Sequence[Picture]) -> str:
    statuses = Counter(str(picture.status) for picture in pictures)
    unusable = "".join(f", {count} {status}" for status, count in sorted(statuses.items()) if status != SampleStatus.OK)
    reasons = dict.fromkeys(picture.message for picture in pictures if picture.message)
    why = f" ({some_of(list(reasons))})" if reasons else ""
    return f"preview   {to}: {len(pictures)} images in {len(groups)} line{'s' * (len(groups) > 1)}{unusable}{why}"
