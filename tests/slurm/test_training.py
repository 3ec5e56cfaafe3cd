"""Runs on a real SLURM: one and several processes, told to leave in the middle, and a table whose missing runs become jobs."""

import json

import pytest

# So many steps that a run isn't over before the signal comes, so slow in learning that it matters little in which order numbers are added.
LONGER = ["--set", "steps=240", "--set", "learning_rate=1e-6"]

TABLE = """
title = "Two rows"
heading = "Method"
source = "nobody"
[orders]
two = "two"
[[row]]
label = "Zero-shot"
recipe = "zero_shot"
[[row]]
label = "Continual Finetune"
recipe = "finetune"
"""


def events(folder, name):
    log = folder / "log.jsonl"
    return [event for event in map(json.loads, log.read_text().splitlines()) if event["event"] == name] if log.is_file() else []


def tell_to_leave(cluster, out, job):
    """Send a run the signal as soon as it has a checkpoint to go on from."""
    cluster.wait(lambda: events(out, "checkpoint_saved"), f"a checkpoint in {out.name}")
    cluster.run("scancel", "--signal=USR1", job)


@pytest.mark.slow
def test_runs_that_are_told_to_leave_go_on_from_their_checkpoints(cluster, flags):
    alone, together = cluster.folder / "alone", cluster.folder / "together"
    jobs = {}
    for out, processes in ((alone, 1), (together, 2)):
        words = ("gift-train", "submit", "--processes", processes, "--", "run", "--method", "finetune", "--out", out.name, *flags, *LONGER)
        jobs[out] = cluster.run(*words).split("squeue --jobs ")[1].split()[0]
        tell_to_leave(cluster, out, jobs[out])  # before the next is submitted, which takes longer than a run where a machine is busy
    cluster.wait(lambda: not cluster.states(), "the end of both runs")
    matrices = []
    for out, job in jobs.items():
        assert cluster.state(job) == "COMPLETED"
        assert cluster.restarts(job) == 1
        (preempted,) = events(out, "preempted")
        assert events(out, "resumed") or "from its start on" in preempted["message"]  # the signal may find it between two tasks
        matrices.append(json.loads((out / "accuracy_matrix.json").read_text())["matrix"])
    for row, other in zip(*matrices, strict=True):
        assert row == pytest.approx(other, abs=1.0)  # percent: the order of sums differs, and one image of 294 is 0.34


@pytest.mark.slow
def test_the_missing_runs_of_a_table_become_jobs(cluster, flags):
    (cluster.folder / "own.toml").write_text(TABLE)
    words = ("table", "own.toml", *flags, "--set", "steps=6")
    printed = cluster.run("gift-train", "submit", "--wait", "--", *words)
    assert printed.startswith("submitted  2 jobs: ")
    assert "(2 of 2)" in printed
    assert "nothing is submitted" in cluster.run("gift-train", "submit", "--", *words)
