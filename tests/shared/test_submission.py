"""Jobs through submitit's local executor: the same code that runs on SLURM, with processes of this machine in its place."""

import json
import os
import pickle
import shutil
import signal
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import submitit
from submitit.core.utils import JobPaths

from gift_shared import command_job, submission
from gift_shared.command_job import CommandFailedError, CommandJob
from gift_shared.errors import ConfigError
from gift_shared.submission import Resources, _executor, each_of, filled, minutes, require_executor, submit_jobs, wait_for

# A command that stops cleanly when it is told to, as ours do, but only at its first start; `starts` counts, `told` holds the signals.
OBEDIENT = """
import os, pathlib, signal, sys, time
starts, told = pathlib.Path("starts"), pathlib.Path("told")
starts.write_text(starts.read_text() + "x" if starts.exists() else "x")
if len(starts.read_text()) > 1:
    sys.exit(0)
def note(number, frame):
    told.write_text(signal.Signals(number).name)
signal.signal(signal.SIGTERM, note)
pathlib.Path("parent").write_text(str(os.getppid()))
while not told.exists():
    time.sleep(0.05)
print("leaving", file=sys.stderr)
sys.exit(75)
"""


@pytest.mark.parametrize(
    ("text", "expected"), [("90", 90), ("1:30", 2), ("4:00:00", 240), ("2-00", 2880), ("1-12:30", 2190), ("1-00:00:01", 1441)]
)
def test_a_time_limit_is_read_as_slurm_writes_it(text, expected):
    assert minutes(text) == expected


@pytest.mark.parametrize("text", ["", "0", "4h", "1:2:3:4", "-5", "1-"])
def test_what_is_no_time_limit_is_refused(text):
    with pytest.raises(ConfigError, match=r"--time .* 4:00:00"):
        minutes(text)


def test_any_option_of_sbatch_may_be_given_but_those_that_restarts_rest_on():
    options = Resources(slurm=["account=vision", "--exclusive", "comment=a=b"], mem="64G").sbatch_options()
    assert options == {"requeue": True, "mem": "64G", "account": "vision", "exclusive": True, "comment": "a=b"}
    for wrong, message in (("signal=USR1@5", "has its own flag"), ("a b", "without its dashes"), ("=x", "without its dashes")):
        with pytest.raises(ConfigError, match=message):
            Resources(slurm=[wrong])


def test_resources_that_cannot_be_are_refused_at_once():
    with pytest.raises(ConfigError, match=r"Unknown executor 'slrum'\. Did you mean 'slurm'"):
        Resources(executor="slrum")
    with pytest.raises(ConfigError, match="this machine alone"):
        Resources(executor="local", nodes=2)
    with pytest.raises(ConfigError, match="--notice 120 s must be shorter than --time 2"):
        Resources(time="2")


def test_each_makes_every_combination_and_fills_the_words():
    combinations = each_of(["method=gift,l2", "seed=1,2"])
    assert [tuple(one.values()) for one in combinations] == [("gift", "1"), ("gift", "2"), ("l2", "1"), ("l2", "2")]
    assert filled(["--out", "{method}-{seed}", "{other}"], combinations[1]) == ["--out", "gift-2", "{other}"]
    assert each_of([]) == [{}]


@pytest.mark.parametrize("wrong", ["seed", "seed=", "seed=1,1", "seed=1,,2", "a b=1", "=1"])
def test_what_is_no_list_of_values_is_refused(wrong):
    with pytest.raises(ConfigError, match="--each"):
        each_of([wrong])


def test_a_value_that_no_word_asks_for_is_refused():
    with pytest.raises(ConfigError, match=r"no word of the command has \{seed\} in it"):
        filled(["run", "--out", "x"], {"seed": "1"})


def test_without_slurm_the_local_executor_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"There is no SLURM here: sbatch was not found\..*--executor local"):
        require_executor(Resources())
    require_executor(Resources(executor="local"))


@pytest.fixture
def local(tmp_path):
    """A function: Python programs -> their jobs, one each, started in an empty folder."""

    def start(*programs, processes=1):
        resources = Resources(executor="local", processes=processes, logs=tmp_path / "jobs")
        words = [(sys.executable, "-c", program) for program in programs]
        jobs = [CommandJob(line, str(tmp_path), number, len(words)) for number, line in enumerate(words)]
        return submit_jobs("test", jobs, resources), resources

    return start


