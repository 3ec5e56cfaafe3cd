"""Writes one shard while the next is rendered."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

from gift_generate.images.image_source import Picture, PlanRow
from gift_generate.output.folder import OutputFolder, Shard
from gift_generate.output.shard_writer import write_shard


@dataclass(frozen=True)
class MadeShard:
    """A shard whose pictures are all there. `seconds` is how long it kept its worker."""

    shard: Shard
    rows: Sequence[PlanRow]
    pictures: Sequence[Picture]
    seconds: float

    @property
    def statuses(self) -> Counter[str]:
        """How many rows ended with which status."""
        return Counter(str(picture.status) for picture in self.pictures)


class BackgroundWriter:
    """One thread and at most one shard in it, so memory holds two shards' encoded pictures and no more.

    An error of the thread, such as a full disk, is raised by whichever method is called next.
    """

    def __init__(self, output: OutputFolder) -> None:
        self._output = output
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

    def _write(self, made: MadeShard) -> None:
        # Whoever was given up for dead and comes second leaves what the first one wrote: tar and rows of one hand.
        if not self._output.is_complete(made.shard):
            write_shard(self._output.path, made.shard.name, made.rows, made.pictures, self._output.metadata)
