"""Batches made by worker processes, and the certain end of those processes. The only module that reaches into torch's DataLoader.

A worker answers no signal that a scheduler sends to all processes of a job: one that died of it would fail the run before it has saved
its state. So it has to be ended by us, however the run ends, and with a signal that nobody can ignore. That loses nothing: a worker only
reads, and which batch comes next is known without it.
"""

import atexit
import errno
import logging
import os
import pickle
import re
import signal
import sys
import threading
import weakref
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, is_dataclass
from functools import cache
from multiprocessing import active_children, get_all_start_methods, get_context, parent_process, resource_tracker
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch._C import _remove_worker_pids
from torch.utils.data import DataLoader, Dataset

from gift_shared.errors import ConfigError, GiftError, MachineError, unknown_name
from gift_shared.preemption import leave_signals_to_main_process, signals_held_back
from gift_train.devices import cores_alone

SHARED_MEMORY = Path("/dev/shm")  # where torch puts tensors that processes hand to each other
BYTES_FOR_LOCKS = 1_000_000  # of them: a page each, some 10 for every worker and loader
SECONDS_TO_DIE = 5.0
MOST_WORKERS = 8  # that are started unasked
# Python 3.14 has forkserver where it had fork. A forked worker has all modules and decoded images of its parent; others import and decode.
DEFAULT_START_METHOD = "fork" if sys.platform == "linux" else "spawn"
FOR_THE_FORK_SERVER = ["gift_train.data.batches", "gift_train.clip.model"]  # imported once, by the process that the workers are forked from
_DEATH = re.compile(r"DataLoader worker \(pid(?:\(s\))? (?P<pid>\d+)")

_log = logging.getLogger(__name__)
_living: "weakref.WeakSet[Any]" = weakref.WeakSet()  # iterators of DataLoader that have processes
_exit_codes: dict[int, int] = {}  # by process number, of workers that had died when theirs were ended


@dataclass(frozen=True, kw_only=True)
class Loading:
    """Who makes batches: the process that uses them (0), or so many others for each stream, and how those are started.

    pins_memory: batches of other processes are put where a GPU copies from without waiting.
    """

    num_workers: int = 0
    start_method: str = DEFAULT_START_METHOD
    pins_memory: bool = False


HERE = Loading()


def resolved_loading(num_workers: int | None, start_method: str | None, device: torch.device, num_cores: int | None = None) -> Loading:
    """What was asked for, and where nothing was: on a GPU a worker for each core of this process, 8 at most; elsewhere none.

    Memory is pinned for a run on a GPU, and not for one on the CPU of a machine that has GPUs: pinning would start the first of them.

    num_cores: those that are this process's; None of a run's only one: all it has.
    Raises: ConfigError for a way to start that this system lacks.
    """
    method = DEFAULT_START_METHOD if start_method is None else start_method
    if method not in get_all_start_methods():
        raise ConfigError("--worker-start-method: " + unknown_name("start method of this system", method, get_all_start_methods()))
    if num_workers is None:
        cores = cores_alone() if num_cores is None else num_cores
        num_workers = min(MOST_WORKERS, max(1, cores)) if device.type == "cuda" else 0
    return Loading(num_workers=num_workers, start_method=method, pins_memory=device.type == "cuda")


@dataclass(frozen=True)
class _Failure:
    """What a worker met in place of a batch."""

    error: GiftError | OSError


class _InWorker(Dataset[Any]):
    """The same batches; what fails is handed over, where DataLoader would make the text of a traceback of it."""

    def __init__(self, batches: Dataset[Any]) -> None:
        self.batches = batches

    def __getitem__(self, position: int) -> Any:
        try:
            batch = self.batches[position]
        except (GiftError, OSError) as error:
            return _Failure(error)
        return _shared(batch)


@dataclass(frozen=True)
class _Pickled:
    """A batch for which there was no shared memory."""

    content: bytes


def _shared(batch: Any) -> Any:
    """The batch with its tensors in shared memory, or pickled, to go through a pipe, where that has no room.

    torch would do the former after this, in a thread that dies of a full /dev/shm and leaves the main process waiting.
    """
    try:
        if _has_room(sum(tensor.nbytes for tensor in _tensors(batch))):
            for tensor in _tensors(batch):
                tensor.share_memory_()
            return batch
    except RuntimeError:
        pass  # another process was faster
    return _Pickled(pickle.dumps(batch, protocol=pickle.HIGHEST_PROTOCOL))


