"""A real SLURM of one node on loopback, started once, and what tests ask of it."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from gift_mini.tasks import export_tasks

SCRIPT = Path(__file__).with_name("one_node.sh")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue")
PATIENCE = 240.0  # seconds; on a machine that does nothing else, a tenth of it
REST = 2.0  # seconds

QUICK = {"steps": 40, "warmup_steps": 2, "batch_size": 8, "checkpoint_every": 10, "diagnostics": "false"}
ORDER = {
    "name": "two",
    "display_name": "Two tasks",
    "pretraining_source": "mini_base",
    "tasks": ["mini_flags", "mini_shapes"],
    "recipes": "mini",
}


@dataclass(frozen=True)
class Cluster:
    """Runs commands as a user of the cluster would, in one working folder."""

    folder: Path
    environment: dict[str, str]

    def run(self, *words: object, code: int = 0) -> str:
        """Run a command to its end, which must have this exit code; returns what it printed on both channels."""
        done = subprocess.run(
            list(map(str, words)),
            cwd=self.folder,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        assert done.returncode == code, f"{words}: exit code {done.returncode}\n{done.stdout}\n{self.logs()}"
        return done.stdout

    def start(self, *words: object) -> subprocess.Popen[str]:
        """Start a command, and leave it running."""
        return subprocess.Popen(
            list(map(str, words)), cwd=self.folder, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def has(self, program: str) -> bool:
        """Whether a program that some tests look at the logs with is installed."""
        return shutil.which(program, path=self.environment["PATH"]) is not None

    def states(self) -> dict[str, str]:
        """WorkerState of every job that waits or runs, by its number as users write it."""
        return dict(line.split() for line in self.run("squeue", "--noheader", "--array", "--format=%i %T").splitlines())

    def state(self, job: str) -> str:
        """WorkerState of a job that may have ended."""
        return self.field(job, "JobState")

    def restarts(self, job: str) -> int:
        """How often a job was started again."""
        return int(self.field(job, "Restarts"))

    def field(self, job: str, name: str) -> str:
        """One value of what SLURM knows of a job."""
        words = self.run("scontrol", "--oneliner", "show", "job", job).split()
        return next(word.partition("=")[2] for word in words if word.startswith(f"{name}="))

    def wait(self, is_so: Callable[[], bool], what: str) -> None:
        """Wait until something is so. SLURM lets a requeued job rest for two minutes; tests let it rest for two seconds.

        With less than one, the node may still refuse it: it takes the job for the one it was told to end.
        """
        deadline = time.monotonic() + PATIENCE
        pending_since: dict[str, float] = {}
        while not is_so():
            assert time.monotonic() < deadline, f"not within {PATIENCE:.0f} s: {what}\n{self.states()}\n{self.logs()}"
            pending = [job for job, state in self.states().items() if state == "PENDING"]
            pending_since = {job: pending_since.get(job, time.monotonic()) for job in pending}
            for job, since in pending_since.items():
                if time.monotonic() - since > REST:
                    hurry = ["scontrol", "update", f"JobId={job}", "StartTime=now"]
                    subprocess.run(hurry, env=self.environment, capture_output=True, check=False)
            time.sleep(0.2)

    def logs(self) -> str:
        """The ends of all logs of jobs, for the message of a test that fails."""
        return "\n".join(f"{path.name}: {path.read_text()[-1500:]}" for path in sorted(self.folder.rglob("*.err")) if path.stat().st_size)


@pytest.fixture(scope="session")
def slurm_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of a shell on the cluster; the cluster ends with the session."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"no SLURM on this machine: {missing[0]} was not found (apt-get install slurm-wlm munge)")
    if os.geteuid() != 0:
        pytest.skip("a SLURM of one's own needs root")
    folder = tmp_path_factory.mktemp("slurm")
    started = subprocess.run([SCRIPT, "start", folder], capture_output=True, text=True, check=False)
    try:
        if started.returncode != 0:
            pytest.skip(f"SLURM does not start here: {started.stderr.strip()}")
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        yield os.environ | {"PATH": path, "SLURM_CONF": str(folder / "slurm.conf"), "OMP_NUM_THREADS": "1"}
    finally:
        subprocess.run([SCRIPT, "stop", folder], capture_output=True, check=False)


@pytest.fixture
def cluster(slurm_environment: dict[str, str], tmp_path: Path) -> Cluster:
    """The cluster with nothing running, and an empty working folder."""
    cluster = Cluster(tmp_path, slurm_environment)
    yield cluster
    cluster.run("scancel", "--quiet", "--user=root")
    cluster.run("scancel", "--quiet", "--user=root", "--signal=KILL")
    cluster.wait(lambda: not cluster.states(), "an empty queue")


@pytest.fixture(scope="session")
def two_tasks(tmp_path_factory):
    """Folder with the data of two tasks of the mini world, and an order of these two."""
    folder = tmp_path_factory.mktemp("two_tasks")
    export_tasks(folder / "data", ORDER["tasks"])
    (folder / "orders").mkdir()
    lines = [f"{key} = {json.dumps(value)}" for key, value in ORDER.items()]
    (folder / "orders/two.toml").write_text("\n".join(lines))
    return folder


@pytest.fixture
def flags(two_tasks):
    """Options that quick runs and tables of these tasks share."""
    places = ["--manifests", two_tasks, "--order", "two", "--data-root", two_tasks / "data", "--device", "cpu"]
    return places + [word for key, value in QUICK.items() for word in ("--set", f"{key}={value}")]
