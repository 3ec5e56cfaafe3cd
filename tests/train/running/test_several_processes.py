"""`gift-train run` in several processes, started by torchrun and accelerate launch: the run that one process makes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

BIN = Path(sys.executable).parent
TORCHRUN = [BIN / "torchrun", "--nproc-per-node", "2", "--no-python", BIN / "gift-train"]
# With --cpu, accelerate leaves the starting of several processes to mpirun; --multi_gpu starts them, and our --device cpu stands.
ACCELERATE = [BIN / "accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"]
ACCELERATE += ["--mixed_precision", "no", "--dynamo_backend", "no", "--no_python", BIN / "gift-train"]
QUICK = ("--set", "steps=12", "--set", "warmup_steps=2", "--set", "batch_size=6", "--set", "replay_batch_size=6")
QUICK += ("--set", "log_every=1", "--set", "checkpoint_every=5")
GENTLE = ("--set", "learning_rate=1e-4")
SMALL_MIXTURE = ("mixture.num_experts=5", "mixture.bottleneck=4", "selector.no_task_updates=30", "selector.task_updates=40")
MOE = tuple(part for setting in (*SMALL_MIXTURE, "selector.hidden=6") for part in ("--set", f"method_config.{setting}"))
BOUND = 1e-5


def read(path):
    return json.loads(path.read_text())


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def launch(launcher, *arguments):
    """A started group, a session of its own so that all of it can be ended at once."""
    command = [str(part) for part in (*launcher, *arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def finished(launcher, *arguments):
    """(exit code, stdout, stderr) of a group."""
    process = launch(launcher, *arguments)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def assert_alike(first, second):
    """Losses, weights, accuracies and predictions of two runs; the key's bias apart, which moves by rounding alone."""
    assert len(rows(first)) == len(rows(second)) > 0
    for one, other in zip(rows(first), rows(second), strict=True):
        assert (one["task"], one["step"]) == (other["task"], other["step"])
        assert one["terms"] == pytest.approx(other["terms"], rel=1e-6, abs=BOUND)
    for path in sorted((first / "checkpoints").glob("*.safetensors")):
        weights, others = load_file(path), load_file(second / "checkpoints" / path.name)
        assert weights.keys() == others.keys()
        for name, weight in weights.items():
            if not name.endswith("in_proj_bias"):
                torch.testing.assert_close(others[name], weight, rtol=0, atol=BOUND, msg=name)
    assert read(first / "accuracy_matrix.json") == read(second / "accuracy_matrix.json")
    for path in (first / "diagnostics").glob("predictions-*.parquet"):
        assert pq.read_table(path).equals(pq.read_table(second / "diagnostics" / path.name)), path.name


@pytest.fixture
def gift(world):
    """A function: run folder and more flags -> the arguments of a quick run of GIFT."""
    shared = ["run", "--method", "gift", *world.arguments, world.shards, "--set", "replay.num_images=10", *QUICK, *GENTLE]
    return lambda out, *more: [*shared, "--out", out, *more]


def test_two_processes_begin_what_one_ends_as_one_alone_does(gift, gift_train, tmp_path):
    """Batches of 5 end an epoch of 24 with 4 images, an evaluation of 15 in batches of 4 is dealt out as 2 and 2."""
    uneven = ("--set", "batch_size=5", "--set", "evaluation_batch_size=4")
    code, out, err = finished(TORCHRUN, *gift(tmp_path / "shared", *uneven, "--stop-after", "1"))
    assert code == 0, err
    assert out == ""
    assert err.count("Stopped after 1 task;") == 1
    assert err.count("gift 1/2 colours: 13 of 13") == 1
    assert "arning" not in err
    assert read(tmp_path / "shared/run.json")["processes"] == 2
    assert gift_train(*gift(tmp_path / "shared", *uneven)).code == 0
    assert read(tmp_path / "shared/run.json")["processes"] == 1
    assert gift_train(*gift(tmp_path / "alone", *uneven)).code == 0
    assert_alike(tmp_path / "alone", tmp_path / "shared")


@pytest.mark.slow
def test_more_processes_than_images_of_a_batch_are_refused_once(gift, tmp_path):
    code, _, err = finished(ACCELERATE, *gift(tmp_path / "run", "--set", "replay_batch_size=1"))
    assert code != 0
    assert err.count("error: 2 processes share a batch, but replay_batch_size is 1") == 1
    assert "Start at most 1 processes, or set replay_batch_size." in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("device", ["cuda:0", "mps"])
def test_one_device_for_several_processes_is_refused(gift, gift_train, tmp_path, monkeypatch, device):
    monkeypatch.setenv("WORLD_SIZE", "2")
    outcome = gift_train(*gift(tmp_path / "run", "--device", device))
    assert outcome.code == 2
    assert f"--device {device} names one device for several processes" in outcome.err


def test_a_garbled_launcher_variable_is_told(gift, gift_train, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "two")
    outcome = gift_train(*gift(tmp_path / "run"))
    assert outcome.code == 2
    assert "The variable WORLD_SIZE of a launcher must be a number, found 'two'" in outcome.err


