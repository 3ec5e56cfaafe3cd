"""Being told to leave, by the signals that schedulers send some time before they kill. Work stops at its next safe place."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType

from gift_shared.errors import Preempted

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)  # the last is submitit's; SLURM sends it to every process of a step
NOT_FOR_WORKERS = (*SIGNALS, signal.SIGINT)


class PreemptionNotice:
    """Notes the signals instead of dying of them while its block runs; the main thread alone may open it.

    The work asks `has_come` wherever it could stop, leaves whole files behind and raises with `obey`. A second signal finds the same
    answer: nothing is cut short that would be finished in time, and SIGKILL remains to who cannot wait. Nor does one that comes while the
    process ends, which takes seconds where a GPU is let go of: it would replace the exit code that asks for another start.
    """

    def __init__(self, signals: Sequence[signal.Signals] = SIGNALS) -> None:
        self._signals = signals
        self._came: list[signal.Signals] = []
        self._before: dict[int, object] = {}

    @property
    def has_come(self) -> bool:
        """Whether one of the signals has arrived."""
        return bool(self._came)

    @property
    def came(self) -> Sequence[signal.Signals]:
        """The signals that have arrived, the first one first."""
        return tuple(self._came)

    def obey(self, what_is_left: str) -> None:
        """Raise Preempted, which says what is left to do, if a signal has come; else do nothing."""
        if self._came:
            raise Preempted(f"Stopped by {self._came[0].name}: {what_is_left}. Nothing is lost; the same command goes on.")

    def __enter__(self) -> "PreemptionNotice":
        self._before = {number: signal.signal(number, self._note) for number in self._signals}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        is_leaving = self.has_come and error is not None
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if is_leaving else handler)  # type: ignore[arg-type]

    def _note(self, number: int, _: FrameType | None) -> None:
        self._came.append(signal.Signals(number))


def leave_signals_to_main_process(_: int = 0) -> None:
    """For a worker process, which a signal to the whole group or job step reaches too: the main process ends it (SIGKILL) when it is done.

    Ctrl-C goes to all processes of a terminal. What came while the process was started, see `signals_held_back`, is dropped.
    """
    for number in NOT_FOR_WORKERS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, NOT_FOR_WORKERS)


@contextmanager
def signals_held_back() -> Iterator[None]:
    """While worker processes are started: until they know to ignore it, a signal would end them. This process gets it afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, NOT_FOR_WORKERS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
