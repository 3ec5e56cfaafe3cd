"""A run that is told to leave, runs out of disk or saves by the clock: what it leaves behind, what its log says, how it goes on."""

import json
import multiprocessing
import os
import signal
import subprocess

import pytest
import torch
from safetensors.torch import load_file

from gift_train.distributed import Ranks
from gift_train.methods.registry import method_class
from gift_train.training import loop


def same_runs(first, second):
    """Equal weights, log and accuracies, bit for bit."""
    names = sorted(path.name for path in (first / "checkpoints").glob("*.safetensors"))
    if names != sorted(path.name for path in (second / "checkpoints").glob("*.safetensors")):
        return False
    for name in names:
        one, other = load_file(first / "checkpoints" / name), load_file(second / "checkpoints" / name)
        if one.keys() != other.keys() or not all(torch.equal(one[key], other[key]) for key in one):
            return False
    return all((first / name).read_bytes() == (second / name).read_bytes() for name in ("metrics.jsonl", "accuracy_matrix.json"))


def events(run, *names):
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [row for row in rows if not names or row["event"] in names]


@pytest.fixture
def signalled(monkeypatch):
    """A function: send this process and its loaders' the signal after so many steps of the runs to come; 0 for never."""
    training_step = loop.training_step

    def arm(after, number=signal.SIGTERM):
        calls = []

        def step_and_signal(*arguments):
            calls.append(None)
            if len(calls) == after:
                group = (os.getpid(), *(child.pid for child in multiprocessing.active_children()))
                # By another process, as a scheduler does: of their parent's own signal torch's loaders die quietly.
                subprocess.run(["kill", "-s", str(int(number)), *map(str, group)], check=True)
            return training_step(*arguments)

        monkeypatch.setattr(loop, "training_step", step_and_signal)

    return arm


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)])
def test_a_run_that_is_told_to_leave_saves_its_step_and_goes_on_from_it(quick_run, signalled, tmp_path, number):
    assert quick_run("gift", tmp_path / "whole").code == 0
    signalled(7, number)  # step 6 of 0..12; the last checkpoint was before step 5
    left = quick_run("gift", tmp_path / "run")
    assert left.code == 75
    assert f"Stopped by {number.name}: gift 1/2 colours, from step 7 of 13 on. Nothing is lost" in left.err
    assert "Traceback" not in left.err
    signalled(0)
    assert quick_run("gift", tmp_path / "run").code == 0
    assert [event["step"] for event in events(tmp_path / "run", "resumed")] == [7]
    assert same_runs(tmp_path / "whole", tmp_path / "run")


def test_a_signal_to_the_whole_group_is_left_to_the_main_process(quick_run, signalled, tmp_path):
    signalled(7)
    left = quick_run("finetune", tmp_path / "run", "--num-workers", "2")
    assert left.code == 75
    assert "Stopped by SIGTERM: finetune 1/2 colours, from step 7 of 13 on. Nothing is lost" in left.err
    assert "Traceback" not in left.err
    assert not multiprocessing.active_children()


def test_a_signal_that_comes_before_the_run_is_set_up_is_not_lost(quick_run, monkeypatch, tmp_path):
    def signal_and_look_up(name):
        os.kill(os.getpid(), signal.SIGUSR1)
        return method_class(name)

    with monkeypatch.context() as patched:
        patched.setattr("gift_train.training.plan.method_class", signal_and_look_up)  # what the command does first
        left = quick_run("finetune", tmp_path / "run")
    assert left.code == 75
    assert "Stopped by SIGUSR1: evaluation, zero-shot. Nothing is lost" in left.err


FEW_UPDATES = ("--set", "method_config.selector.no_task_updates=20", "--set", "method_config.selector.task_updates=20")


