"""However a run with loader processes ends, all its processes are gone within seconds, with the right exit code and one line."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("ending.py")
SECONDS = 60  # for the imports, which take most of it
SMALL = ("--set=steps=60", "--set=warmup_steps=1", "--set=batch_size=4", "--set=evaluation_batch_size=2", "--num-workers=2")
GIFT = ("--set=replay.num_images=10", "--set=replay_batch_size=4")


@pytest.fixture
def arguments(world, tmp_path):
    """Of a run in the drawn world; GIFT's, which has every phase."""
    return ["run", "--method=gift", *world.arguments, world.shards, *SMALL, *GIFT, f"--out={tmp_path / 'run'}", "--image-cache-gb=0"]


def are_gone(pids):
    """Whether all of these processes have ended; a few seconds are theirs."""
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


OUT_OF_MEMORY = "The device's memory ran out: CUDA out of memory"


@pytest.mark.parametrize(
    ("phase", "fault", "code", "told"),
    [
        ("training", "kill", 1, "was killed by SIGKILL"),
        ("training", "memory", 1, OUT_OF_MEMORY),
        ("training", "terminate", 75, "Stopped by SIGTERM"),
        pytest.param("training", "interrupt", 130, "Interrupted.", marks=pytest.mark.slow),
        ("evaluation", "kill", 1, "was killed by SIGKILL"),
        pytest.param("evaluation", "memory", 1, OUT_OF_MEMORY, marks=pytest.mark.slow),
        ("teacher", "kill", 1, "was killed by SIGKILL"),
        pytest.param("teacher", "memory", 1, OUT_OF_MEMORY, marks=pytest.mark.slow),
        pytest.param("evaluation cache", "kill", 1, "was killed by SIGKILL", marks=pytest.mark.slow),
    ],
)
def test_a_run_ends_with_all_its_processes(tmp_path, arguments, phase, fault, code, told):
    if phase == "evaluation cache":
        arguments = [*arguments, f"--evaluation-cache={tmp_path / 'cache'}"]
    if phase == "teacher":  # a pass of ten batches: whoever is killed at the second has more to load
        arguments = [*arguments, "--set=evaluation_batch_size=1"]
    ends(tmp_path, arguments, phase, fault, code, told)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "code", "told"),
    [("kill", 1, "was killed by SIGKILL"), ("interrupt", 130, "Interrupted."), ("terminate", 75, "Stopped by SIGTERM")],
)
def test_a_run_whose_processes_are_not_its_children_ends_with_them_too(tmp_path, arguments, fault, code, told):
    ends(tmp_path, [*arguments, "--worker-start-method=forkserver"], "training", fault, code, told, seconds=5 * SECONDS)


def ends(tmp_path, arguments, phase, fault, code, told, seconds=SECONDS):
    """A run with a fault in it, and what is left of it."""
    command = [sys.executable, str(PROGRAM), phase, fault, str(tmp_path / "pids"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == code, done.stderr
    assert told in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    pids = (tmp_path / "pids").read_text().split()
    assert len(pids) >= 2
    assert are_gone(pids)


@pytest.mark.parametrize("method", ["fork", pytest.param("forkserver", marks=pytest.mark.slow)])
def test_a_killed_run_takes_its_loader_processes_with_it(tmp_path, arguments, method):
    command = [sys.executable, "-m", "gift_train.cli", *arguments, "--set=steps=30000", f"--worker-start-method={method}"]
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    metrics, end = tmp_path / "run/metrics.jsonl", time.monotonic() + SECONDS
    while not metrics.exists():
        assert time.monotonic() < end
        assert running.poll() is None
        time.sleep(0.05)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    assert len(children) >= 2
    running.kill()
    running.wait()
    assert are_gone(children)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="mounting a small /dev/shm takes root and unshare")
def test_a_small_shared_memory_is_told_and_batches_take_another_way(world, tmp_path, arguments):
    """256 KB, of which two workers' batches would take more: the same losses as with none."""
    large = [*arguments, "--set=steps=4", "--set=batch_size=60", "--set=replay_batch_size=60", "--stop-after=1", "--set=log_every=1"]
    mounted = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=256k tmpfs /dev/shm && exec "$@"', "sh"]
    command = [sys.executable, "-m", "gift_train.cli", *large]
    small = subprocess.run([*mounted, *command], capture_output=True, text=True, timeout=2 * SECONDS, check=False)
    if "mount:" in small.stderr:
        pytest.skip(f"this machine does not let root mount: {small.stderr.splitlines()[0]}")
    assert small.returncode == 0, small.stderr
    assert small.stderr.count("warning: /dev/shm, of 0.262 MB, has no room for the batches of 2 processes") == 1
    plain = [word for word in command if not word.startswith(("--num-workers", "--out"))]
    done = subprocess.run([*plain, f"--out={tmp_path / 'plain'}"], capture_output=True, text=True, timeout=2 * SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/metrics.jsonl").read_text() == (tmp_path / "plain/metrics.jsonl").read_text()


HALF_STARTED = """
import multiprocessing
from gift_shared.errors import MachineError
from gift_train.data.loader import Loading, loaded
try:
    next(loaded([1] * 99, range(99), Loading(num_workers=8)))
except MachineError as error:
    print(error, multiprocessing.active_children())
"""


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="mounting a small /dev/shm takes root and unshare")
def test_processes_of_a_loader_that_could_only_half_start_are_ended():
    """80 KB: locks of some of the eight. The first ones answer no signal, and the program's end would wait for them."""
    mounted = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=80k tmpfs /dev/shm && exec "$@"', "sh"]
    done = subprocess.run([*mounted, sys.executable, "-c", HALF_STARTED], capture_output=True, text=True, timeout=SECONDS, check=False)
    if "mount:" in done.stderr:
        pytest.skip(f"this machine does not let root mount: {done.stderr.splitlines()[0]}")
    assert done.stdout.startswith("/dev/shm is full, which 8 processes that load images need")
    assert done.stdout.rstrip().endswith("[]")
    assert done.returncode == 0


def test_the_signal_that_ends_a_worker_cannot_be_ignored():
    """Workers ignore what a scheduler sends to all processes of a job, so anything milder would leave them."""
    ignoring = "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (15, 10, 12, 2)]; print(flush=True); time.sleep(60)"
    worker = subprocess.Popen([sys.executable, "-c", ignoring], stdout=subprocess.PIPE)
    worker.stdout.readline()
    worker.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(timeout=0.5)
    worker.kill()
    assert worker.wait(timeout=10) == -signal.SIGKILL
