"""Progress of anything long, on stderr: a bar on a terminal; in a log file a plain line now and then, never a flood of redraws."""

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, ClassVar, TypeVar

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """What is done, how far it is, how fast and how long it takes yet. A context manager; counts from `done` to `total`.

    stays: whether the finished bar stays on the terminal and the log gets a closing line however short the work was.
    """

    is_shown: ClassVar[bool] = True  # of several processes at one work, one shows it

    def __init__(self, what: str, total: int, unit: str, *, done: int = 0, stays: bool = True) -> None:
        self._what, self._total, self._unit, self._stays = what, total, unit, stays
        self._first = self._done = done
        self._note = ""
        self._started = self._told = time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty() and self.is_shown:
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, desc=what, unit=unit, leave=stays, dynamic_ncols=True, smoothing=0.1)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
        elif kind is None and self._done > self._first and (self._stays or self._told > self._started):
            seconds = time.monotonic() - self._started
            self._write(f"{self._what}: {self._done} of {self._total} {self._unit}s in {_clock(seconds)}, {self._rate(seconds)}")

    def advance(self, count: int = 1) -> None:
        """So many more are done."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
            return
        now = time.monotonic()
        if now - self._told >= SECONDS_BETWEEN_LINES and self._done < self._total:  # at the end comes a line of its own
            self._told = now
            rate = max(self._done - self._first, 1) / (now - self._started)
            left = _clock((self._total - self._done) / rate)
            self._write(f"{self._what}: {self._done} of {self._total} {self._unit}s, {self._rate(now - self._started)}, {left} left")

    def reach(self, done: int) -> None:
        """So many are done in all; fewer than before if work was lost."""
        self.advance(done - self._done)

    def note(self, text: str) -> None:
        """A word on the present state, e.g. the loss, shown behind the rest."""
        self._note = text
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)

    def make_room(self) -> None:
        """Call before printing: the bar gives up its line and comes back below with the next update."""
        if self._bar is not None:
            self._bar.clear()

    def _rate(self, seconds: float) -> str:
        return f"{(self._done - self._first) / max(seconds, 1e-9):.2f} {self._unit}s/s"

    def _write(self, line: str) -> None:
        if not self.is_shown:
            return
        sys.stderr.write(line + (f" ({self._note})" if self._note else "") + "\n")
        sys.stderr.flush()


def with_progress(items: Iterable[T], what: str, total: int, unit: str, *, stays: bool = True) -> Iterator[T]:
    """The items one by one, their progress shown."""
    with Progress(what, total, unit, stays=stays) as progress:
        for item in items:
            yield item
            progress.advance()


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}" if whole >= 3600 else f"{whole // 60}:{whole % 60:02d}"
