"""The workers of one machine as processes that do not depend on each other: started, started again where one dies, told to leave together.

A launcher for training ends all processes when one fails, since the others would wait for it. Workers of a render wait for nobody.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import IO

from gift_generate.workers.rank import Worker
from gift_shared.console import INTERRUPTED
from gift_shared.errors import ConfigError, GiftError, MachineError, Preempted
from gift_shared.launchers import local_rank_from, number_from
from gift_shared.preemption import SIGNALS, PreemptionNotice

SUPERVISED = "GIFT_SUPERVISED"  # in the environment of such a worker
TORCHRUN = "TORCHELASTIC_RUN_ID"  # in that of a process of torchrun's or accelerate's
FROM_A_TERMINAL = (signal.SIGINT, signal.SIGHUP)  # Ctrl-C, and its end
MOST_RESTARTS = 3  # of one worker in a row, without a shard between them
SECONDS_BEFORE_RESTART = 0.5  # times the restarts so far: a driver that has just failed needs a moment
POLL_SECONDS = 0.1
SECONDS_TO_READ = 5.0  # what an ended worker has printed; a process of its own may hold the pipe for longer
CRASHED = MachineError.exit_code
WORST_FIRST = (GiftError.exit_code, CRASHED, INTERRUPTED, Preempted.exit_code, 0)
NOT_AGAIN = (GiftError.exit_code, INTERRUPTED, Preempted.exit_code, 0)  # exit codes with which a worker has come to its own end


@dataclass
class _Process:
    """One of the workers: its place, its process and how often it was started again since it last wrote a shard."""

    place: int
    process: subprocess.Popen[bytes]
    reading: threading.Thread  # what it prints
    restarts: int = 0
    starts_at: float | None = None  # when it is to be started again
    exit_code: int | None = None  # of its own end, or of the end it was given up with


@dataclass(frozen=True, kw_only=True)
class LocalWorkers:
    """`num` workers on this machine. `node` is this machine's place among others that share the folder: it decides their ranks.

    words: the command line of `gift-generate`; the options that place a worker are added, and the last one given counts.
    has_got_on: whether a process, by its number, has written a shard.
    """

    words: Sequence[str]
    num: int
    node: Worker
    tell: Callable[[str], None]
    has_got_on: Callable[[int], bool]

    def run(self, notice: PreemptionNotice, meanwhile: Callable[[], None]) -> int:
        """Start the workers and stay until all have ended; returns the worst of their exit codes. `meanwhile` is called all the time.

        A signal that comes to `notice` is passed on once, and from then on nobody is started again.
        """
        lines: SimpleQueue[tuple[int, bytes]] = SimpleQueue()
        processes = [_Process(place, *self._start(place, lines)) for place in range(self.num)]
        told: set[str] = set()
        num_passed_on = 0
        try:
            while any(one.exit_code is None for one in processes):
                for came in notice.came[num_passed_on:]:
                    _signal(processes, came)
                num_passed_on = len(notice.came)
                for one in processes:
                    self._look_after(one, notice, lines)
                self._relay(lines, told)
                meanwhile()
                time.sleep(POLL_SECONDS)
        finally:
            _signal(processes, signal.SIGTERM)  # none is left, unless something failed here
            for one in processes:
                one.process.wait()
                one.reading.join(SECONDS_TO_READ)
        self._relay(lines, told)
        codes = {one.exit_code for one in processes}
        return next(code for code in WORST_FIRST if code in codes)

    def _start(self, place: int, lines: "SimpleQueue[tuple[int, bytes]]") -> tuple[subprocess.Popen[bytes], threading.Thread]:
        # Not -m alone: a file of the folder it starts in, such as random.py, would stand for a module of Python's. A session of its
        # own: Ctrl-C, or a scheduler that signals a whole step, would reach it a second time.
        placed = ["--processes", "1", "--rank", str(self._rank(place)), "--world-size", str(self.node.world_size * self.num)]
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "gift_generate.cli", *self.words, *placed],
            env=os.environ | local_place(place, self.num) | {SUPERVISED: "1"},
            stdin=subprocess.PIPE,  # never written to: it ends with this process, which tells the worker to leave
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert process.stdout is not None
        reading = threading.Thread(target=_read_lines, args=(process.stdout, place, lines), daemon=True)
        reading.start()
        return process, reading

    def _rank(self, place: int) -> int:
        return self.node.rank * self.num + place

    def _look_after(self, one: _Process, notice: PreemptionNotice, lines: "SimpleQueue[tuple[int, bytes]]") -> None:
        if one.exit_code is not None:
            return
        if one.starts_at is not None:
            if notice.has_come:
                one.exit_code = Preempted.exit_code
            elif time.monotonic() >= one.starts_at:
                one.starts_at = None
                one.process, one.reading = self._start(one.place, lines)
            return
        code = one.process.poll()
        if code is None:
            return
        if code in NOT_AGAIN:
            one.exit_code = code
        elif notice.has_come:  # told to leave, before it listens it dies of it
            one.exit_code = Preempted.exit_code
        else:
            self._mend(one, _death(code))

    def _mend(self, one: _Process, death: str) -> None:
        one.restarts = 1 if self.has_got_on(one.process.pid) else one.restarts + 1
        who = f"worker {self._rank(one.place)} {death}"
        if one.restarts > MOST_RESTARTS:
            self.tell(f"{who}, as it did after each of {MOST_RESTARTS} restarts: given up. The others go on.")
            one.exit_code = CRASHED
            return
        self.tell(f"{who}: started again ({one.restarts} of {MOST_RESTARTS}).")
        one.starts_at = time.monotonic() + one.restarts * SECONDS_BEFORE_RESTART

    def _relay(self, lines: "SimpleQueue[tuple[int, bytes]]", told: set[str]) -> None:
        """Tell what the workers print, and what several of them print once. Indented lines are part of a traceback and stay together."""
        while True:
            try:
                place, line = lines.get_nowait()
            except Empty:
                return
            text = line.decode(errors="replace").rstrip()
            if text and (text not in told or text.startswith((" ", "Traceback"))):
                told.add(text)
                self.tell(f"worker {self._rank(place)}: {text}")


def signals_to_pass_on() -> tuple[signal.Signals, ...]:
    """What whoever starts workers listens to; not to what it was told to ignore, as by nohup or in the background of a script."""
    return (*SIGNALS, *(one for one in FROM_A_TERMINAL if signal.getsignal(one) is not signal.SIG_IGN))


def require_no_launcher(environment: Mapping[str, str] = os.environ) -> None:
    """Raises ConfigError within torchrun and its like, each of whose processes would start as many again."""
    if TORCHRUN in environment:
        raise ConfigError(
            "--processes starts the workers of this machine itself: leave out torchrun (or accelerate launch), or --processes."
        )


def local_place(place: int, num: int, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What tells a worker which of this machine's it is, and with it which GPU is its own: as torchrun's names, and within srun's."""
    outer = local_rank_from(environment, default=0)
    num_outer = number_from(environment, "LOCAL_WORLD_SIZE", default=1)
    return {"LOCAL_RANK": str(outer * num + place), "LOCAL_WORLD_SIZE": str(num_outer * num)}


def is_supervised(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is one of `LocalWorkers`."""
    return SUPERVISED in environment


def leave_with_supervisor() -> None:
    """For such a worker, once it listens to signals: should whoever started it be killed, it is told to leave as by a scheduler."""

    def wait_for_its_end() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait_for_its_end, name="supervisor-watch", daemon=True).start()


def _signal(processes: Sequence[_Process], came: signal.Signals) -> None:
    number = signal.SIGTERM if came is signal.SIGHUP else came  # of which the workers know nothing
    for one in processes:
        if one.process.poll() is None:
            one.process.send_signal(number)


def _read_lines(stream: IO[bytes], place: int, lines: "SimpleQueue[tuple[int, bytes]]") -> None:
    for line in stream:
        lines.put((place, line))


def _death(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal
        return f"was killed by signal {-code}"
