"""How far an output folder is: done, remaining, unusable, images per second, shortfall per task. Read from files alone."""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from gift_generate.cost import read_timings, readable_hours
from gift_generate.output_folder import open_output
from gift_shared.schema import INDEX_FILE, Status


@dataclass
class TaskStatus:
    """Rows of one task: asked for, settled, and usable among the settled."""

    task: str
    planned: int
    settled: int = 0
    ok: int = 0

    @property
    def shortfall(self) -> int:
        """Settled rows without a usable image."""
        return self.settled - self.ok


@dataclass(frozen=True)
class OutputStatus:
    """The state of a folder at the moment it was read."""

    shards: int
    shards_done: int
    images: int
    statuses: dict[str, int]  # of the settled rows
    tasks: list[TaskStatus]
    images_per_second: float | None  # all workers together
    has_index: bool

    @property
    def remaining(self) -> int:
        """Rows that are not settled yet."""
        return self.images - sum(self.statuses.values())

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self) | {"remaining": self.remaining, "shortfall": {task.task: task.shortfall for task in self.tasks}}

    def lines(self) -> list[str]:
        """For people."""
        counts = ", ".join(f"{self.statuses.get(status, 0):,} {status}" for status in Status)
        lines = [
            f"shards     {self.shards_done:,} of {self.shards:,} done",
            f"images     {self.images - self.remaining:,} of {self.images:,} settled ({counts}), {self.remaining:,} remaining",
        ]
        if self.images_per_second:
            left = readable_hours(self.remaining / self.images_per_second / 3600)
            lines.append(f"rate       {self.images_per_second:.2f} images/s" + (f", {left} left" if self.remaining else ""))
        lines += shortfall_lines(self.tasks)
        lines.append("index      " + ("written" if self.has_index else "not yet: it is written when all shards are done"))
        return lines


def output_status(out: Path) -> OutputStatus:
    """Read the state of an output folder. Raises PlanError if it is not one."""
    output = open_output(out)
    planned = pc.value_counts(output.plan["task"]).to_pylist()
    tasks = {entry["values"]: TaskStatus(entry["values"], entry["counts"]) for entry in planned}
    statuses: Counter[str] = Counter()
    shards_done = 0
    for _, rows in output.complete_rows():
        shards_done += 1
        for task, status in zip(rows["task"].to_pylist(), rows["status"].to_pylist(), strict=True):
            statuses[status] += 1
            tasks[task].settled += 1
            tasks[task].ok += status == Status.OK
    return OutputStatus(
        shards=len(output.shards),
        shards_done=shards_done,
        images=output.plan.num_rows,
        statuses=dict(statuses),
        tasks=list(tasks.values()),
        images_per_second=_images_per_second(out),
        has_index=(out / INDEX_FILE).is_file(),
    )


def shortfall_lines(tasks: list[TaskStatus]) -> list[str]:
    """One line for every task that has fewer usable images than settled rows."""
    return [f"shortfall  {task.task}: {task.ok:,} usable of {task.settled:,} settled" for task in tasks if task.shortfall]


def _images_per_second(out: Path) -> float | None:
    rates = []
    for images, seconds in read_timings(out).values():
        if seconds > 0:
            rates.append(images / seconds)
    return sum(rates) if rates else None
