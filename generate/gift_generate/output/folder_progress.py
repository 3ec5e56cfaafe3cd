"""How far the whole folder is, as one process shows it on its terminal: the images of all workers, those under way included."""

import time
from collections.abc import Sequence
from types import TracebackType

from gift_generate.output.folder import Shard
from gift_generate.output.work import Work
from gift_generate.workers.heartbeat import HeartbeatIntervals
from gift_generate.workers.live_workers import LiveWorkers
from gift_shared.progress import Progress


class FolderProgress:
    """Progress of what is made in a folder, a context manager.

    A look is a listing and a file for each live worker; without a bar there is none.

    left: the shards that are not done. worker: id of the worker that shows it, whose own images count at once; None if it makes none.
    """

    def __init__(self, work: Work, left: Sequence[Shard], intervals: HeartbeatIntervals, worker: str | None = None) -> None:
        self._work = work
        self._left = list(left)
        self._worker = worker
        self._seconds = intervals.look_again_seconds
        self._workers = LiveWorkers(work.output.path, intervals)
        self._num_others = 0
        self._images_of_others = 0  # under way
        self._own_images = 0  # under way
        self._total = work.num_images(left)
        self._count()
        self._progress = Progress("images", self._total, "image", done=self._images)

    def __enter__(self) -> "FolderProgress":
        self._note()
        self._progress.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._look()
        self._progress.__exit__(kind, error, trace)

    def advance(self, images: int) -> None:
        """So many more were made by the worker that shows this."""
        self._own_images += images
        if not self.look_if_due():
            self._progress.advance(images)

    def settled(self, images: int) -> None:
        """So many of that worker's are no longer under way: their shard is written, and will be forgotten."""
        self._own_images = max(self._own_images - images, 0)

    def forget(self, shard: Shard) -> None:
        """A shard is done."""
        self._left = [other for other in self._left if other.name != shard.name]
        self._note()

    def look_if_due(self) -> bool:
        """Find out how far the others are, unless that was done a moment ago; whether it was done now."""
        is_due = time.monotonic() - self._looked_at >= self._seconds
        if is_due:
            self._look()
        return is_due

    def make_room(self) -> None:
        """Call before printing."""
        self._progress.make_room()

    def _look(self) -> None:
        self._count()
        self._note()
        self._progress.reach(self._images)

    def _count(self) -> None:
        self._looked_at = time.monotonic()
        if not Progress.is_shown:
            return
        self._left = self._work.look_again(self._left)
        others = [worker.record for worker in self._workers.look() if worker.record.worker != self._worker]
        self._num_others = len(others)
        self._images_of_others = sum(max(record.images_made - record.images_done, 0) for record in others)

    def _note(self) -> None:
        shards, workers = len(self._work.output.shards), self._num_others + (self._worker is not None)
        self._progress.note(f"{shards - len(self._left)}/{shards} shards, {workers} worker{'s' * (workers != 1)}")

    @property
    def _images(self) -> int:
        done = self._total - sum(map(self._work.num_rows, self._left))
        return done + self._images_of_others + self._own_images
