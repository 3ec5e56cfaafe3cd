"""`render --processes N`: workers of one machine, as real processes that are killed, crash, err and are told to leave."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gift_generate.workers.local import is_supervised, local_place
from gift_shared.processes import ProcessName

FLAT = ("--model", "flat-color", "--height", "512", "--width", "512", "--image-format", "png")
NO_LAUNCHER = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "LOCAL_", "TORCHELASTIC"))}


@pytest.fixture
def long_plan(command, manifests: Path, tmp_path: Path) -> Path:
    """Enough images that no worker is through before it is disturbed."""
    path = tmp_path / "long.parquet"
    sizes = ("--images-per-task", 200, "--draws-per-task", 200, "--images-per-shard", 20)
    assert command("plan", "--out", path, "--manifests", manifests, "--order", "tiny", *sizes).code == 0
    return path


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts `gift-generate render ARGUMENTS` in a session of its own; `run.log()` is what it prints."""
    started: list[subprocess.Popen] = []

    def start_one(*arguments: object, **environment: str) -> subprocess.Popen:
        line = [sys.executable, "-m", "gift_generate.cli", "render", *map(str, arguments)]
        with (tmp_path / "log").open("wb") as log:
            run = subprocess.Popen(line, env=NO_LAUNCHER | environment, stdout=log, stderr=log, start_new_session=True)
        run.log = (tmp_path / "log").read_text
        started.append(run)
        return run

    yield start_one
    for run in started:
        run.kill()
        run.wait()


