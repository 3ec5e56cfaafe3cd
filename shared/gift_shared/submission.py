"""Command lines as jobs of SLURM, through submitit: what a job may use, its submission, and waiting for its end."""

import contextlib
import importlib.util
import io
import itertools
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gift_shared.command_job import NO_SUCH_JOB, CommandJob
from gift_shared.errors import ConfigError, unknown_name
from gift_shared.event_log import EventLog

if TYPE_CHECKING:
    import submitit

    Job = submitit.Job[None]

EXECUTORS = ("slurm", "local")
# days-hours[:minutes[:seconds]], hours:minutes:seconds, minutes[:seconds], as in sbatch's manual
TIMES = (
    re.compile(r"(?P<days>\d+)-(?P<hours>\d+)(:(?P<minutes>\d+)(:(?P<seconds>\d+))?)?"),
    re.compile(r"(?P<hours>\d+):(?P<minutes>\d+):(?P<seconds>\d+)"),
    re.compile(r"(?P<minutes>\d+)(:(?P<seconds>\d+))?"),
)
SECONDS_IN = {"days": 86_400, "hours": 3600, "minutes": 60, "seconds": 1}
# sbatch options that have a flag of ours, or that restarting and logs rest on.
NOT_FREE = (
    "array", "cpus-per-task", "error", "gpus-per-node", "mem", "no-requeue", "nodes", "ntasks", "ntasks-per-node", "open-mode", "output",
    "partition", "requeue", "signal", "time",
)  # fmt: skip
SAFE_PATH = "export PYTHONSAFEPATH=1"  # or a file of the folder it starts in, such as random.py, would stand for a module of Python's
SUBMITTED_LOG = "submitted.jsonl"
WAIT_SECONDS = 1.0
# How often a job must be missing among those alive, by its outcome, before it has ended. Between two states it is missing for a moment,
# and its result may reach this machine later than its end. Done is known of each process, and one may have been in an earlier start.
LOOKS_UNTIL_GONE = {"failed": 0, "done": 1, None: 3}


