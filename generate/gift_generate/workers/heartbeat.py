"""What every worker says of itself: a small file rewritten every few seconds, whose time of change is its heartbeat, and a log.

The files need no locks and no common clock, so workers may run on any machines that see the same storage.
"""

import threading
import time
from collections.abc import Container
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

from gift_generate.workers.rank import Worker
from gift_shared.atomic import json_text, temporary_for, write_text, writer_of
from gift_shared.documents import FILE_NAME, Maybe, read_json_object
from gift_shared.errors import DataError, Preempted
from gift_shared.event_log import EventLog
from gift_shared.processes import ProcessName, this_process
from gift_shared.schema import WORKER_FOLDER


@dataclass(frozen=True, kw_only=True)
class HeartbeatIntervals:
    """How often a worker shows that it lives, how long a silent one counts as living, and how often one that waits looks again.

    Two minutes of silence are more than a few heartbeats and the minute for which a network file system may show old times.
    """

    every_seconds: float = 10.0
    soonest_seconds: float = 1.0  # after news, such as another shard; not for every batch of a fast renderer
    dead_after_seconds: float = 120.0
    look_again_seconds: float = 15.0


class WorkerState(StrEnum):
    """What a worker is at. All but `dead`, which others find, is its own word."""

    RUNNING = "running"
    WAITING = "waiting"  # all that is left is claimed by others
    DONE = "done"
    PREEMPTED = "preempted"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    DEAD = "dead"


AT_WORK = (WorkerState.RUNNING, WorkerState.WAITING)


RECORD = {
    "worker": FILE_NAME, "rank": int, "world_size": int, "started": str, "state": str, "shard": Maybe(str), "shards_done": int,
    "images_done": int, "images_made": int, "seconds": float, "message": str, "settings_sha256?": str, "machine?": {str: str},
}  # fmt: skip
RECORD_FIELDS = tuple(name.removesuffix("?") for name in RECORD)


@dataclass(kw_only=True)
class WorkerRecord:
    """The file of a worker. Images are plan rows, usable or not."""

    worker: str  # its id
    rank: int
    world_size: int
    started: str  # UTC, ISO 8601
    state: WorkerState = WorkerState.RUNNING
    shard: str | None = None  # being rendered
    shards_done: int = 0
    images_done: int = 0  # of the shards that are written
    images_made: int = 0  # also those of shards that are not yet written, or were dropped
    seconds: float = 0.0  # since it began to work; waiting for others not counted
    message: str = ""  # of a failure
    settings_sha256: str = ""  # of what it renders with, see `settings_digest`; workers of earlier versions do not say
    machine: dict[str, str] = field(default_factory=dict)  # hardware and versions, where images depend on them

    @property
    def host(self) -> str:
        """Name of the machine."""
        process = process_of(self.worker)
        return process.host if process else "?"

    @property
    def images_per_second(self) -> float | None:
        """Since the start; None before anything was made."""
        return self.images_made / self.seconds if self.seconds and self.images_made else None


class Heartbeat:
    """Keeps a worker's file fresh from a thread while its block runs, and leaves in it how the block ended.

    Raises OSError if the file cannot be written at the start. A disk that is full later does not stop it: the work itself will meet it.
    """

    def __init__(self, out: Path, worker: Worker, intervals: HeartbeatIntervals, machine: dict[str, str] | None = None) -> None:
        self.worker = f"{worker.rank:05d}-{this_process()}"
        self._path = record_path(out, self.worker)
        self._intervals = intervals
        self._record = WorkerRecord(
            worker=self.worker,
            rank=worker.rank,
            world_size=worker.world_size,
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=machine or {},
        )
        self._changing = threading.Lock()  # of the record and of its file, which has one temporary name a process
        self._ended = threading.Event()
        self._news = threading.Event()
        self._thread = threading.Thread(target=self._refresh, name="heartbeat", daemon=True)
        self._working_since: float | None = time.monotonic()
        self._seconds_before = 0.0
        self._log = EventLog(self._path.with_suffix(".jsonl"))

    def __enter__(self) -> "Heartbeat":
        self._write()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._news.set()
        self._thread.join()
        state = _last_state(error)
        message = " ".join(str(error).split()) if state is WorkerState.FAILED else ""
        try:
            self.note(state=state, shard=None, message=message)
            self._write()
            event = "ended" if state is WorkerState.DONE else str(state)
            self.tell(event, **({"message": message} if message else {}))
        except OSError:
            if error is None:
                raise
            # The block's own error, most likely the same full disk, is the one to tell.

    def note(self, **changes: Any) -> None:
        """Change fields of the record; they are written soon."""
        with self._changing:
            for name, value in changes.items():
                setattr(self._record, name, value)
        self._news.set()

    def images(self, made: int = 0, done: int = 0) -> None:
        """So many more were made, or are in a shard that is written."""
        with self._changing:
            self._record.images_made += made
            self._record.images_done += done
            self._record.shards_done += done > 0

    def wait(self, is_waiting: bool) -> None:
        """Say whether there is only waiting to do, and stop or go on counting the time of work. Written at once."""
        with self._changing:
            self._record.seconds = self._seconds()
            self._seconds_before = self._record.seconds
            self._working_since = None if is_waiting else time.monotonic()
            self._record.state = WorkerState.WAITING if is_waiting else WorkerState.RUNNING
            if is_waiting:
                self._record.shard = None
        self._write()

    def tell(self, event: str, **fields: Any) -> None:
        """Append an event to the worker's log."""
        self._log.write(event, **fields)

    def _seconds(self) -> float:
        working = time.monotonic() - self._working_since if self._working_since is not None else 0.0
        return round(self._seconds_before + working, 3)

    def _refresh(self) -> None:
        while not self._ended.wait(self._intervals.soonest_seconds):
            self._news.wait(self._intervals.every_seconds - self._intervals.soonest_seconds)
            self._news.clear()
            try:
                self._write()
            except OSError:
                with suppress(OSError):
                    self._path.touch()  # takes no room on a full disk

    def _write(self) -> None:
        with self._changing:
            self._record.seconds = self._seconds()
            write_text(self._path, json_text(asdict(self._record)))