def wait_for(what: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def worker_at_work(out: Path, rank: int) -> int:
    """Waits for a worker to be at a shard; its process."""

    def processes() -> list[int]:
        names = {json.loads(path.read_text())["worker"] for path in (out / "claims").glob("[!.]*.json") if path.exists()}
        places = [ProcessName.parse(name.partition("-")[2]) for name in sorted(names) if int(name[:5]) == rank]
        return [place.pid for place in places if not place.is_gone()]

    found: list[int] = []

    def look() -> bool:
        with contextlib.suppress(FileNotFoundError, ValueError):
            found[:] = processes()
        return bool(found)

    wait_for(look)
    return found[0]


def records(out: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((out / "workers").glob("*.json"))]


def test_a_killed_worker_is_started_again_and_the_folder_is_the_same(command, content, start, long_plan: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    run = start("--plan", long_plan, "--out", out, *FLAT, "--processes", 2)
    os.kill(worker_at_work(out, 1), signal.SIGKILL)
    assert command("render", "--plan", long_plan, "--out", whole, *FLAT).code == 0
    assert run.wait(timeout=120) == 0, run.log()
    assert "worker 1 was killed by SIGKILL: started again (1 of 3)." in run.log()
    assert content(out) == content(whole)
    assert [(record["rank"], record["world_size"]) for record in records(out)] == [(0, 2), (1, 2), (1, 2)]
    told = run.log().splitlines()
    assert told.count("worker 0: loading flat-color") + told.count("worker 1: loading flat-color") == 1
    (done,) = [line for line in told if line.startswith("done ")]
    assert re.fullmatch(rf"done    (19|20) shards here \((380|400) ok\); 0 left in {re.escape(str(out))}", done)
    assert [line for line in told if line.startswith("images: 400 of 400 images in ")]


@pytest.mark.parametrize(
    ("sent", "code", "told"),
    [
        (signal.SIGTERM, 75, r"Stopped by SIGTERM: \d+ of 20 shards are left in .*Nothing is lost; the same command goes on."),
        (signal.SIGUSR1, 75, r"Stopped by SIGUSR1: "),
        (signal.SIGINT, 130, r"Interrupted. What is complete stays valid"),
    ],
)
def test_a_signal_is_passed_on_to_all(start, long_plan: Path, tmp_path: Path, sent: signal.Signals, code: int, told: str) -> None:
    out = tmp_path / "out"
    run = start("--plan", long_plan, "--out", out, *FLAT, "--processes", 2)
    pids = [worker_at_work(out, rank) for rank in range(2)]
    run.send_signal(sent)
    assert run.wait(timeout=60) == code, run.log()
    assert re.search(told, run.log().splitlines()[-1])
    assert {record["state"] for record in records(out)} == {"interrupted" if sent == signal.SIGINT else "preempted"}
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert list((out / "claims").iterdir()) == []


def test_what_nohup_has_ignored_is_not_passed_on(start, long_plan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run = start("--plan", long_plan, "--out", out, *FLAT, "--processes", 2)
    finally:
        signal.signal(signal.SIGHUP, before)
    worker_at_work(out, 0)
    run.send_signal(signal.SIGHUP)
    assert run.wait(timeout=60) == 0, run.log()
    assert (out / "index.parquet").is_file()


def test_workers_leave_when_whoever_started_them_is_killed(start, long_plan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = start("--plan", long_plan, "--out", out, *FLAT, "--processes", 2)
    for rank in range(2):
        worker_at_work(out, rank)
    run.kill()
    wait_for(lambda: [record["state"] for record in records(out)] == ["preempted", "preempted"])


def test_a_users_mistake_is_told_once_and_not_tried_again(command, start, plan: Path, tmp_path: Path) -> None:
    run = start("--plan", plan, "--out", tmp_path / "out", "--model", "mini-drawings", "--processes", 2)
    assert run.wait(timeout=60) == 2
    assert "started again" not in run.log()
    errors = [line.partition(": ")[2] for line in run.log().splitlines() if "error: " in line]
    assert len(errors) == len(set(errors))
    assert "--model mini-drawings cannot draw" in errors[0]


def test_a_worker_that_always_crashes_is_given_up_and_the_others_go_on(start, plan: Path, tmp_path: Path) -> None:
    """A module of the user's, found before Python's site packages, that ends rank 1 as a broken driver would."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text("import os, sys\nif os.environ.get('LOCAL_RANK') == '1': os.abort()\n")
    out, path = tmp_path / "out", os.pathsep.join([str(broken), *sys.path])
    run = start("--plan", plan, "--out", out, *FLAT, "--processes", 2, PYTHONPATH=path)
    assert run.wait(timeout=60) == 1
    assert run.log().count("worker 1 was killed by SIGABRT: started again") == 3
    assert "worker 1 was killed by SIGABRT, as it did after each of 3 restarts: given up. The others go on." in run.log()
    assert (out / "index.parquet").is_file()


def test_machines_of_slurm_number_their_workers_through(start, plan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    srun = {"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}
    run = start("--plan", plan, "--out", out, *FLAT, "--processes", 2, **srun)
    assert run.wait(timeout=60) == 0, run.log()
    assert [(record["rank"], record["world_size"]) for record in records(out)] == [(2, 8), (3, 8)]
    assert "warning: the plan has 6 shards, so 2 of 8 workers have nothing to do." in run.log()


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, {"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4"}),
        ({"SLURM_LOCALID": "1"}, {"LOCAL_RANK": "7", "LOCAL_WORLD_SIZE": "4"}),
        ({"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, {"LOCAL_RANK": "7", "LOCAL_WORLD_SIZE": "8"}),
    ],
)
def test_every_worker_of_a_machine_has_a_place_of_its_own(environment: dict[str, str], place: dict[str, str]) -> None:
    assert local_place(3, 4, environment) == place
    assert not is_supervised(environment)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--processes", 2, "--preview", 1), "--preview is the work of one process"),
        (("--processes", 2, "--device", "cuda:1"), "--device cuda:1 is one for all --processes: give --device cuda"),
        (("--processes", 2, "--plan", "missing.parquet"), "No plan at missing.parquet"),
        (("--processes", 0), "--processes"),
    ],
)
def test_what_cannot_be_is_refused_before_a_worker_starts(command, plan: Path, tmp_path: Path, words: tuple, message: str) -> None:
    result = command("render", "--plan", plan, "--out", tmp_path / "out", *FLAT, *words)
    assert result.code == 2
    assert message in result.err
    assert not (tmp_path / "out").exists()


def test_within_torchrun_it_is_refused(command, plan: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    result = command("render", "--plan", plan, "--out", tmp_path / "out", *FLAT, "--processes", 2)
    assert result.code == 2
    assert "leave out torchrun (or accelerate launch), or --processes" in result.err
