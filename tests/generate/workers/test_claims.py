"""Claims: one worker a shard, the dead ones' shards go to the living, and whoever is mistaken harms nothing."""

import functools
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gift_generate.images.encoding import ImageEncoder
from gift_generate.images.rendered import RenderedImages
from gift_generate.pipeline import WorkerPolicy, run
from gift_generate.rendering.flat_color import FlatColorRenderer
from gift_generate.workers.claims import Claims, read_claim
from gift_generate.workers.heartbeat import Heartbeat, HeartbeatIntervals, Liveness, WorkerState
from gift_generate.workers.rank import Worker
from gift_shared.processes import ProcessName, this_process

LARGE = ("--model", "flat-color", "--height", 384, "--width", 384, "--batch-size", 2)
ELSEWHERE = "00007-node12-0123abcd-4711-99"  # a worker of another machine, of which only its files can tell
QUICK = HeartbeatIntervals(every_seconds=0.2, soonest_seconds=0.1, dead_after_seconds=120.0, look_again_seconds=0.2)
Plan = Callable[[int, int], Path]


@pytest.fixture
def long_plan(command, manifests: Path, tmp_path: Path) -> Path:
    """80 images in 20 shards."""
    path = tmp_path / "p.parquet"
    sizes = ("--images-per-task", 40, "--images-per-shard", 4)
    assert command("plan", "--out", path, "--manifests", manifests, "--order", "tiny", *sizes).code == 0
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "out" / "workers").mkdir(parents=True)
    return tmp_path / "out"


def large_pictures() -> RenderedImages:
    return RenderedImages(FlatColorRenderer(batch_size=2, height=384, width=384), ImageEncoder(), max_attempts=3)


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


def claimed_by(out: Path) -> dict[str, str]:
    return {path.stem: claim.worker for path in (out / "claims").glob("[!.]*.json") if (claim := read_claim(path)) is not None}