@pytest.mark.parametrize("method", ["gift", "moe_adapter"])
def test_a_run_that_is_told_to_leave_while_a_task_is_prepared_does_so_at_once(quick_run, world, monkeypatch, tmp_path, method):
    flags = (world.shards, *FEW_UPDATES) if method == "moe_adapter" else ()
    assert quick_run(method, tmp_path / "whole", *flags).code == 0
    begin_task = method_class(method).begin_task

    def signal_and_begin(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return begin_task(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(method_class(method), "begin_task", signal_and_begin)
        left = quick_run(method, tmp_path / "run", *flags)
    assert left.code == 75
    assert f"Stopped by SIGTERM: {method} 1/2 colours, from its start on. Nothing is lost" in left.err
    assert quick_run(method, tmp_path / "run", *flags).code == 0
    assert same_runs(tmp_path / "whole", tmp_path / "run")


def test_a_run_that_is_told_to_leave_at_a_tasks_last_step_keeps_the_task_and_leaves_its_evaluation(quick_run, signalled, tmp_path):
    assert quick_run("finetune", tmp_path / "whole").code == 0
    signalled(13)
    left = quick_run("finetune", tmp_path / "run")
    assert left.code == 75
    assert "evaluation, after task 1/2" in left.err
    assert json.loads((tmp_path / "run/accuracy_matrix.json").read_text())["matrix"] == []
    signalled(0)
    assert quick_run("finetune", tmp_path / "run").code == 0
    assert [event["task"] for event in events(tmp_path / "run", "task_started", "resumed")] == ["colours", "stripes"]
    assert same_runs(tmp_path / "whole", tmp_path / "run")


def test_the_log_tells_what_happened_to_a_run_over_all_its_starts(quick_run, gift_train, signalled, tmp_path):
    signalled(7)
    quick_run("finetune", tmp_path / "run")
    told = gift_train("watch", tmp_path / "run", "--once")
    assert "preempted" in told.out
    signalled(0)
    assert quick_run("finetune", tmp_path / "run").code == 0
    found = [event["event"] for event in events(tmp_path / "run")]
    first = ["started", "evaluated", "task_started", "checkpoint_saved", "checkpoint_saved", "preempted"]
    second = ["started", "resumed", "checkpoint_saved", "task_ended", "evaluated"]
    third = ["task_started", "checkpoint_saved", "checkpoint_saved", "task_ended", "evaluated", "ended"]
    assert found == first + second + third
    started = events(tmp_path / "run", "started")[0]
    assert started["world_size"] == 1
    assert "--method" in started["command"]
    assert set(events(tmp_path / "run", "evaluated")[-1]["accuracy"]) == {"colours", "stripes"}


def test_a_failure_is_in_the_log_with_its_message(quick_run, tmp_path):
    assert quick_run("finetune", tmp_path / "run", "--set", "learning_rate=1e30").code == 2
    failed = events(tmp_path / "run")[-1]
    assert (failed["event"], failed["error"]) == ("failed", "NonFiniteError")
    assert "cross_entropy" in failed["message"]


def test_the_state_is_saved_by_the_clock_too_and_the_last_two_are_kept(quick_run, signalled, tmp_path):
    assert quick_run("gift", tmp_path / "whole").code == 0
    clock = ("--set", "checkpoint_every=1000", "--set", "checkpoint_minutes=1e-9")
    signalled(7)
    assert quick_run("gift", tmp_path / "run", *clock).code == 75
    assert [event["step"] for event in events(tmp_path / "run", "checkpoint_saved")] == list(range(1, 8))
    kept = sorted(path.name for path in (tmp_path / "run/checkpoints/progress").iterdir())
    assert kept == ["task-01-step-000006.safetensors", "task-01-step-000007.safetensors"]
    signalled(0)
    assert quick_run("gift", tmp_path / "run", *clock).code == 0
    assert same_runs(tmp_path / "whole", tmp_path / "run")


def test_a_checkpoint_is_due_by_steps_or_by_minutes_whichever_comes_first(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    clock = loop.CheckpointTimer(loop.Intervals(log_every=1, checkpoint_every=100, checkpoint_minutes=2))
    assert [clock.is_due(step) for step in (0, 98, 99, 100)] == [False, False, True, False]
    now[0] = 120.0
    assert clock.is_due(0)
    clock.restart()
    assert not clock.is_due(0)
    assert not loop.CheckpointTimer(loop.Intervals(log_every=1, checkpoint_every=100)).is_due(0)


class OneOfTwo(Ranks):
    """A rank beside which the other one claims nothing, or what it is said to."""

    def __init__(self, rank, other_claims=False):
        super().__init__(rank, 2)
        self.other_claims = other_claims

    def any_rank(self, claim):
        return claim or self.other_claims


def test_on_several_ranks_the_main_ones_minutes_count_where_the_ranks_talk(monkeypatch):
    """A rank that saved by its own clock would be alone to find a non-finite term; the others would wait for it for ever."""
    now = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    intervals = loop.Intervals(log_every=1, checkpoint_every=100, checkpoint_minutes=2)
    main, other, told = (loop.CheckpointTimer(intervals, ranks) for ranks in (OneOfTwo(0), OneOfTwo(1), OneOfTwo(1, other_claims=True)))
    now[0] = 120.0
    assert [main.is_due(step) for step in (9, 10, 11, 99)] == [False, True, False, True]
    assert [other.is_due(step) for step in (9, 10, 11, 99)] == [False, False, False, True]
    now[0] = 0.0
    assert [told.is_due(step) for step in (9, 10, 11, 99)] == [False, True, False, True]


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_serves(quick_run, signalled, tmp_path, caplog):
    assert quick_run("gift", tmp_path / "whole").code == 0
    signalled(7)
    assert quick_run("gift", tmp_path / "run", "--set", "checkpoint_every=3").code == 75
    before, newest = sorted((tmp_path / "run/checkpoints/progress").iterdir())
    assert (before.stem, newest.stem) == ("task-01-step-000006", "task-01-step-000007")
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    signalled(0)
    assert quick_run("gift", tmp_path / "run", "--set", "checkpoint_every=3").code == 0
    assert f"{newest} is damaged: its bytes are not those that were written (CRC-32)" in caplog.text
    assert [event["step"] for event in events(tmp_path / "run", "resumed")] == [6]
    assert same_runs(tmp_path / "whole", tmp_path / "run")


def test_a_damaged_checkpoint_further_on_takes_no_place_of_a_good_one(quick_run, signalled, tmp_path):
    signalled(7)
    assert quick_run("finetune", tmp_path / "run").code == 75
    progress = tmp_path / "run/checkpoints/progress"
    (progress / "task-01-step-000011.safetensors").write_bytes(b"cut short")
    signalled(1)
    assert quick_run("finetune", tmp_path / "run").code == 75
    assert [path.stem[-2:] for path in sorted(progress.iterdir())] == ["07", "08"]


LATER = [pytest.param(size, marks=pytest.mark.slow) for size in ("1000k", "1500k")]


@pytest.mark.parametrize("size", ["300k", *LATER])  # full at the first checkpoint; later; at a task's own
def test_a_run_on_a_full_disk_goes_on_when_there_is_room_and_ends_the_same(quick_run, tmp_path, size):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs needs root: " + mounted.stderr.decode().strip())
    try:
        assert quick_run("gift", tmp_path / "whole").code == 0
        outcome = quick_run("gift", disk / "run")
        assert outcome.code == 2
        assert outcome.err.splitlines()[-1].startswith("error: The disk is full (")
        assert "Traceback" not in outcome.err
        assert not list((disk / "run").rglob("*.tmp"))
        for path in (disk / "run").rglob("*.safetensors"):
            load_file(path)
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        assert quick_run("gift", disk / "run").code == 0
        assert same_runs(tmp_path / "whole", disk / "run")
    finally:
        subprocess.run(["umount", disk], check=True)
