"""Being told to leave: SIGTERM and SIGUSR1, as schedulers send them some time before they kill. Work stops at its next safe place."""

import signal
from types import FrameType, TracebackType

from gift_shared.errors import Preempted

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class PreemptionNotice:
    """Notes the signals instead of dying of them while its block runs; the main thread alone may open it.

    The work asks `has_come` wherever it could stop, leaves whole files behind and raises with `obey`. A second signal finds the same
    answer: nothing is cut short that would be finished in time, and SIGKILL remains to who cannot wait.
    """

    def __init__(self) -> None:
        self._signal: signal.Signals | None = None
        self._before: dict[int, object] = {}

    @property
    def has_come(self) -> bool:
        """Whether one of the signals has arrived."""
        return self._signal is not None

    def obey(self, what_is_left: str) -> None:
        """Raise Preempted, which says what is left to do, if a signal has come; else do nothing."""
        if self._signal is not None:
            raise Preempted(f"Stopped by {self._signal.name}: {what_is_left}. Nothing is lost; the same command goes on.")

    def __enter__(self) -> "PreemptionNotice":
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, _: FrameType | None) -> None:
        self._signal = signal.Signals(number)
