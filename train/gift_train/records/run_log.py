"""RUN/log.jsonl: what happened to a run and when, over all its starts. For programs; people have `watch` and the progress lines."""

from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from gift_shared.errors import Preempted
from gift_shared.event_log import EventLog

LOG_FILE = "log.jsonl"


class RunLog:
    """Appends a run's events; a context manager that tells how the start ended: preempted, interrupted or failed.

    `is_writing` False makes it silent, for all ranks but the main one.
    """

    def __init__(self, run: Path, *, is_writing: bool = True) -> None:
        self._log = EventLog(run / LOG_FILE) if is_writing else None

    def write(self, event: str, **fields: Any) -> None:
        """Append one event, e.g. `write("task_started", task=..., step=0)`."""
        if self._log is not None:
            self._log.write(event, **fields)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            return
        event = "preempted" if isinstance(error, Preempted) else "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        with suppress(OSError):  # the disk may be full, which is what the error already says
            self.write(event, error=type(error).__name__, message=" ".join(str(error).split()))