def _last_state(error: BaseException | None) -> WorkerState:
    if error is None:
        return WorkerState.DONE
    if isinstance(error, Preempted):
        return WorkerState.PREEMPTED
    return WorkerState.INTERRUPTED if isinstance(error, KeyboardInterrupt) else WorkerState.FAILED


@dataclass(frozen=True)
class ObservedWorker:
    """A worker as others see it; `seconds_silent` since its last heartbeat."""

    record: WorkerRecord
    seconds_silent: float
    state: WorkerState  # the record's, or dead

    @property
    def is_live(self) -> bool:
        """Whether it is still at work."""
        return self.state in AT_WORK


class Liveness:
    """Who lives, as of one moment by the storage's own clock, with which the heartbeats were stamped."""

    def __init__(self, out: Path, intervals: HeartbeatIntervals) -> None:
        self._out = out
        self._dead_after = intervals.dead_after_seconds
        self.now = _storage_time(out / WORKER_FOLDER)

    def is_dead(self, worker: str, since: float) -> bool:
        """Whether a worker has ended: its process is gone from this machine, or it was silent for too long.

        `since` is the time of the last thing it is known to have done, for a worker without a file of its own.
        """
        process = process_of(worker)
        if process is not None and process.is_gone():
            return True
        with suppress(FileNotFoundError):
            since = record_path(self._out, worker).stat().st_mtime
        return self.now - since > self._dead_after

    def is_abandoned(self, temporary: Path) -> bool:
        """Whether the process that was writing a temporary file has ended; one that has not yet shown itself is given time."""
        writer = writer_of(temporary)
        if writer is not None and writer in self._live_processes:
            return False
        if writer is not None and writer.is_gone():
            return True
        try:
            return self.now - temporary.stat().st_mtime > self._dead_after
        except FileNotFoundError:  # written to its end meanwhile
            return False

    @cached_property
    def _live_processes(self) -> set[ProcessName | None]:
        return {process_of(worker.record.worker) for worker in self.workers() if worker.is_live}

    def workers(self, but: Container[str] = ()) -> list[ObservedWorker]:
        """All workers that ever wrote a record here, by rank and start, `but` these ids; one that cannot be read is passed over."""
        folder = self._out / WORKER_FOLDER
        paths = folder.glob("*.json") if folder.is_dir() else ()
        observed = [self._observe(path) for path in paths if not path.name.startswith(".") and path.stem not in but]
        return sorted(
            (worker for worker in observed if worker), key=lambda worker: (worker.record.rank, worker.record.started, worker.record.worker)
        )

    def _observe(self, path: Path) -> ObservedWorker | None:
        try:
            since = path.stat().st_mtime
            fields = read_json_object(path, RECORD, DataError)
            known = {name: fields[name] for name in RECORD_FIELDS if name in fields}
            record = WorkerRecord(**known | {"state": WorkerState(fields["state"])})
        except (FileNotFoundError, DataError, ValueError):  # a state that only a later version knows is a ValueError
            return None
        is_dead = record.state in AT_WORK and self.is_dead(record.worker, since)
        return ObservedWorker(record, max(self.now - since, 0.0), WorkerState.DEAD if is_dead else record.state)


def record_path(out: Path, worker: str) -> Path:
    """The file of a worker."""
    return out / WORKER_FOLDER / f"{worker}.json"


def process_of(worker: str) -> ProcessName | None:
    """The process behind a worker's id, `<rank>-<process>`."""
    return ProcessName.parse(worker.partition("-")[2])


def _storage_time(folder: Path) -> float:
    """Now, as the machine that keeps the files sees it; where nothing can be written, this machine's time."""
    probe = temporary_for(folder / "clock")
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with suppress(OSError):  # on a read-only storage it was not made either
            probe.unlink()
