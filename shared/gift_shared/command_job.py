"""One of our command lines as a job that submitit runs: what it is told on the way, and when it is to be started again.

The command is a process of its own in a session of its own: a scheduler signals every process of a step, and the processes that load
images for the command would die of it. Signals come here, and the command alone is told, once.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, NoReturn

from gift_shared.errors import Preempted
from gift_shared.preemption import SIGNALS, PreemptionNotice

if TYPE_CHECKING:
    import submitit

POLL_SECONDS = 0.1
LINES_KEPT = 20
TERMINATED = 128 + signal.SIGTERM  # as shells tell it
NO_SUCH_JOB = "Invalid job id"  # with which squeue and scontrol fail though the controller has answered
SECONDS_TO_NEXT_TRY = (1, 2, 4, 8, 16, 32)  # for a controller that is busy or being restarted
FIRST_PORT, NUM_PORTS = 20_000, 40_000  # where the processes of a job find each other


class CommandFailedError(RuntimeError):
    """The command of a job ended with an exit code that no other start would mend; the message has the last lines it wrote."""


@dataclass(frozen=True)
class CommandJob:
    """A command line that submitit runs on every process of a job, and that goes on where it stopped when it is started again.

    words: the command line. folder: where it starts. job, num_jobs: which of the jobs this is that share one piece of work, such
    that the processes of all of them together are numbered through: RANK and WORLD_SIZE, as torchrun sets them. restarts: how often
    SLURM starts it again at most, so that a job that never gets on does not do so for ever.
    """

    words: tuple[str, ...]
    folder: str
    job: int = 0
    num_jobs: int = 1
    restarts: int = 1000

    def __call__(self) -> None:
        """Run the command. Raises CommandFailedError; leaves the process with SystemExit where the command is to be started again."""
        import submitit

        place = submitit.JobEnvironment()
        place.paths.result_pickle.unlink(missing_ok=True)  # of a start before: this process was done then, and the job is not
        time_is_up = signal.Signals[f"SIG{place.USR_SIG}"]  # what submitit has SLURM send before the time limit
        with PreemptionNotice(tuple({*SIGNALS, time_is_up})) as notice:
            exit_code, last_lines = self._run(place, notice)
        if exit_code == 0:
            return
        # Told to leave, a command may end in other ways than with its own exit code, e.g. before it listens or because the processes that
        # load its images were signalled too. Should it be an error of its own, the next start ends with it.
        if exit_code != Preempted.exit_code and not notice.has_come:
            raise CommandFailedError(f"{shlex.join(self.words)} ended with exit code {exit_code}.\n{last_lines}")
        _wait_for_the_first_process(place)
        if not _may_start_again(place, notice.came):
            sys.exit(TERMINATED)  # not 75, which would have a cluster with RequeueExit=75 start it again
        if int(os.environ.get("SLURM_RESTART_COUNT", "0")) >= self.restarts:
            raise CommandFailedError(f"{shlex.join(self.words)} was started again {self.restarts} times and is not done.\n{last_lines}")
        _start_again(place)

    def checkpoint(self) -> "submitit.helpers.DelayedSubmission":
        """What to run after a requeue: the same. Called by submitit where a signal comes before or after the command runs."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _run(self, place: "submitit.JobEnvironment", notice: PreemptionNotice) -> tuple[int, str]:
        """Exit code of the command, and the last lines of its stderr, which also goes to the job's log."""
        process = subprocess.Popen(
            self.words, cwd=self.folder, env=self._environment(place), stderr=subprocess.PIPE, start_new_session=True
        )
        assert process.stderr is not None
        last_lines: deque[bytes] = deque(maxlen=LINES_KEPT)
        copying = threading.Thread(target=_copy, args=(process.stderr, last_lines), daemon=True)
        copying.start()
        is_told = False
        try:
            while (exit_code := process.poll()) is None:
                if notice.has_come and not is_told:
                    process.terminate()
                    is_told = True
                time.sleep(POLL_SECONDS)
        finally:
            if process.poll() is None:  # this process was interrupted: the command shall not outlive it, and may leave in its own way
                process.terminate()
                process.wait()
            copying.join(timeout=10)  # a grandchild may hold the pipe for longer
        return exit_code, b"".join(last_lines).decode(errors="replace").strip()

    def _environment(self, place: "submitit.JobEnvironment") -> dict[str, str]:
        # The numbers below count the jobs already: nobody shall multiply them by the array's.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_ARRAY_")}
        world_size = self.num_jobs * place.num_tasks
        if world_size > 1:
            environment |= {
                "RANK": str(self.job * place.num_tasks + place.global_rank),
                "WORLD_SIZE": str(world_size),
                "LOCAL_RANK": str(place.local_rank),
                "LOCAL_WORLD_SIZE": str(place.num_tasks // place.num_nodes),
                "MASTER_ADDR": place.hostnames[0] if place.num_nodes > 1 else "127.0.0.1",
                "MASTER_PORT": str(FIRST_PORT + int(place.raw_job_id) % NUM_PORTS),
            }
        return environment


def _wait_for_the_first_process(place: "submitit.JobEnvironment") -> None:
    """Let the job's first process, which may still be saving for all of them, be the one to ask SLURM for another start.

    If it asks, or fails, the job ends and this process with it; an exit code of this one's would end it too early. Returns once it is
    done and asks for nothing. Elsewhere every process asks for itself.
    """
    from submitit.core.utils import JobPaths

    first = JobPaths(place.paths.folder, place.job_id, task_id=0)
    while place.cluster == "slurm" and place.global_rank != 0 and not first.result_pickle.is_file():
        time.sleep(POLL_SECONDS)


def _may_start_again(place: "submitit.JobEnvironment", came: Sequence[signal.Signals]) -> bool:
    """Whether to ask for another start, now that the command has left.

    SIGTERM alone says no: it comes where somebody else has decided already (cancelled, requeued by SLURM, another process of the job
    failed). The exception is a job that has some grace before it loses its node to another one. Where SLURM does not answer, what is
    wanted decides: a job that ends for good is the greater harm.
    """
    is_wanted = not came or any(one != signal.SIGTERM for one in came)
    if place.cluster != "slurm":
        return is_wanted
    question = ["squeue", "--noheader", "--Format=State:20,PreemptTime:30", f"--jobs={place.raw_job_id}"]
    said = _ask_slurm(question)
    if said is None:
        return is_wanted
    answer = said.split()
    return answer[:1] == ["RUNNING"] and (is_wanted or answer[1:] != ["N/A"])


def _start_again(place: "submitit.JobEnvironment") -> NoReturn:
    if place.cluster != "slurm":
        from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE

        sys.exit(LOCAL_REQUEUE_RETURN_CODE)
    # Should SLURM refuse, it says so in the log, and the exit code is left for its RequeueExit.
    _ask_slurm(["scontrol", "requeue", place.job_id])
    sys.exit(Preempted.exit_code)


def _ask_slurm(command: Sequence[str]) -> str | None:
    """What a command of SLURM says on stdout, asked again for a minute where it fails; None if it never succeeds."""
    for seconds in (*SECONDS_TO_NEXT_TRY, 0):
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode == 0 or NO_SUCH_JOB in answer.stderr:
            return answer.stdout
        with contextlib.suppress(OSError):
            sys.stderr.write(answer.stderr)
        time.sleep(seconds)
    return None


def _copy(source: IO[bytes], last_lines: deque[bytes]) -> None:
    """Copy lines to the job's log. Where that fails, as on a full disk, they are read all the same: unread, they block the command."""
    for line in source:
        last_lines.append(line)
        with contextlib.suppress(OSError):
            os.write(sys.stderr.fileno(), line)
