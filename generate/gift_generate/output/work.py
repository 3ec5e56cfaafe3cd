"""What a run makes in an output folder, shard by shard. Here: shards that are not there yet."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gift_generate.images.image_source import Picture, PlanRow
from gift_generate.output.binding import require_bound
from gift_generate.output.folder import OutputFolder, Shard
from gift_generate.output.shard_writer import write_shard


@dataclass(frozen=True)
class MadeShard:
    """Rows of a shard whose pictures are all there.

    `seconds` is how long they kept their worker, but for `num_reused` of them, which were made before an interruption.
    """

    shard: Shard
    rows: Sequence[PlanRow]
    pictures: Sequence[Picture]
    seconds: float
    num_reused: int = 0

    @property
    def statuses(self) -> Counter[str]:
        """How many rows ended with which status."""
        return Counter(str(picture.status) for picture in self.pictures)


class Work(ABC):
    """What is to be made in a folder with some settings, by any number of workers."""

    name: str  # of its spool

    def __init__(self, output: OutputFolder, settings: dict[str, Any]) -> None:
        self.output = output
        self.settings = settings

    @abstractmethod
    def remaining(self, among: Sequence[Shard] | None = None) -> list[Shard]:
        """Shards that are still to be worked on, in the order given, which is the plan's if none is."""

    @abstractmethod
    def look_again(self, left: Sequence[Shard]) -> list[Shard]:
        """Those of the shards that were left last time which still are, as far as that is known cheaply."""

    @abstractmethod
    def still_to_make(self, damaged: Sequence[Shard]) -> list[Shard]:
        """Those that this work makes of shards that were found damaged, or missing after all, at the end."""

    @abstractmethod
    def is_done(self, shard: Shard) -> bool:
        """Whether nothing is left to do for a shard."""

    @abstractmethod
    def rows(self, shard: Shard) -> list[PlanRow]:
        """The plan rows of a shard that pictures are to be made of."""

    @abstractmethod
    def num_rows(self, shard: Shard) -> int:
        """How many these are."""

    @abstractmethod
    def num_images(self, left: Sequence[Shard]) -> int:
        """How many images there are to make in all, those that are done included; `left` is what remained at the start."""

    @abstractmethod
    def write(self, made: MadeShard) -> None:
        """Write a shard, unless another worker did meanwhile."""


class NewShards(Work):
    """The shards that are not there yet, or damaged.

    own: those that this worker looks into, once, if they are there; all if none are given. Of the others it takes for whole what is
    there: a thousand workers that each looked into a hundred thousand shards would keep a file server busy for hours. Whoever writes the
    index looks into all.
    """

    name = "render"

    def __init__(self, output: OutputFolder, settings: dict[str, Any], own: Sequence[Shard] | None = None) -> None:
        super().__init__(output, settings)
        self._doubted = {shard.name for shard in (output.shards if own is None else own)}  # not looked into, or damaged

    def remaining(self, among: Sequence[Shard] | None = None) -> list[Shard]:
        """Shards that are not there, and those of its own that are damaged."""
        shards = self.output.shards if among is None else among
        absent = {shard.name for shard in self.output.absent(shards)}
        return [shard for shard in shards if shard.name in absent or self._is_damaged(shard)]

    def look_again(self, left: Sequence[Shard]) -> list[Shard]:
        """The same of what was left."""
        return self.remaining(left)

    def still_to_make(self, damaged: Sequence[Shard]) -> list[Shard]:
        """All of them: they may be of another worker's share."""
        self._doubted.update(shard.name for shard in damaged)
        return list(damaged)

    def _is_damaged(self, shard: Shard) -> bool:
        if shard.name not in self._doubted:
            return False
        if self.output.is_complete(shard):
            self._doubted.discard(shard.name)
            return False
        return True

    def is_done(self, shard: Shard) -> bool:
        """Whether it is complete."""
        return self.output.is_complete(shard)

    def rows(self, shard: Shard) -> list[PlanRow]:
        """All of it."""
        return self.output.rows(shard)

    def num_rows(self, shard: Shard) -> int:
        """All of it."""
        return shard.num_rows

    def num_images(self, left: Sequence[Shard]) -> int:
        """All rows of the plan."""
        return int(self.output.plan.num_rows)

    def write(self, made: MadeShard) -> None:
        """Raises ConfigError if the folder was bound to other settings meanwhile."""
        # Whoever was given up for dead and comes second leaves what the first one wrote: tar and rows of one hand.
        if not self.output.is_complete(made.shard):
            require_bound(self.output, self.settings)
            write_shard(self.output.path, made.shard.name, made.rows, made.pictures, self.output.metadata)