def once_there(path):
    deadline = time.monotonic() + 60
    while not (path.is_file() and path.read_text()):
        assert time.monotonic() < deadline, f"{path} is not there after a minute"
        time.sleep(0.05)
    return path.read_text()


def test_a_command_that_leaves_because_it_was_told_to_is_started_again(local, tmp_path):
    jobs, resources = local(OBEDIENT)
    os.kill(int(once_there(tmp_path / "parent")), signal.SIGUSR1)
    told = []
    assert wait_for(jobs, resources, told.append) == 0
    assert (tmp_path / "starts").read_text() == "xx"
    assert (tmp_path / "told").read_text() == "SIGTERM"
    assert told == [f"done       {jobs[0].job_id} (1 of 1)"]


def test_a_job_that_is_terminated_lets_its_command_finish_and_stays_ended(local, tmp_path):
    jobs, resources = local(OBEDIENT)
    os.kill(int(once_there(tmp_path / "parent")), signal.SIGTERM)
    told = []
    assert wait_for(jobs, resources, told.append) == 1
    assert (tmp_path / "starts").read_text() == "x"
    assert told == [f"killed or cancelled {jobs[0].job_id} (1 of 1): leaving"]


def test_a_command_that_fails_is_told_with_its_last_line(local):
    jobs, resources = local("import sys; print('error: no such plan', file=sys.stderr); sys.exit(2)", "pass")
    told = []
    assert wait_for(jobs, resources, told.append) == 1
    assert any(line.startswith("failed") and line.endswith("error: no such plan") for line in told)
    assert "ended with exit code 2" in jobs[0].paths.stderr.read_text()


def test_the_processes_of_all_jobs_are_numbered_through(local, tmp_path):
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
    program = f"import os, pathlib; pathlib.Path(f'rank-{{os.environ[\"RANK\"]}}').write_text(' '.join(os.environ[n] for n in {names}))"
    jobs, resources = local(program, program, processes=2)
    assert wait_for(jobs, resources, print) == 0
    found = [(tmp_path / f"rank-{rank}").read_text() for rank in range(4)]
    assert found == [f"{rank} 4 {rank % 2} 2 127.0.0.1" for rank in range(4)]
    noted = [json.loads(line) for line in (tmp_path / "jobs/submitted.jsonl").read_text().splitlines()]
    assert [line["job"] for line in noted] == [job.job_id for job in jobs]


def test_a_command_that_is_told_to_leave_before_it_listens_is_started_again_too(local, tmp_path):
    jobs, resources = local(OBEDIENT.replace("signal.signal(signal.SIGTERM, note)", ""))
    os.kill(int(once_there(tmp_path / "parent")), signal.SIGUSR1)
    assert wait_for(jobs, resources, print) == 0
    assert (tmp_path / "starts").read_text() == "xx"


INTERRUPTED = """
import os, pathlib, signal, sys, time
def leave(*_):
    print("stopped in good order", file=sys.stderr)
    pathlib.Path("left").write_text("x")
    sys.exit(75)
signal.signal(signal.SIGTERM, leave)
pathlib.Path("parent").write_text(str(os.getppid()))
time.sleep(60)
"""


def test_a_command_whose_job_is_interrupted_still_leaves_in_its_own_way(local, tmp_path):
    jobs, resources = local(INTERRUPTED)
    os.kill(int(once_there(tmp_path / "parent")), signal.SIGINT)
    assert wait_for(jobs, resources, lambda _: None) == 1
    assert (tmp_path / "left").is_file()
    assert "stopped in good order" in jobs[0].paths.stderr.read_text()


def test_a_file_of_the_folder_stands_for_no_module_of_pythons(local, tmp_path, monkeypatch):
    (tmp_path / "random.py").write_text("raise SystemExit('my own random.py')")
    monkeypatch.chdir(tmp_path)
    jobs, resources = local("import random; random.random()")
    assert wait_for(jobs, resources, print) == 0


