"""Where the pictures of a shard come from, and what became of each of its plan rows. Knows no source."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gift_generate.rendering.reproducible import Reproducible
from gift_shared.schema import SampleStatus

PlanRow = dict[str, Any]  # one row of PLAN_SCHEMA


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An encoded image, or why there is none. `content` and sizes in pixels are None unless the status is ok."""

    status: SampleStatus
    message: str
    attempts: int
    used_seed: int
    content: bytes | None = None
    suffix: str | None = None  # ".jpg", ".png" or ".webp"
    width: int | None = None
    height: int | None = None


class BatchStore:
    """The finished batches of one shard, so that what was made before an interruption is not made again. This one keeps none.

    A batch is known by its attempt (from 0) and the positions of its rows within the shard.
    """

    def find(self, attempt: int, positions: Sequence[int]) -> list[Picture] | None:
        """What became of the rows of a batch in this attempt, in their order; None if that is not known."""
        return None

    def add(self, attempt: int, positions: Sequence[int], pictures: Sequence[Picture]) -> None:
        """Keep a batch that was just made, also of rows that another attempt follows for."""
        return

    def on_reused(self, count: int) -> None:
        """Hears of so many rows that are settled by what was found."""
        return


KEEPS_NOTHING = BatchStore()


class ImageSource(Reproducible):
    """Where a shard's pictures come from: a renderer, or files made elsewhere."""

    def warnings(self, captions: Iterable[str]) -> list[str]:
        """What the user should know about these captions before the work starts; nothing unless a source says otherwise."""
        return []

    def expect(self, spread: Sequence[PlanRow]) -> None:
        """Told before the first shard: a few rows from all over the plan, by which the model's fault can be told from some captions'."""
        return

    @property
    def split_batch(self) -> int | None:
        """Images made at once since a whole batch found too little memory; None: none did."""
        return None

    @abstractmethod
    def pictures(self, rows: Sequence[PlanRow], on_images: Callable[[int], None], batches: BatchStore = KEEPS_NOTHING) -> list[Picture]:
        """The pictures of one shard in row order; `on_images` hears of every row that is settled and was not found in `batches`.

        Raises an error if nothing is usable at all, so that nothing of it is written.
        """
