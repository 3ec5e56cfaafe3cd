"""How far an output folder is: done, remaining, unusable, every worker's state, images per second, time left. Read from files alone."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gift_generate.output.folder import Shard, open_output
from gift_generate.planning.cost import readable_hours
from gift_generate.planning.plan_check import value_counts
from gift_generate.workers.heartbeat import HeartbeatIntervals, Liveness, ObservedWorker, WorkerState
from gift_generate.workers.machines import MachineKind, kinds_lines, machine_kinds
from gift_shared.errors import ShardError
from gift_shared.parquet_files import open_index
from gift_shared.schema import INDEX_FILE, SampleStatus
from gift_shared.shards import shard_rows

MOST_WORKER_LINES = 40  # live workers first, then those that ended last


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


@dataclass(frozen=True, kw_only=True)
class OutputStatus:
    """The state of a folder at the moment it was read."""

    shards: int
    shards_done: int
    images: int
    statuses: dict[str, int]  # of the settled rows
    tasks: list[TaskStatus]
    has_index: bool  # of all shards
    workers: list[ObservedWorker] = field(default_factory=list)  # all that ever worked here, by rank and start

    @property
    def remaining(self) -> int:
        """Rows that are not settled yet."""
        return self.images - sum(self.statuses.values())

    @property
    def live(self) -> list[ObservedWorker]:
        """Workers at work now."""
        return [worker for worker in self.workers if worker.is_live]

    @property
    def images_per_second(self) -> float | None:
        """Of the live workers together; None while none has made an image."""
        rates = [worker.record.images_per_second for worker in self.live if worker.state is WorkerState.RUNNING]
        return sum(rate for rate in rates if rate is not None) or None

    @property
    def seconds_left(self) -> float | None:
        """At that rate; what live workers have made of shards that are not yet written counts as made."""
        if not self.images_per_second:
            return None
        under_way = sum(max(worker.record.images_made - worker.record.images_done, 0) for worker in self.live)
        return max(self.remaining - under_way, 0) / self.images_per_second

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "shards": self.shards,
            "shards_done": self.shards_done,
            "images": self.images,
            "statuses": self.statuses,
            "remaining": self.remaining,
            "tasks": [asdict(task) for task in self.tasks],
            "shortfall": {task.task: task.shortfall for task in self.tasks},
            "has_index": self.has_index,
            "images_per_second": self.images_per_second,
            "seconds_left": self.seconds_left,
            "machines": [asdict(kind) for kind in self.machines],
            "workers": [_worker_json(worker) for worker in self.workers],
        }

    def lines(self) -> list[str]:
        """For people."""
        counts = ", ".join(f"{self.statuses.get(status, 0):,} {status}" for status in SampleStatus)
        lines = [
            f"shards     {self.shards_done:,} of {self.shards:,} done",
            f"images     {self.images - self.remaining:,} of {self.images:,} settled ({counts}), {self.remaining:,} remaining",
        ]
        if self.images_per_second:
            left = f", {readable_hours((self.seconds_left or 0) / 3600)} left" if self.remaining else ""
            lines.append(f"rate       {self.images_per_second:.2f} images/s{left}")
        lines += shortfall_lines(self.tasks)
        lines.append("index      " + self._index_line())
        return [*lines, *kinds_lines(self.machines), *_worker_lines(self.workers)]

    @property
    def machines(self) -> list[MachineKind]:
        """The kinds of machines that images were made on."""
        return machine_kinds((worker.record.rank, worker.record.machine) for worker in self.workers if worker.record.images_made)

    def _index_line(self) -> str:
        if self.has_index:
            return "written"
        if self.shards_done == self.shards and not self.live:
            return "not there though all shards are done: run gift-generate render again, it writes only the index"
        return "not yet: it is written when all shards are done"


def _worker_json(worker: ObservedWorker) -> dict[str, Any]:
    return asdict(worker.record) | {
        "state": str(worker.state),
        "host": worker.record.host,
        "images_per_second": worker.record.images_per_second,
        "seconds_since_sign": round(worker.seconds_silent, 1),
    }


def _worker_lines(workers: Sequence[ObservedWorker]) -> list[str]:
    """A table with a line for each worker; the live ones, and of the others those that were heard of last."""
    if not workers:
        return []
    counts = Counter(worker.state for worker in workers)
    shown = sorted(workers, key=lambda worker: (not worker.is_live, worker.seconds_silent))[:MOST_WORKER_LINES]
    shown.sort(key=lambda worker: (not worker.is_live, worker.record.rank, worker.record.started))
    table = [("", "rank", "host", "state", "now at", "shards", "images", "images/s", "last sign"), *map(_cells, shown)]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = ["workers    " + ", ".join(f"{counts[state]} {state}" for state in WorkerState if counts[state])]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    if len(workers) > len(shown):
        lines.append(f"           and {len(workers) - len(shown)} that ended earlier")
    lines += [f"failed     rank {worker.record.rank}: {worker.record.message}" for worker in shown if worker.record.message]
    return lines


def _cells(worker: ObservedWorker) -> tuple[str, ...]:
    record = worker.record
    rate = f"{record.images_per_second:.2f}" if record.images_per_second else "-"
    sign = f"{worker.seconds_silent:.0f} s" if worker.seconds_silent < 120 else readable_hours(worker.seconds_silent / 3600)
    return (
        " " * 9, str(record.rank), record.host, str(worker.state), record.shard or "-", f"{record.shards_done:,}",
        f"{record.images_done:,}", rate, f"{sign} ago",
    )  # fmt: skip


class StatusReader:
    """Reads the state of an output folder as often as asked; shards that were complete once are not read again."""

    def __init__(self, out: Path, intervals: HeartbeatIntervals | None = None) -> None:
        self._out = out
        self._intervals = intervals or HeartbeatIntervals()
        self._output = open_output(out)
        self._output.require_own_plan()
        self._planned = value_counts(self._output.plan, "task")
        self._counts: dict[tuple[str, str], int] = {}  # settled rows by task and status
        self._left = list(self._output.shards)

    def read(self) -> OutputStatus:
        """The state as of now."""
        left = self._output.remaining(self._left)
        still_left = {shard.name for shard in left}
        for shard in self._left:
            if shard.name not in still_left:
                self._count(shard)
        self._left = left
        statuses: Counter[str] = Counter()
        tasks = {task: TaskStatus(task, planned) for task, planned in self._planned.items()}
        for (task, status), count in self._counts.items():
            statuses[status] += count
            tasks[task].settled += count
            tasks[task].ok += count if status == SampleStatus.OK else 0
        return OutputStatus(
            shards=len(self._output.shards),
            shards_done=len(self._output.shards) - len(left),
            images=self._output.plan.num_rows,
            statuses=dict(statuses),
            tasks=list(tasks.values()),
            has_index=not left and (self._out / INDEX_FILE).is_file(),
            workers=Liveness(self._out, self._intervals).workers(),
        )

    def _count(self, shard: Shard) -> None:
        path = shard_rows(self._out, shard.name)
        try:
            rows = pq.read_table(path, columns=["task", "status"])
        except (OSError, pa.ArrowException) as error:
            raise ShardError(f"{path} cannot be read: {error}. Delete it and run gift-generate render again.") from error
        if [field.type for field in rows.schema] != [pa.string(), pa.string()]:
            raise ShardError(f"{path} is no index of a shard. Delete it and run gift-generate render again.")
        for entry in rows.group_by(["task", "status"]).aggregate([([], "count_all")]).to_pylist():
            if entry["task"] not in self._planned:
                raise ShardError(f"{path} lists task {entry['task']!r}, which the plan has not. Run gift-generate verify.")
            key = entry["task"], entry["status"]
            self._counts[key] = self._counts.get(key, 0) + entry["count_all"]


def output_status(out: Path) -> OutputStatus:
    """Read the state of an output folder. Raises PlanError if it is not one."""
    return StatusReader(out).read()


def indexed_tasks(out: Path) -> list[TaskStatus]:
    """The tasks of a complete folder, from its index: one file in place of one for each shard. Raises ShardError."""
    tasks: dict[str, TaskStatus] = {}
    with open_index(out / INDEX_FILE) as index:
        for rows in index.batches(["task", "status"]):
            for entry in rows.group_by(["task", "status"], use_threads=False).aggregate([([], "count_all")]).to_pylist():
                task, count = tasks.setdefault(entry["task"], TaskStatus(entry["task"], 0)), entry["count_all"]
                task.planned += count
                task.settled += count
                task.ok += count if entry["status"] == SampleStatus.OK else 0
    return list(tasks.values())


def shortfall_lines(tasks: list[TaskStatus]) -> list[str]:
    """One line for every task that has fewer usable images than settled rows."""
    return [f"shortfall  {task.task}: {task.ok:,} usable of {task.settled:,} settled" for task in tasks if task.shortfall]