def test_a_job_with_several_processes_is_told_with_the_line_of_the_one_that_failed(local):
    failing = "import os, sys\nif os.environ['RANK'] == '1': sys.exit('error: no memory left')\nprint('images: 3 of 8', file=sys.stderr)"
    jobs, resources = local(failing, processes=2)
    told = []
    assert wait_for(jobs, resources, told.append) == 1
    assert told == [f"failed     {jobs[0].job_id} (1 of 1): error: no memory left"]


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A function: scripts of SLURM's commands, as long as they last, one a call -> this process is a job there. `calls` notes them."""
    monkeypatch.setattr(command_job, "SECONDS_TO_NEXT_TRY", (0, 0, 0))
    paths = JobPaths(tmp_path / "jobs", "7")
    place = SimpleNamespace(
        cluster="slurm", num_tasks=1, num_nodes=1, global_rank=0, local_rank=0, hostnames=["h"], job_id="7", raw_job_id="7",
        USR_SIG="USR2", paths=paths,
    )  # fmt: skip
    monkeypatch.setattr(submitit, "JobEnvironment", lambda: place)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def answers(**scripts):
        for name, lines in scripts.items():
            (tmp_path / f"{name}.lines").write_text("\n".join(lines) + "\n")
            script = f'#!/bin/bash\ncd {tmp_path}; echo "{name} $*" >> calls; said=$(head -1 {name}.lines)\n'
            script += f'[ $(wc -l < {name}.lines) -gt 1 ] && sed -i 1d {name}.lines; eval "$said"\n'
            (tmp_path / name).write_text(script)
            (tmp_path / name).chmod(0o755)

    return answers


SILENT = 'echo "slurm_load_jobs error: Socket timed out on send/recv operation" >&2; exit 1'
LEAVES = (sys.executable, "-c", "import sys; sys.exit(75)")
TERMINATED = (sys.executable, "-c", f"import os, sys; os.kill(os.getppid(), {int(signal.SIGTERM)}); sys.exit(75)")


@pytest.mark.parametrize(
    ("words", "squeue", "scontrol", "code", "num_requeues"),
    [
        (LEAVES, [SILENT, SILENT, "echo RUNNING N/A"], [SILENT, "true"], 75, 2),
        (LEAVES, [SILENT], ["true"], 75, 1),  # no answer at all: what is wanted decides
        (LEAVES, ["echo COMPLETING N/A"], ["true"], 143, 0),
        (LEAVES, ['echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1'], ["true"], 143, 0),
        (TERMINATED, [SILENT, "echo RUNNING 2026-01-01T00:00:00"], ["true"], 75, 1),
        (TERMINATED, [SILENT], ["true"], 143, 0),
    ],
)
def test_a_controller_that_does_not_answer_ends_no_job_for_good(slurm, tmp_path, words, squeue, scontrol, code, num_requeues):
    slurm(squeue=squeue, scontrol=scontrol)
    with pytest.raises(SystemExit) as left:
        CommandJob(words, str(tmp_path))()
    assert left.value.code == code
    assert (tmp_path / "calls").read_text().count("scontrol requeue 7") == num_requeues


def test_a_log_on_a_full_disk_does_not_block_the_command(slurm, tmp_path, monkeypatch):
    slurm()
    program = "import sys\nfor number in range(20_000): print('line', number, file=sys.stderr)\nsys.exit(2)"  # more than a pipe holds
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        with pytest.raises(CommandFailedError, match=r"exit code 2\.\n(line .*\n){19}line 19999$"):
            CommandJob((sys.executable, "-c", program), str(tmp_path))()


def test_jobs_have_not_ended_because_slurm_does_not_answer(slurm, tmp_path, monkeypatch):
    monkeypatch.setattr(submission, "WAIT_SECONDS", 0)
    job = submitit.SlurmJob(tmp_path, "7")
    (tmp_path / "result").write_bytes(pickle.dumps(("success", None)))
    slurm(squeue=["echo 7", *[SILENT] * 5, f"cp result {job.paths.result_pickle}"])
    told = []
    assert wait_for([job], Resources(), told.append) == 0
    assert told == ["done       7 (1 of 1)"]


@pytest.mark.skipif(shutil.which("srun") is None, reason="submitit writes for SLURM where there is one")
def test_gpus_may_be_asked_for_by_node_or_by_task(tmp_path):
    """A process takes the GPU of its number, or the only one it sees: either script serves."""
    for resources, line in (
        (Resources(processes=8, gpus_per_node=8), "#SBATCH --gpus-per-node=8"),
        (Resources(processes=8, slurm=["gpus-per-task=1"]), "#SBATCH --gpus-per-task=1"),
    ):
        script = _executor("test", replace(resources, logs=tmp_path))._make_submission_file_text("true", "1")
        asked = [text for text in script.splitlines() if text.startswith("#SBATCH --gpus")]
        assert asked == [line]
        assert "#SBATCH --ntasks-per-node=8" in script