def test_a_launcher_that_tells_too_little_is_told(gift, gift_train, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    outcome = gift_train(*gift(tmp_path / "run"))
    assert outcome.code == 2
    assert "error: A launcher set WORLD_SIZE = 2, but not RANK (0 to 1) and MASTER_ADDR as well." in outcome.err


@pytest.mark.parametrize("command", ["evaluate", "table"])
def test_commands_that_do_not_share_their_work_say_so(gift_train, world, tmp_path, monkeypatch, command):
    monkeypatch.setenv("WORLD_SIZE", "2")
    here = ("1", "--world", "mini", "--runs", tmp_path, "--run") if command == "table" else world.arguments
    outcome = gift_train(command, *here)
    assert outcome.code == 2
    assert f"gift-train {command} works in one process, found WORLD_SIZE = 2" in outcome.err


@pytest.mark.slow
def test_an_error_that_one_process_meets_ends_the_group_with_its_words(gift, world, tmp_path):
    """A changed picture among those that the second process reads; nothing waits for it."""
    shutil.copytree(world.root / "shards", tmp_path / "shards")
    path = tmp_path / "shards/shards/colours-00000.tar"
    content = bytearray(path.read_bytes())
    last = pq.read_table(tmp_path / "shards/index.parquet").filter(pc.field("task") == "colours").to_pylist()[-1]
    content[last["byte_offset"] + 40] ^= 1
    path.write_bytes(content)
    code, _, err = finished(TORCHRUN, *gift(tmp_path / "run", "--shards", tmp_path / "shards"))
    assert code != 0
    assert err.count("error: ") == 1
    assert f"colours-00000.tar was changed after indexing: other sha256 at byte {last['byte_offset']}" in err


@pytest.mark.slow
@pytest.mark.parametrize("method", ["zscl", "moe_adapter"])
def test_accelerate_launch_makes_the_run_of_one_process(quick_run, gift_train, world, tmp_path, method):
    more = MOE if method == "moe_adapter" else ("--set", "replay.num_images=10")
    arguments = ["run", "--method", method, *world.arguments, world.shards, *QUICK, *GENTLE, *more]
    code, out, err = finished(ACCELERATE, *arguments, "--out", tmp_path / "shared", "--tracker", "tensorboard")
    assert code == 0, err
    assert out.count(", pair, seed 42:") == 1
    assert list((tmp_path / "shared/trackers").rglob("events.*"))
    assert gift_train(*arguments, "--out", tmp_path / "alone").code == 0
    assert_alike(tmp_path / "alone", tmp_path / "shared")


@pytest.mark.slow
@pytest.mark.parametrize("at_step", [1, 4, 9])
def test_a_group_that_is_killed_goes_on_in_two_processes_bit_for_bit(gift, tmp_path, at_step):
    """Two processes add up in another order than one, so the undisturbed run is one of two processes too."""
    code, _, err = finished(TORCHRUN, *gift(tmp_path / "whole"))
    assert code == 0, err
    process = launch(TORCHRUN, *gift(tmp_path / "killed"))
    wait_for_step(tmp_path / "killed", 1, at_step, process)
    os.killpg(process.pid, signal.SIGKILL)
    kill_workers_of(tmp_path / "killed")
    process.communicate()
    assert not (tmp_path / "killed/summary.json").exists()
    code, _, err = finished(TORCHRUN, *gift(tmp_path / "killed"))
    assert code == 0, err
    for path in sorted((tmp_path / "whole/checkpoints").glob("*.safetensors")):
        one, other = load_file(path), load_file(tmp_path / "killed/checkpoints" / path.name)
        assert all(torch.equal(one[name], other[name]) for name in one)
    for name in ("metrics.jsonl", "accuracy_matrix.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


@pytest.mark.slow
def test_a_group_told_to_leave_saves_at_one_step_and_goes_on(gift, tmp_path):
    """SIGTERM to the launcher reaches both processes, at whatever step each is."""
    long = ("--set", "steps=60", "--set", "checkpoint_every=1000")
    process = launch(TORCHRUN, *gift(tmp_path / "run", *long))
    wait_for_step(tmp_path / "run", 0, 3, process)
    process.terminate()
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert err.count("Nothing is lost; the same command goes on.") == 1
    (saved,) = (tmp_path / "run/checkpoints/progress").iterdir()
    assert int(saved.stem.rsplit("-", 1)[1]) > 3
    code, _, err = finished(TORCHRUN, *gift(tmp_path / "run", *long))
    assert code == 0, err
    assert [row["step"] for row in rows(tmp_path / "run")] == [*range(61), *range(61)]


def wait_for_step(run, task_index, step, process):
    """Until the run has logged a step of a task."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if (run / "metrics.jsonl").exists():
            lines = (run / "metrics.jsonl").read_text().splitlines()
            if lines and lines[-1].endswith("}"):
                last = json.loads(lines[-1])
                if (last["task_index"], last["step"]) >= (task_index, step):
                    return
        time.sleep(0.005)
    pytest.fail(f"never reached step {step}: {process.communicate()}")


def kill_workers_of(run):
    """torchrun starts its workers in sessions of their own."""
    for process in psutil.process_iter(["cmdline"]):
        if str(run) in (process.info["cmdline"] or ()):
            process.kill()
            process.wait()


@pytest.mark.slow
def test_joint_training_and_retrieval_are_shared_too(gift_train, world, tmp_path):
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    for number, path in enumerate(sorted((world.root / "data/colours/test").glob("*/*.png"))[::3]):
        shutil.copy(path, pairs / f"{number}.png")
        (pairs / f"{number}.txt").write_text(f"a {path.parent.name} picture\npicture {number}\n")
    arguments = ["run", "--method", "joint", *world.arguments, *QUICK, *GENTLE, "--set", "batch_size=5", f"--retrieval={pairs}"]
    code, _, err = finished(TORCHRUN, *arguments, "--out", tmp_path / "shared")
    assert code == 0, err
    assert gift_train(*arguments, "--out", tmp_path / "alone").code == 0
    assert_alike(tmp_path / "alone", tmp_path / "shared")