def make_silent(out: Path, worker: str, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(out / "workers" / f"{worker}.json", (then, then))


def sign_on(out: Path, worker: str, silent_for: float = 0.0) -> None:
    """The file of a worker that runs elsewhere."""
    record = {
        "worker": worker, "rank": 7, "world_size": 8, "started": "2026-01-01T00:00:00+00:00", "state": "running", "shard": "a-00000",
        "shards_done": 2, "images_done": 8, "images_made": 9, "seconds": 3.0, "message": "",
    }  # fmt: skip
    (out / "workers" / f"{worker}.json").write_text(json.dumps(record))
    make_silent(out, worker, silent_for)


def test_of_two_workers_one_gets_the_shard(folder: Path) -> None:
    mine, other = (Claims(folder, worker, HeartbeatIntervals()) for worker in (f"00000-{this_process()}", ELSEWHERE))
    sign_on(folder, ELSEWHERE)
    with mine, other:
        assert other.take_one(["a-00000", "a-00001"]).shard == "a-00000"
        assert mine.take_one(["a-00000", "a-00001"]).shard == "a-00001"
        assert mine.take_one(["a-00000", "a-00001"]) is None
        assert mine.holders() == {"a-00000": ELSEWHERE}
    assert claimed_by(folder) == {}


def test_processes_that_claim_at_once_never_share_a_shard(folder: Path) -> None:
    names = [f"a-{number:05d}" for number in range(100)]
    children = []
    for rank in range(4):
        child = os.fork()
        if child == 0:
            claims = Claims(folder, f"{rank:05d}-{this_process()}", HeartbeatIntervals())
            taken = []
            while (one := claims.take_one(names)) is not None:
                taken.append(one.shard)
            (folder / f"taken-{rank}").write_text("\n".join(taken))
            (folder / f"ended-{rank}").touch()
            wait_for(lambda: len(list(folder.glob("ended-*"))) == 4)  # a process that is gone would lose its claims
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    taken = [name for path in folder.glob("taken-*") for name in path.read_text().split()]
    assert sorted(taken) == names


@pytest.mark.parametrize(("silent_for", "is_taken"), [(10, False), (100, False), (130, True)])
def test_a_claim_of_another_machine_counts_until_its_worker_was_silent_too_long(folder: Path, silent_for: float, is_taken: bool) -> None:
    sign_on(folder, ELSEWHERE, silent_for)
    Claims(folder, ELSEWHERE, HeartbeatIntervals()).take_one(["a-00000"])
    with Claims(folder, f"00000-{this_process()}", HeartbeatIntervals()) as claims:
        taken = claims.take_one(["a-00000"])
        assert (taken is not None) == is_taken
        if taken is not None:
            assert taken.taken_from == ELSEWHERE


def test_the_storage_clock_decides_and_not_this_machine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time stamps and `now` both come from the storage, so a machine whose clock is an hour ahead takes nothing from anybody."""
    sign_on(folder, ELSEWHERE)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600)
    assert not Liveness(folder, HeartbeatIntervals()).is_dead(ELSEWHERE, 0.0)


def test_a_claim_of_a_process_that_is_gone_from_this_machine_is_taken_at_once(folder: Path) -> None:
    here = this_process()
    gone = f"00003-{ProcessName(here.host, here.machine, here.pid, here.started + 1)}"  # our number, but another start
    sign_on(folder, gone)
    Claims(folder, gone, HeartbeatIntervals()).take_one(["a-00000"])
    taken = Claims(folder, f"00000-{here}", HeartbeatIntervals()).take_one(["a-00000"])
    assert (taken.shard, taken.taken_from) == ("a-00000", gone)


def test_a_claim_that_was_cut_short_is_given_time_and_then_taken(folder: Path) -> None:
    """Only a storage without hard links shows such a file: the claim is created first and written a moment later."""
    claims = Claims(folder, f"00000-{this_process()}", HeartbeatIntervals())
    path = folder / "claims" / "a-00000.json"
    path.touch()
    assert claims.take_one(["a-00000"]) is None
    os.utime(path, (time.time() - 130, time.time() - 130))
    assert claims.take_one(["a-00000"]).shard == "a-00000"


def test_a_claim_that_was_taken_over_is_not_given_up_by_its_first_holder(folder: Path) -> None:
    sign_on(folder, ELSEWHERE, silent_for=600)
    stalled = Claims(folder, ELSEWHERE, HeartbeatIntervals())
    stalled.take_one(["a-00000"])
    mine = f"00000-{this_process()}"
    assert Claims(folder, mine, HeartbeatIntervals()).take_one(["a-00000"]) is not None
    stalled.release("a-00000")
    assert claimed_by(folder) == {"a-00000": mine}


def test_a_heartbeat_is_renewed_and_its_end_recorded(folder: Path) -> None:
    with Heartbeat(folder, Worker(1, 2), HeartbeatIntervals(every_seconds=0.02, soonest_seconds=0.01)) as heartbeat:
        heartbeat.note(shard="a-00001")
        path = folder / "workers" / f"{heartbeat.worker}.json"
        first = path.stat().st_mtime_ns
        wait_for(lambda: path.stat().st_mtime_ns > first)
        (seen,) = Liveness(folder, HeartbeatIntervals()).workers()
        assert (seen.state, seen.record.shard, seen.is_live) == (WorkerState.RUNNING, "a-00001", True)
    (seen,) = Liveness(folder, HeartbeatIntervals()).workers()
    assert (seen.state, seen.record.shard, seen.is_live) == (WorkerState.DONE, None, False)
    assert not any(thread.name == "heartbeat" for thread in threading.enumerate())


def test_a_worker_that_waits_takes_over_from_one_that_is_killed(command, content, workers, long_plan: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert command("render", "--plan", long_plan, "--out", whole, *LARGE).code == 0
    other = workers.start("render", "--plan", long_plan, "--out", out, *LARGE, "--rank", 1, "--world-size", 2)
    wait_for(lambda: bool(claimed_by(out)))
    os.kill(other, signal.SIGSTOP)  # so that it surely holds a claim when it is killed
    held = set(claimed_by(out))
    killer = threading.Timer(1.5, workers.kill, [other])
    killer.start()
    summary = run(out, long_plan, large_pictures(), Worker(0, 2), lambda message: None, WorkerPolicy(waits=True, intervals=QUICK))
    killer.join()
    assert summary.shards_left == 0
    log = [json.loads(line) for path in (out / "workers").glob("00000-*.jsonl") for line in path.read_text().splitlines()]
    assert {event["shard"] for event in log if event["event"] == "took over"} == held
    assert content(out) == content(whole)
    assert sorted(seen.state for seen in Liveness(out, HeartbeatIntervals()).workers()) == [WorkerState.DEAD, WorkerState.DONE]


def test_a_live_worker_keeps_its_claim_and_others_leave_or_wait(command, workers, long_plan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    other = workers.start("render", "--plan", long_plan, "--out", out, *LARGE)
    wait_for(lambda: bool(claimed_by(out)))
    os.kill(other, signal.SIGSTOP)
    held = claimed_by(out)
    try:
        result = command("render", "--plan", long_plan, "--out", out, *LARGE)
        assert result.code == 0
        assert f"{len(held)} left in {out}" in result.out
        assert "shards are left to workers at it: '00000-" in result.err
        assert claimed_by(out) == held
        waiting = workers.start("render", "--plan", long_plan, "--out", out, *LARGE, "--wait")
        wait_for(lambda: WorkerState.WAITING in [seen.state for seen in Liveness(out, HeartbeatIntervals()).workers()])
        os.kill(waiting, signal.SIGUSR1)
        assert workers.wait(waiting) == [75]
    finally:
        os.kill(other, signal.SIGCONT)
    assert workers.wait(other) == [0]
    assert command("verify", "--out", out).code == 0


def test_a_stalled_worker_that_wakes_up_after_it_was_given_up_harms_nothing(
    command, content, workers, long_plan: Path, tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert command("render", "--plan", long_plan, "--out", whole, *LARGE).code == 0
    stalled = workers.start("render", "--plan", long_plan, "--out", out, *LARGE)
    wait_for(lambda: bool(claimed_by(out)))
    os.kill(stalled, signal.SIGSTOP)
    (name,) = {path.stem for path in (out / "workers").glob("*.json")}
    make_silent(out, name, 600)
    assert command("render", "--plan", long_plan, "--out", out, *LARGE).code == 0
    assert content(out) == content(whole)
    os.kill(stalled, signal.SIGCONT)
    assert workers.wait(stalled) == [0]
    assert command("render", "--plan", long_plan, "--out", out, *LARGE).code == 0
    assert content(out) == content(whole)
    assert command("verify", "--out", out).code == 0


def test_two_runs_of_one_rank_started_by_mistake_share_the_work(command, content, workers, long_plan: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert command("render", "--plan", long_plan, "--out", whole, *LARGE).code == 0
    first = workers.start("render", "--plan", long_plan, "--out", out, *LARGE)
    wait_for(lambda: bool(claimed_by(out)))
    os.kill(first, signal.SIGSTOP)  # until the other is at work too
    held = set(claimed_by(out))
    second = workers.start("render", "--plan", long_plan, "--out", out, *LARGE)
    wait_for(lambda: bool(set(claimed_by(out)) - held))
    os.kill(first, signal.SIGCONT)
    assert workers.wait(first, second) == [0, 0]
    assert content(out) == content(whole)
    assert command("verify", "--out", out).code == 0
    shards_done = [seen.record.shards_done for seen in Liveness(out, HeartbeatIntervals()).workers()]
    assert sum(shards_done) == 20
    assert min(shards_done) > 0


def test_two_runs_with_other_settings_started_at_once_are_not_mixed(command, workers, long_plan: Path, tmp_path: Path) -> None:
    """Neither finds a record of settings when it starts; the first to write it decides."""
    out = tmp_path / "out"
    both = [workers.start("render", "--plan", long_plan, "--out", out, *LARGE, "--jpeg-quality", quality) for quality in (75, 76)]
    assert sorted(workers.wait(*both)) == [0, 2]
    assert "made with quality = 7" in workers.log
    assert command("verify", "--out", out).code == 0


def test_with_everybody_stopped_status_tells_who_is_alive(command, workers, manifests: Path, tmp_path: Path) -> None:
    out, plan = tmp_path / "out", tmp_path / "p.parquet"
    sizes = ("--images-per-task", 320, "--images-per-shard", 16)  # enough for both to have told of some when the first looks
    assert command("plan", "--out", plan, "--manifests", manifests, "--order", "tiny", *sizes).code == 0
    size = ("--model", "flat-color", "--height", 1024, "--width", 1024, "--batch-size", 1)
    start = ("render", "--plan", plan, "--out", out, *size, "--world-size", 2, "--rank")
    first, second = workers.start(*start, 0), workers.start(*start, 1)
    liveness = functools.partial(Liveness, out, HeartbeatIntervals())
    wait_for(lambda: sum(bool(seen.record.shard and seen.record.images_made) for seen in liveness().workers()) == 2)
    os.kill(first, signal.SIGSTOP)
    workers.kill(second)
    sign_on(out, ELSEWHERE, silent_for=300)
    try:
        state = json.loads(command("status", "--out", out, "--json").out)
        assert [(worker["rank"], worker["state"]) for worker in state["workers"]] == [(0, "running"), (1, "dead"), (7, "dead")]
        assert state["workers"][0]["shard"] is not None
        assert state["images_per_second"] == state["workers"][0]["images_per_second"] > 0
        assert 0 < state["seconds_left"] <= state["remaining"] / state["images_per_second"]
        text = command("status", "--out", out).out
    finally:
        os.kill(first, signal.SIGCONT)
    assert "workers    1 running, 2 dead" in text
    assert " images/s, " in text
    assert len([line for line in text.splitlines() if line.strip().startswith(("0  ", "1  ", "7  "))]) == 3
    assert workers.wait(first) == [0]
