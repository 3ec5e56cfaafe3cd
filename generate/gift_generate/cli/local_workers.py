"""gift-generate render --processes N: the workers of this machine, with one progress line and one summary for all of them."""

import contextlib
import signal
import sys
import time
from pathlib import Path
from types import TracebackType

import typer

from gift_generate.cli.summary import print_done, tell
from gift_generate.output.folder import open_output
from gift_generate.output.folder_progress import FolderProgress
from gift_generate.output.work import NewShards
from gift_generate.workers.heartbeat import HeartbeatIntervals, Liveness, WorkerRecord, process_of
from gift_generate.workers.local import LocalWorkers
from gift_generate.workers.rank import Worker
from gift_shared.console import INTERRUPTED
from gift_shared.errors import Preempted
from gift_shared.preemption import PreemptionNotice
from gift_shared.processes import this_process
from gift_shared.schema import RENDER_FILE
from gift_shared.worker_logs import shards_written

LOOKS = HeartbeatIntervals(look_again_seconds=3.0)  # this process has nothing else to do


def render_by_processes(out: Path, num_shards: int, num: int, node: Worker, notice: PreemptionNotice, *, is_retry: bool) -> None:
    """Run this command line as `num` workers until all have ended; the worst of their exit codes is the command's.

    Raises: Preempted or KeyboardInterrupt if told to leave; typer.Exit with a code that is not 0.
    """
    _leave_if_told(notice, "no image was begun")
    num_workers = node.world_size * num
    if num_workers > num_shards:
        tell(
            f"warning: the plan has {num_shards} shards, so {num_workers - num_shards} of {num_workers} workers have nothing to do. "
            "Plan with fewer --images-per-shard to use all."
        )
    with _FolderView(out, range(node.rank * num, (node.rank + 1) * num), not is_retry) as view:
        workers = LocalWorkers(words=sys.argv[1:], num=num, node=node, tell=view.tell, has_got_on=view.has_written_a_shard)
        code = workers.run(notice, view.refresh)
    if code in (INTERRUPTED, Preempted.exit_code):
        _leave_if_told(notice, _what_is_left(out))
    if code:
        raise typer.Exit(code)
    done = [event for record in view.records() for event in shards_written(out, record.worker)]
    num_images, num_ok, num_left = sum(one.images for one in done), sum(one.ok for one in done), len(open_output(out).absent())
    nothing = "none was free" if num_left else "nothing left to do"
    unusable = f", {num_images - num_ok:,} not" if num_images > num_ok else ""
    print_done(out, len(done), f"{num_ok:,} ok{unusable}" if done else nothing, num_left)


class _FolderView:
    """What is shown while the workers of these ranks run: nothing while they load their model, then how far the folder is."""

    def __init__(self, out: Path, ranks: range, is_render: bool) -> None:
        self._out = out
        self._is_render = is_render  # a retry fills no folder: `gift-generate status` tells how its workers get on
        self._ranks = ranks
        self._supervisor = this_process()
        self._progress: FolderProgress | None = None
        self._looked_at = 0.0

    def __enter__(self) -> "_FolderView":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._progress is not None:
            self._progress.__exit__(kind, error, trace)

    def tell(self, message: str) -> None:
        """Print a line above the progress."""
        if self._progress is not None:
            self._progress.make_room()
        tell(message)

    def refresh(self) -> None:
        """Bring the progress up to date. Storage that does not answer for a moment is the workers' matter."""
        with contextlib.suppress(OSError):
            if self._progress is not None:
                self._progress.look_if_due()
            elif self._is_at_work():
                output = open_output(self._out)
                self._progress = FolderProgress(NewShards(output, {}, own=()), output.absent(), LOOKS)
                self._progress.__enter__()

    def _is_at_work(self) -> bool:
        """Whether one of the workers is, as far as is known; asked the storage only now and then, for models load for minutes."""
        if time.monotonic() - self._looked_at < LOOKS.look_again_seconds:
            return False
        self._looked_at = time.monotonic()
        return self._is_render and (self._out / RENDER_FILE).is_file() and bool(self.records())

    def records(self) -> list[WorkerRecord]:
        """What the workers that were started here, dead ones included, say of themselves."""
        ours = []
        for worker in Liveness(self._out, LOOKS).workers():
            process = process_of(worker.record.worker)
            is_here = process is not None and process.machine == self._supervisor.machine and process.started >= self._supervisor.started
            if is_here and worker.record.rank in self._ranks:
                ours.append(worker.record)
        return ours

    def has_written_a_shard(self, pid: int) -> bool:
        """Whether the process that was started here has finished a shard."""
        processes = {process.pid: record.worker for record in self.records() if (process := process_of(record.worker)) is not None}
        return pid in processes and bool(shards_written(self._out, processes[pid]))


def _leave_if_told(notice: PreemptionNotice, what_is_left: str) -> None:
    if signal.SIGINT in notice.came:
        raise KeyboardInterrupt
    notice.obey(what_is_left)


def _what_is_left(out: Path) -> str:
    if not (out / RENDER_FILE).is_file():
        return "no image was begun"
    output = open_output(out)
    return f"{len(output.absent())} of {len(output.shards)} shards are left in {out}"