def minutes(text: str) -> int:
    """A time limit as SLURM writes it, in whole minutes, rounded up. Raises ConfigError."""
    for form in TIMES:
        if match := form.fullmatch(text):
            seconds = sum(int(number) * SECONDS_IN[unit] for unit, number in match.groupdict().items() if number)
            if seconds:
                return -(-seconds // 60)
    raise ConfigError(f"--time {text!r} should be a time as SLURM writes it: 90 (minutes), 4:00:00 or 2-12:00:00.")


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one job may use and how it is started: the options that every `submit` has."""

    executor: Annotated[str, typer.Option(help="slurm; or local: processes of this machine, to try it out.")] = "slurm"
    nodes: Annotated[int, typer.Option(min=1, help="Nodes of a job.")] = 1
    processes: Annotated[int, typer.Option(min=1, help="Processes of a job on each of its nodes: one per GPU.")] = 1
    partition: Annotated[str | None, typer.Option(help="Partition of SLURM.  [default: the cluster's]")] = None
    time: Annotated[str, typer.Option(help="Time limit of a job as SLURM writes it; then it is requeued and goes on.")] = "24:00:00"
    gpus_per_node: Annotated[
        int | None, typer.Option(min=0, help="GPUs of a job on each of its nodes; with --executor local the first ones, none unless given.")
    ] = None
    cpus_per_task: Annotated[int | None, typer.Option(min=1, help="CPU cores of each process.")] = None
    mem: Annotated[str | None, typer.Option(help="Memory of a job on each of its nodes, e.g. 64G.")] = None
    slurm: Annotated[list[str] | None, typer.Option(help="Any other option of sbatch, e.g. account=vision; repeatable.")] = None
    setup: Annotated[list[str] | None, typer.Option(help="Line of shell that runs first in a job; repeatable.")] = None
    array_parallelism: Annotated[int | None, typer.Option(min=1, help="Jobs that run at once, at most.  [default: all]")] = None
    notice: Annotated[int, typer.Option(min=1, help="Seconds before the time limit at which a job is told to leave.")] = 120
    restarts: Annotated[int, typer.Option(min=0, help="Times a job of SLURM starts again, at most.")] = 1000
    logs: Annotated[Path, typer.Option(help="Folder for logs, where every node sees it.")] = Path("jobs")
    wait: Annotated[bool, typer.Option("--wait", help="Stay until all jobs have ended; exit code 1 if one failed.")] = False

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            raise ConfigError("--executor: " + unknown_name("executor", self.executor, EXECUTORS))
        if self.executor == "local" and self.nodes > 1:
            raise ConfigError(f"--executor local has this machine alone, --nodes asks for {self.nodes}.")
        limit = minutes(self.time)
        if self.notice >= limit * 60:
            raise ConfigError(f"--notice {self.notice} s must be shorter than --time {self.time} ({limit} min).")
        self.sbatch_options()

    def sbatch_options(self) -> dict[str, str | bool]:
        """The options that go to sbatch as they are. Raises ConfigError for one that is not free."""
        options: dict[str, str | bool] = {"requeue": True}
        if self.mem is not None:
            options["mem"] = self.mem
        for pair in self.slurm or ():
            name, separator, value = pair.strip().lstrip("-").partition("=")
            if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
                raise ConfigError(f"--slurm {pair!r} should be an option of sbatch without its dashes, e.g. account=vision or exclusive.")
            if name in NOT_FREE:
                raise ConfigError(f"--slurm {pair}: {name} has its own flag here, or is what logs and restarts rest on.")
            options[name] = value if separator else True
        return options


def each_of(assignments: Sequence[str]) -> list[dict[str, str]]:
    """`seed=1,2` and `method=gift,l2` -> the four combinations. Raises ConfigError for anything else."""
    choices: dict[str, list[str]] = {}
    for assignment in assignments:
        name, _, values = assignment.partition("=")
        several = [value.strip() for value in values.split(",")]
        if not name.isidentifier() or name in choices or not all(several) or len(set(several)) != len(several):
            raise ConfigError(f"--each {assignment!r} should be a new name and different values, e.g. seed=1,2,3.")
        choices[name] = several
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


def filled(words: Sequence[str], values: Mapping[str, str]) -> list[str]:
    """The words with `{name}` replaced by its value. Raises ConfigError for a value that no word asks for."""
    for name in values:
        if not any(f"{{{name}}}" in word for word in words):
            raise ConfigError(f"--each {name}: no word of the command has {{{name}}} in it, so its jobs would all be the same.")
    return [re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), word) for word in words]


def parse_words(context: typer.Context, words: Sequence[str], valid: Sequence[str]) -> Mapping[str, Any]:
    """Parse the command line after `--` as the command itself would, so that a misspelt flag is told before anything is submitted.

    Returns: the command's parameters as typer read them. Raises: ConfigError for another command than the valid ones.
    """
    if not words or words[0] not in valid:
        found = f"found {words[0]!r}" if words else "found nothing"
        raise ConfigError(f"After the options and -- comes the command that the jobs run: {' or '.join(valid)}; {found}.")
    root = context.find_root()
    command = root.command.get_command(root, words[0])  # type: ignore[attr-defined]
    given: Mapping[str, Any] = command.make_context(words[0], list(words[1:]), parent=root).params
    return given


def require_executor(resources: Resources) -> None:
    """Raises ConfigError, before anything is prepared, if jobs cannot be submitted from here."""
    if importlib.util.find_spec("submitit") is None:
        raise ConfigError("Submitting jobs needs submitit: pip install 'gift-cl[cluster]'.")
    missing = [program for program in ("sbatch", "srun", "squeue", "scontrol") if shutil.which(program) is None]
    if resources.executor == "slurm" and missing:
        raise ConfigError(
            f"There is no SLURM here: {missing[0]} was not found. Submit from a node that has it, "
            "or give --executor local to try the jobs on this machine."
        )


def submit_jobs(name: str, jobs: Sequence[CommandJob], resources: Resources) -> "list[Job]":
    """Submit jobs, several as one array; they are noted in LOGS/submitted.jsonl. Raises ConfigError if SLURM refuses them."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    executor = _executor(name, resources)
    told = io.StringIO()  # submitit prints what sbatch said, and raises with the same
    try:
        with contextlib.redirect_stderr(told), executor.batch():
            submitted = [executor.submit(job) for job in jobs]
    except (FailedJobError, FailedSubmissionError) as error:
        raise ConfigError(f"sbatch refused the job: {error}") from error
    log = EventLog(resources.logs / SUBMITTED_LOG)
    for job, asked in zip(submitted, jobs, strict=True):
        log.write("submitted", job=job.job_id, command=shlex.join(asked.words), folder=asked.folder)
    return submitted


def _executor(name: str, resources: Resources) -> "submitit.Executor":
    import submitit

    if resources.executor == "local":
        local = submitit.LocalExecutor(resources.logs)
        local.update_parameters(
            timeout_min=minutes(resources.time),
            tasks_per_node=resources.processes,
            gpus_per_node=resources.gpus_per_node or 0,
            signal_delay_s=resources.notice,
            setup=[SAFE_PATH, *(resources.setup or [])],
        )
        return local
    slurm = submitit.SlurmExecutor(resources.logs)
    given = {
        "partition": resources.partition,
        "cpus_per_task": resources.cpus_per_task,
        "gpus_per_node": resources.gpus_per_node,
        "array_parallelism": resources.array_parallelism,
        "setup": [SAFE_PATH, *(resources.setup or [])],
    }
    # srun no longer takes the cores of a task from sbatch. A process that fails would leave the others of its job waiting for it.
    srun = ["--kill-on-bad-exit=1", *([f"--cpus-per-task={resources.cpus_per_task}"] if resources.cpus_per_task else [])]
    slurm.update_parameters(
        job_name=name,
        time=minutes(resources.time),
        nodes=resources.nodes,
        ntasks_per_node=resources.processes,
        signal_delay_s=resources.notice,
        additional_parameters=resources.sbatch_options(),
        srun_args=srun,
        **{key: value for key, value in given.items() if value is not None},
    )
    return slurm


def submitted_lines(jobs: "Sequence[Job]", resources: Resources, follow: Sequence[str]) -> list[str]:
    """What a user wants to know next: the jobs, their logs, and the commands that show how they do."""
    is_slurm, many = resources.executor == "slurm", len(jobs) > 1
    array = jobs[0].job_id.partition("_")[0]
    if is_slurm:
        ids = f"{array}_0 to {array}_{len(jobs) - 1}" if many else array
        follow = [*follow, f"squeue --jobs {array}", f"scancel {array}"]
    else:
        ids = ", ".join(job.job_id for job in jobs)
    logs = resources.logs / ("*" if many and not is_slurm else f"{array}_*")
    lines = [f"submitted  {len(jobs)} job{'s' * many}: {ids}", f"logs       {logs}_log.err and .out"]
    return lines + [f"{'follow' if place == 0 else '':10} {line}" for place, line in enumerate(follow)]


def wait_for(jobs: "Sequence[Job]", resources: Resources, tell: Callable[[str], None]) -> int:
    """Wait until all jobs have ended, telling each as it ends; returns how many failed.

    A job that is requeued has not ended. One that is gone without a result was cancelled or killed, which is failing too.
    """
    waiting, looks_without = list(jobs), dict.fromkeys((job.job_id for job in jobs), 0)
    num_failed = 0
    while waiting:
        alive = _alive(waiting, resources)
        for job in list(waiting):
            looks_without[job.job_id] = 0 if alive is None or job.job_id in alive else looks_without[job.job_id] + 1
            outcome = _outcome(job)
            if looks_without[job.job_id] < LOOKS_UNTIL_GONE[outcome]:
                continue
            waiting.remove(job)
            num_failed += outcome != "done"
            reason = "" if outcome == "done" else _last_line(_part_to_blame(job).paths.stderr)
            ended = f"{outcome or 'killed or cancelled':10} {job.job_id} ({len(jobs) - len(waiting)} of {len(jobs)})"
            tell(f"{ended}: {reason}" if reason else ended)
        if waiting:
            time.sleep(WAIT_SECONDS)
    return num_failed


def _outcome(job: "Job") -> str | None:
    """What the processes of a job have written: done if all are, failed if one is, None if neither is known yet."""
    parts = [job.task(number) for number in range(job.num_tasks)]
    written = [part for part in parts if part.paths.result_pickle.is_file()]
    if any(part.exception() is not None for part in written):
        return "failed"
    return "done" if len(written) == len(parts) else None


def _part_to_blame(job: "Job") -> "Job":
    """The process of a job that failed; else one that has left no result."""
    parts = [job.task(number) for number in range(job.num_tasks)]
    silent = [part for part in parts if not part.paths.result_pickle.is_file()]
    failed = [part for part in parts if part not in silent and part.exception() is not None]
    return [*failed, *silent, *parts][0]


def _alive(jobs: "Sequence[Job]", resources: Resources) -> set[str] | None:
    """Ids of the jobs that wait or run; None if SLURM does not answer, so that nothing is known of any.

    squeue and not sacct: the latter needs a database, which not every cluster keeps.
    """
    if resources.executor == "local":
        return {job.job_id for job in jobs if not job.done()}
    numbers = sorted({job.job_id.partition("_")[0] for job in jobs})
    question = ["squeue", "--noheader", "--array", "--format=%i", f"--jobs={','.join(numbers)}"]
    answer = subprocess.run(question, capture_output=True, text=True, check=False)
    return set(answer.stdout.split()) if answer.returncode == 0 or NO_SUCH_JOB in answer.stderr else None


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []
    return next((line for line in reversed(lines) if line.strip()), "")
