"""Writes one shard while the next is rendered."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from gift_generate.output.work import MadeShard


class BackgroundWriter:
    """One thread and at most one shard in it, so memory holds two shards' encoded pictures and no more.

    An error of the thread, such as a full disk, is raised by whichever method is called next.
    """

    def __init__(self, write: Callable[[MadeShard], None]) -> None:
        self._write = write
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="shard-writer")
        self._writing: tuple[MadeShard, Future[None]] | None = None

    def __enter__(self) -> "BackgroundWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._thread.shutdown()  # waits: a shard that is being written is finished even if another thing went wrong

    def begin(self, made: MadeShard) -> None:
        """Start to write; the shard before must have been fetched with `finished`."""
        assert self._writing is None
        self._writing = made, self._thread.submit(self._write, made)

    def finished(self, *, wait: bool) -> MadeShard | None:
        """The shard that has been written since the last call; None if there is none. `wait` until what was begun is written."""
        if self._writing is None or not (wait or self._writing[1].done()):
            return None
        made, future = self._writing
        self._writing = None
        future.result()
        return made
