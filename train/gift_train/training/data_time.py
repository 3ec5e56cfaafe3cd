"""How long the steps of a loop wait for their batches, so that a starved accelerator is told apart from a busy one."""

import logging
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
TOO_LONG = 0.2  # share above which a run is told how to load faster
_log = logging.getLogger(__name__)


class DataTime:
    """Sums the seconds between asking for an item and having it.

    Without loader processes that is the loading itself. On an accelerator, whose work is queued, a loop may wait for the next batch
    while the device still works on the last ones: there the share is an upper bound of the time the device had nothing to do.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._first: float | None = None

    def timed(self, items: Iterable[T]) -> Iterator[T]:
        """The same items."""
        iterator = iter(items)
        while True:
            asked = time.perf_counter()
            self._first = asked if self._first is None else self._first
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                self.seconds += time.perf_counter() - asked
            yield item

    @property
    def share(self) -> float:
        """Fraction of the time since the first item was asked for."""
        if self._first is None:
            return 0.0
        return self.seconds / max(time.perf_counter() - self._first, 1e-9)


def warn_if_starved(label: str, share: float, num_workers: int) -> None:
    """Tell that steps waited longer than TOO_LONG, and what makes loading faster."""
    if share > TOO_LONG:
        _log.warning(
            "%s: steps waited for their images %.0f %% of the time; more --num-workers (now %d) or --image-cache-gb make that less.",
            label, 100 * share, num_workers,
        )  # fmt: skip
