"""SIGKILL at any moment, many times over, and the run ends as if nothing had happened: weights, log and accuracies bit for bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

LATER = {"start": 0.5, "training": 0.1, "checkpoint": 0.002, "evaluation": 0.03}  # seconds after the moment, at most
ADAPTERS = ("mixture.num_experts=5", "mixture.bottleneck=4", "selector.no_task_updates=30", "selector.task_updates=40")
ADAPTERS += ("selector.hidden=6", "selector.threshold=0.02")
DEADLINE = 60.0  # seconds that one start may take


def checkpoints(folder):
    return sorted(path.relative_to(folder) for path in (folder / "checkpoints").rglob("*.safetensors"))


def assert_same_runs(first, second):
    assert checkpoints(first) == checkpoints(second)
    for name in checkpoints(first):
        one, other = load_file(first / name), load_file(second / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name
    for name in ("metrics.jsonl", "accuracy_matrix.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    assert not list(second.rglob("*.tmp"))


@dataclass
class Zygote:
    """The other end of zygote.py."""

    process: subprocess.Popen
    kills: list[str] = field(default_factory=list)

    def start(self, arguments):
        self.process.stdin.write(json.dumps([str(argument) for argument in arguments]) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def exit_code(self):
        return int(self.process.stdout.readline())

    def run(self, arguments):
        self.start(arguments)
        return self.exit_code()

    def run_and_kill(self, arguments, out, moment, dice):
        """Start, wait for the moment, kill. Returns the exit code: -9 unless the run was faster."""
        size, begun = length(out / "log.jsonl"), time.monotonic()
        process = self.start(arguments)
        while time.monotonic() - begun < DEADLINE and not has_ended(process) and not has_come(moment, out, size):
            time.sleep(0.0005)
        time.sleep(dice.uniform(0, LATER[moment]))
        os.kill(process, signal.SIGKILL)  # should it have ended: see zygote.py
        code = self.exit_code()
        if code == -signal.SIGKILL:
            self.kills.append(moment)
        return code


def length(path):
    return path.stat().st_size if path.exists() else 0


def has_ended(process):
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def has_come(moment, out, size):
    """Whether this start of the run, whose events begin at byte `size` of the log, is at the moment."""
    if moment == "start":
        return True
    if moment == "checkpoint":
        return any(out.glob("checkpoints/**/.*.tmp"))
    log = out / "log.jsonl"
    events = log.read_bytes()[size:].decode() if log.exists() else ""
    if moment == "training":
        return '"task_started"' in events or '"resumed"' in events
    matrix = out / "accuracy_matrix.json"
    rows = 1 + len(json.loads(matrix.read_text())["matrix"]) if matrix.exists() else 0
    return '"started"' in events and rows <= len(list(out.glob("checkpoints/task-*[a-z].safetensors")))


@pytest.fixture(scope="module")
def zygote():
    program = str(Path(__file__).with_name("zygote.py"))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        yield Zygote(process)
        process.stdin.close()


def kill_until_done(zygote, arguments, whole, killed, num_kills, seed):
    """An undisturbed run, then one killed `num_kills` times and left to end."""
    zygote.kills.clear()
    dice = random.Random(seed)
    assert zygote.run([*arguments, "--out", whole]) == 0
    again = [*arguments, "--out", killed]
    for moment in moments(num_kills, dice):
        code = zygote.run_and_kill(again, killed, moment, dice)
        assert code == -signal.SIGKILL, f"the start after {zygote.kills} ended with {code}: it failed, or the run needs more steps"
    assert zygote.run(again) == 0
    assert_same_runs(whole, killed)


def moments(number, dice):
    """When to kill: in each of the evaluations (before, between and after the two tasks), the other times somewhere in a task."""
    inside = [dice.choice(("start", "training", "checkpoint")) for _ in range(number - 4)]
    half = len(inside) // 2
    return ["evaluation", *inside[:half], "evaluation", "evaluation", *inside[half:], "evaluation"]


def quick(world, method, *more, steps):
    shards = [] if method == "icarl" else [world.shards]
    shards += ["--set", "replay.num_images=10"] if method in ("gift", "zscl") else []
    settings = (f"steps={steps}", "warmup_steps=2", "batch_size=6", "replay_batch_size=6", "log_every=1", "checkpoint_every=4")
    return [
        "run", "--method", method, *world.arguments, *shards, *more,
        *(word for setting in (*settings, "learning_rate=1e-3") for word in ("--set", setting)),
    ]  # fmt: skip


@pytest.mark.parametrize(("num_kills", "steps"), [(12, 60), pytest.param(34, 120, marks=pytest.mark.slow)])
def test_a_run_killed_many_times_ends_as_the_undisturbed_one(world, zygote, tmp_path, num_kills, steps):
    kill_until_done(zygote, quick(world, "gift", steps=steps), tmp_path / "whole", tmp_path / "killed", num_kills, seed=1)
    assert len(zygote.kills) == num_kills
    assert set(zygote.kills) == set(LATER)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["icarl", "zscl", "moe_adapter"])
def test_a_killed_run_of_a_method_with_a_memory_ends_as_the_undisturbed_one(world, zygote, tmp_path, method):
    settings = {"zscl": ["average_every=3"], "icarl": [], "moe_adapter": ADAPTERS}[method]
    flags = [word for setting in settings for word in ("--set", f"method_config.{setting}")]
    num_kills = 5
    kill_until_done(zygote, quick(world, method, *flags, steps=100), tmp_path / "whole", tmp_path / "killed", num_kills, seed=2)
    assert len(zygote.kills) == num_kills