def _has_room(num_bytes: int) -> bool:
    """Whether batches may take so much more of the shared memory: the locks of loaders that start later are left their room."""
    if not os.path.exists(SHARED_MEMORY):
        return True
    status = os.statvfs(SHARED_MEMORY)
    left_for_locks = min(BYTES_FOR_LOCKS, status.f_blocks * status.f_frsize // 2)
    return status.f_bavail * status.f_frsize - num_bytes >= left_for_locks


def _tensors(batch: Any) -> Iterator[torch.Tensor]:
    if isinstance(batch, torch.Tensor):
        yield batch
    elif is_dataclass(batch) or isinstance(batch, list | tuple):
        for part in batch if isinstance(batch, list | tuple) else vars(batch).values():
            yield from _tensors(part)


def loaded(batches: Dataset[Any], positions: Sequence[int], loading: Loading) -> Generator[Any, None, None]:
    """batches[position] for each position in order, made by other processes; errors of ours and of files as they were raised there.

    However this ends, the workers end with it. Raises: MachineError if there is not even shared memory for the processes' locks.
    """
    made = _started(batches, positions, loading)
    _living.add(made)
    try:
        for batch in made:
            if isinstance(batch, _Failure):
                raise batch.error
            if isinstance(batch, _Pickled):
                _tell_of_full_shared_memory(loading.num_workers)
                batch = pickle.loads(batch.content)
            yield batch
    except (EOFError, ConnectionError) as error:
        # A batch was being fetched from a worker that was killed: told as torch tells of it anywhere else. The system closes what a
        # dying process holds, which is what shows here, a moment before it reports the death.
        dying = wait([worker.sentinel for worker in made._workers], timeout=SECONDS_TO_DIE)
        if not dying:
            raise
        dead = next(worker for worker in made._workers if worker.sentinel in dying)
        dead.join(timeout=SECONDS_TO_DIE)
        raise RuntimeError(f"DataLoader worker (pid {dead.pid}) ended while a batch was fetched from it") from error
    finally:
        _end(made)


def _started(batches: Dataset[Any], positions: Sequence[int], loading: Loading) -> Any:
    # A starting loader draws a seed; from a generator of its own, or the run's random state would tell how often it was resumed.
    loader = DataLoader(
        _InWorker(batches),
        batch_size=None,
        sampler=positions,
        num_workers=loading.num_workers,
        pin_memory=loading.pins_memory,
        generator=torch.Generator(),
        worker_init_fn=_begin_forked if loading.start_method == "fork" else _begin_elsewhere,
        multiprocessing_context=loading.start_method,
    )
    _prepare_to_start(loading.start_method)
    others = set(active_children())
    try:
        with signals_held_back():
            return iter(loader)
    except OSError as error:
        # The first of its processes may have started, which nobody would end: they answer no signal that Python's exit sends.
        for worker in set(active_children()) - others:
            worker.kill()
            worker.join(timeout=SECONDS_TO_DIE)
        if error.errno != errno.ENOSPC:
            raise
        raise MachineError(
            f"{SHARED_MEMORY} is full, which {loading.num_workers} processes that load images need for their locks. Free some of it, give"
            " the container more (docker run --shm-size 8g), or --num-workers 0."
        ) from error


def _begin_forked(_: int) -> None:
    leave_signals_to_main_process()
    sys.excepthook = _told_by_the_main_process


def _begin_elsewhere(_: int) -> None:
    """A worker that is no child of the main process would not hear of its death: torch asks for the parent, which is the fork server.

    That in turn stays as long as a worker does, so that both would be there for ever.
    """
    leave_signals_to_main_process()
    sys.excepthook = _told_by_the_main_process
    main_process = parent_process()
    assert main_process is not None
    threading.Thread(target=_end_with, args=(main_process.sentinel,), name="main-process-watch", daemon=True).start()


def _told_by_the_main_process(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A main process that ends, for a reason it tells itself, breaks off what it fetches: no traceback of the thread that hands it out."""
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(MachineError.exit_code)


def _prepare_to_start(method: str) -> None:
    """Start what Python needs beside workers that are not forked from here: one by one, so that no signal ends it either."""
    if method == "forkserver":
        get_context(method).set_forkserver_preload(FOR_THE_FORK_SERVER)
    if method != "fork":
        with signals_held_back():  # a block of its own: the tracker's start lets SIGINT and SIGTERM through again
            resource_tracker.ensure_running()


@cache
def _tell_of_full_shared_memory(num_workers: int) -> None:
    status = os.statvfs(SHARED_MEMORY)
    _log.warning(
        "%s, of %.3g MB, has no room for the batches of %d processes that load images: they go through pipes, which is slower."
        " Give the container more (docker run --shm-size 8g), or fewer --num-workers.",
        SHARED_MEMORY, status.f_blocks * status.f_frsize / 1e6, num_workers,
    )  # fmt: skip


def end_loader_processes() -> None:
    """End every worker there is. For the end of a run: a traceback may hold the generators above, and with them their processes."""
    for made in list(_living):
        _end(made)


atexit.register(end_loader_processes)  # before multiprocessing, which registered first, waits for processes that answer no signal


def death_of_worker(error: BaseException) -> str | None:
    """Which worker ended by itself and how, if that is what torch's error tells: `(process 17) was killed by SIGKILL`; else None.

    torch raises it wherever the main process is when it hears of the death, and does not always say how.
    """
    match = _DEATH.search(str(error)) if isinstance(error, RuntimeError) else None
    if match is None:
        return None
    found = _exit_codes | {worker.pid: worker.exitcode for made in _living for worker in made._workers if not worker.is_alive()}
    code = found.get(int(match["pid"]))
    how = "ended" if code is None else f"ended with exit code {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"
    return f"(process {match['pid']}) {how}"


def _end(made: Any) -> None:
    """End the workers of DataLoader's iterator at once.

    Not by its own `_shutdown_workers`, which asks and waits, and waits for ever where a worker was killed with a lock in its hands. What
    is done here is what that method leaves behind: it is told that it has run, torch's watch over the processes is taken off first.
    """
    _living.discard(made)
    workers = [worker for worker in made._workers if worker.is_alive()]
    _exit_codes.update({worker.pid: worker.exitcode for worker in made._workers if worker not in workers and worker.exitcode})
    made._shutdown = True
    if made._worker_pids_set:
        _remove_worker_pids(id(made))
        made._worker_pids_set = False
    if hasattr(made, "_pin_memory_thread_done_event"):
        made._pin_memory_thread_done_event.set()
    for queue in made._index_queues:
        queue.cancel_join_thread()
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join(timeout=SECONDS_TO_DIE)
