"""Rendering on a real SLURM: arrays, preemption in each of its forms, and workers that die. Bytes never depend on any of it."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest

# A dry run that takes seconds: squares of 1024 pixels, which PNG takes its time for.
SLOW = ("--model", "flat-color", "--height", "1024", "--width", "1024", "--image-format", "png", "--batch-size", "4")
QUICK = ("--model", "flat-color")


@pytest.fixture
def plan(cluster):
    """A function: images a task -> the plan of six tasks in shards of ten."""

    def make(images_per_task):
        cluster.run("gift-generate", "plan", "--images-per-task", images_per_task, "--images-per-shard", "10", "--out", "plan.parquet")
        return "plan.parquet"

    return make


def submitted(cluster, *words):
    """Submit, and return the number of the job or of its array."""
    return cluster.run("gift-generate", "submit", *words).split("squeue --jobs ")[1].split()[0]


def num_done(cluster):
    return len(list((cluster.folder / "shards").glob("shards/*.parquet")))


def require_same_bytes(cluster, model):
    """What was made in `shards` is whole, and is what one process makes of the plan."""
    assert "every byte claim holds" in cluster.run("gift-generate", "verify", "--out", "shards")
    cluster.run("gift-generate", "render", "--plan", "plan.parquet", "--out", "alone", *model)
    for path in (cluster.folder / "alone").glob("shards/*"):
        assert path.read_bytes() == (cluster.folder / "shards" / "shards" / path.name).read_bytes(), path.name
    assert (cluster.folder / "shards/index.parquet").read_bytes() == (cluster.folder / "alone/index.parquet").read_bytes()


def test_an_array_of_workers_renders_what_one_process_does(cluster, plan):
    words = ("--jobs", "3", "--cpus-per-task", "2", "--wait", "--", "render", "--plan", plan(40), "--out", "shards", *QUICK)
    printed = cluster.run("gift-generate", "submit", *words)
    assert printed.startswith("submitted  3 jobs: ")
    assert "(3 of 3)" in printed
    require_same_bytes(cluster, QUICK)
    noted = [json.loads(line) for line in (cluster.folder / "jobs/submitted.jsonl").read_text().splitlines()]
    assert len({line["job"] for line in noted}) == 3
    ranks = sorted(path.name.partition("-")[0] for path in (cluster.folder / "shards").glob("workers/*.json"))
    assert ranks == ["00000", "00001", "00002"]


def test_workers_that_are_told_to_leave_requeued_or_killed_lose_nothing(cluster, plan):
    job = submitted(cluster, "--jobs", "3", "--", "render", "--plan", plan(40), "--out", "shards", *SLOW)
    told, requeued, killed = (f"{job}_{number}" for number in range(3))
    cluster.wait(lambda: num_done(cluster) >= 3, "three shards")
    cluster.run("scancel", "--signal=USR1", told)
    cluster.run("scontrol", "requeue", requeued)
    os.kill(worker_of(cluster, rank=2), signal.SIGKILL)
    cluster.wait(lambda: not cluster.states(), "the end of all jobs")
    assert cluster.restarts(told) == 1
    assert cluster.restarts(requeued) == 1
    assert cluster.state(killed) == "FAILED"
    assert "ended with exit code -9" in (cluster.folder / f"jobs/{killed}_0_log.err").read_text()
    assert "every byte claim holds" in cluster.run("gift-generate", "verify", "--out", "shards")


@pytest.mark.slow
def test_the_workers_of_a_whole_node_are_one_job_and_leave_together(cluster, plan):
    words = ("--jobs", "2", "--", "render", "--plan", plan(40), "--out", "shards", "--processes", "2", *SLOW)
    job = submitted(cluster, *words)
    cluster.wait(lambda: num_done(cluster) >= 3, "three shards")
    cluster.run("scancel", "--signal=USR1", f"{job}_0")
    cluster.wait(lambda: not cluster.states(), "the end of both jobs")
    assert (cluster.restarts(f"{job}_0"), cluster.restarts(f"{job}_1")) == (1, 0)
    require_same_bytes(cluster, SLOW)
    ranks = {path.name.partition("-")[0] for path in (cluster.folder / "shards").glob("workers/*.json")}
    assert ranks == {"00000", "00001", "00002", "00003"}


def worker_of(cluster, rank):
    """The process that renders as a worker, by the command line and environment that its job gave it."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words, environment = ((folder / name).read_bytes().split(b"\0") for name in ("cmdline", "environ"))
            is_here = (folder / "cwd").readlink() == cluster.folder
        except OSError:
            continue
        if is_here and b"gift_generate.cli" in words and f"RANK={rank}".encode() in environment:
            return int(folder.name)
    raise AssertionError(f"no worker of rank {rank} is running")


def test_a_job_that_is_preempted_for_a_more_urgent_one_goes_on_after_it(cluster, plan):
    job = submitted(cluster, "--cpus-per-task", "8", "--", "render", "--plan", plan(15), "--out", "shards", *SLOW)
    cluster.wait(lambda: num_done(cluster) >= 1, "the first shard")
    cluster.run("srun", "--partition=urgent", "--cpus-per-task=8", "true")
    cluster.wait(lambda: not cluster.states(), "the end of the job")
    assert cluster.restarts(job) == 1
    assert "every byte claim holds" in cluster.run("gift-generate", "verify", "--out", "shards")


@pytest.mark.parametrize(("words", "state"), [(["scancel"], "CANCELLED"), (["scancel", "--signal=TERM"], "FAILED")])
def test_a_job_that_is_told_to_end_is_not_started_again_and_who_waits_is_told(cluster, plan, words, state):
    waiting = cluster.start("gift-generate", "submit", "--wait", "--", "render", "--plan", plan(40), "--out", "shards", *SLOW)
    cluster.wait(lambda: num_done(cluster) >= 1, "the first shard")
    (job,) = cluster.states()
    cluster.run(*words, job)
    printed, _ = waiting.communicate(timeout=60)
    assert waiting.returncode == 1
    assert f"killed or cancelled {job}" in printed
    assert cluster.state(job) == state
    assert cluster.restarts(job) == 0


def test_the_tasks_of_srun_share_the_plan_by_their_numbers(cluster, plan):
    cluster.run("srun", "--ntasks=3", "gift-generate", "render", "--plan", plan(20), "--out", "shards", *QUICK)
    require_same_bytes(cluster, QUICK)


# In its first start the second process is done and the first one leaves; in the second start the second one takes longer.
TWO_STARTS = """
import os, pathlib, sys, time
rank = os.environ["RANK"]
pathlib.Path(f"starts-{rank}").open("a").write("x")
is_first_start = len(pathlib.Path(f"starts-{rank}").read_text()) == 1
if rank == "0" and is_first_start:
    while not list(pathlib.Path("jobs").glob("*_1_result.pkl")):
        time.sleep(0.1)
    sys.exit(75)
if rank == "1" and not is_first_start:
    time.sleep(8)
    pathlib.Path("done").write_text("x")
"""
SUBMIT = """
import pathlib, sys
from gift_shared.command_job import CommandJob
from gift_shared.submission import Resources, submit_jobs, wait_for
resources = Resources(processes=2)
jobs = submit_jobs("test", [CommandJob((sys.executable, "-c", sys.argv[1]), ".")], resources)
num_failed = wait_for(jobs, resources, print)
print("failed:", num_failed, "done:", pathlib.Path("done").is_file())
"""


def test_who_waits_for_a_job_waits_for_all_processes_of_its_last_start(cluster):
    waiting = cluster.start(sys.executable, "-c", SUBMIT, TWO_STARTS)
    cluster.wait(lambda: waiting.poll() is not None, "the end of the job")
    printed, _ = waiting.communicate()
    assert "failed: 0 done: True" in printed
    assert (cluster.folder / "starts-0").read_text() == "xx"


@pytest.mark.slow
def test_a_job_near_its_time_limit_leaves_cleanly_and_is_requeued(cluster, plan):
    words = ("--time", "2", "--notice", "110", "--", "render", "--plan", plan(1500), "--out", "shards", *SLOW)
    job = submitted(cluster, *words)
    cluster.wait(lambda: cluster.restarts(job) == 1, "a second start")
    logs = [path.read_text() for path in (cluster.folder / "shards").glob("workers/*.jsonl")]
    assert any('"preempted"' in log for log in logs)
