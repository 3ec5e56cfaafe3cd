"""Workers that are killed, told to leave or run out of disk: whole shards stay, and the next start ends with the same bytes."""

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from gift_generate.images.encoding import ImageEncoder
from gift_generate.images.image_source import BatchStore, Picture, PlanRow
from gift_generate.images.rendered import RenderedImages
from gift_generate.pipeline import WorkerPolicy, run
from gift_generate.rendering.flat_color import FlatColorRenderer
from gift_generate.workers import rank as workers_module
from gift_generate.workers.rank import Worker
from gift_shared.parquet_files import read_index
from gift_shared.preemption import PreemptionNotice

SMALL = ("--model", "flat-color", "--height", 16, "--width", 16)
LARGE = ("--model", "flat-color", "--height", 384, "--width", 384, "--batch-size", 2)  # some ten milliseconds a batch
Plan = Callable[[int, int], Path]


@pytest.fixture
def make_plan(command, manifests: Path, tmp_path: Path) -> Plan:
    """`make_plan(images, images_per_shard)`: so many images for each of two tasks."""

    def make(num_images: int, images_per_shard: int) -> Path:
        path = tmp_path / "p.parquet"
        sizes = ("--images-per-task", num_images, "--images-per-shard", images_per_shard)
        assert command("plan", "--out", path, "--manifests", manifests, "--order", "tiny", *sizes).code == 0
        return path

    return make


def temporaries(out: Path) -> list[Path]:
    return [path for path in out.rglob("*") if path.name.endswith(".tmp")]


def complete_shards(out: Path) -> set[str]:
    return {path.stem for path in out.glob("shards/*.parquet") if not path.name.startswith(".")}


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


@pytest.mark.parametrize("num_kills", [15, pytest.param(60, marks=pytest.mark.slow)])
def test_workers_killed_at_random_moments_end_with_the_same_bytes(
    command, content, workers, make_plan: Plan, tmp_path: Path, num_kills: int
) -> None:
    num_shards = 5 * num_kills
    slow = ("--model", "flat-color", "--height", 720, "--width", 720, "--batch-size", 2)  # kills take their time too
    plan, whole, killed = make_plan(num_shards * 2, 4), tmp_path / "whole", tmp_path / "killed"
    assert command("render", "--plan", plan, "--out", whole, *slow).code == 0
    chance = random.Random(num_kills)

    def start(rank: int) -> int:
        return workers.start("render", "--plan", plan, "--out", killed, *slow, "--rank", rank, "--world-size", 3)

    running = [start(rank) for rank in range(3)]
    checked: set[str] = set()
    for number in range(num_kills):  # over the first half of the generation: each waits for its share of the shards to be done
        wait_for(lambda number=number: 2 * num_kills * len(complete_shards(killed)) >= num_shards * number)
        time.sleep(chance.uniform(0.0, 0.05))
        rank = chance.randrange(3)
        assert workers.poll(running[rank]) is None, "all was done before the last kill"
        workers.kill(running[rank])
        running[rank] = start(rank)
        for name in complete_shards(killed) - checked:
            read_index(killed / "shards" / f"{name}.parquet")  # what has its final name is whole
            checked.add(name)
    assert set(workers.wait(*running)) == {0}
    assert command("render", "--plan", plan, "--out", killed, *slow).code == 0
    assert content(killed) == content(whole)
    assert temporaries(killed) == []
    assert command("verify", "--out", killed).out == f"{killed}: every byte claim holds\n"


@pytest.mark.parametrize("notice", [signal.SIGTERM, signal.SIGUSR1])
def test_a_notice_of_preemption_drops_the_shard_and_asks_for_another_start(
    command, content, workers, make_plan: Plan, tmp_path: Path, notice: signal.Signals
) -> None:
    plan, whole, out = make_plan(20, 4), tmp_path / "whole", tmp_path / "out"
    assert command("render", "--plan", plan, "--out", whole, *LARGE).code == 0
    worker = workers.start("render", "--plan", plan, "--out", out, *LARGE)
    wait_for(lambda: len(complete_shards(out)) >= 2)
    os.kill(worker, notice)
    assert workers.wait(worker) == [75]
    left = 10 - len(complete_shards(out))
    assert left > 0
    assert f"Stopped by {notice.name}: {left} of 10 shards are left in {out}. Nothing is lost; the same command goes on.\n" in workers.log
    assert temporaries(out) == []
    assert list((out / "claims").iterdir()) == []
    state = json.loads(command("status", "--out", out, "--json").out)
    assert [worker["state"] for worker in state["workers"]] == ["preempted"]
    assert command("render", "--plan", plan, "--out", out, *LARGE).code == 0
    assert content(out) == content(whole)


def test_a_notice_that_comes_before_anything_was_begun_asks_for_another_start(
    command, make_plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def signal_and_find(*_: object) -> Worker:
        os.kill(os.getpid(), signal.SIGUSR1)
        return Worker()

    monkeypatch.setattr(workers_module, "find_worker", signal_and_find)  # the first that render does
    result = command("render", "--plan", make_plan(2, 4), "--out", tmp_path / "out", *SMALL)
    assert result.code == 75
    assert result.err == "Stopped by SIGUSR1: no image was begun. Nothing is lost; the same command goes on.\n"
    assert not (tmp_path / "out").exists()


class NoticedAfterTheLastShard(RenderedImages):
    """Gets SIGTERM when the last shard's pictures are there and not yet written."""

    def pictures(self, rows: Sequence[PlanRow], on_images: Callable[[int], None], batches: BatchStore) -> list[Picture]:
        pictures = super().pictures(rows, on_images, batches)
        if rows[0]["shard"] == "cars-00002":
            os.kill(os.getpid(), signal.SIGTERM)
        return pictures


def test_a_notice_that_comes_while_the_last_shard_is_written_asks_for_no_other_start(
    content, plan: Path, rendered: Path, tmp_path: Path
) -> None:
    source = NoticedAfterTheLastShard(FlatColorRenderer(height=16, width=16), ImageEncoder(), max_attempts=3)
    with PreemptionNotice() as notice:
        summary = run(tmp_path / "out", plan, source, Worker(), lambda message: None, WorkerPolicy(notice=notice))
        assert notice.has_come
    assert summary.shards_left == 0
    assert content(tmp_path / "out") == content(rendered)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="a small disk needs the right to mount one")
def test_a_full_disk_is_one_line_and_the_work_goes_on_when_there_is_room(command, content, make_plan: Plan, tmp_path: Path) -> None:
    plan, whole, disk = make_plan(40, 10), tmp_path / "whole", tmp_path / "disk"
    assert command("render", "--plan", plan, "--out", whole, *SMALL).code == 0
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", disk], check=False, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    out = disk / "out"
    try:
        result = command("render", "--plan", plan, "--out", out, *SMALL)
        assert result.code == 2
        assert "The disk is full" in result.err.splitlines()[-1]
        assert "Traceback" not in result.err
        complete = complete_shards(out)
        assert 1 <= len(complete) < 8
        assert temporaries(out) == []
        before = {path: path.stat().st_mtime_ns for path in (out / "shards").iterdir() if path.stem in complete}
        faults = command("verify", "--out", out).out.splitlines()
        assert len(faults) == 2, faults  # that shards are missing, and how many faults that is
        assert faults[0].startswith(f"{8 - len(complete)} of 8 shards are not there yet")
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
        assert command("render", "--plan", plan, "--out", out, *SMALL).code == 0
        assert {path: path.stat().st_mtime_ns for path in before} == before
        assert content(out) == content(whole)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_what_a_killed_worker_left_half_written_goes_once_all_is_done(command, workers, make_plan: Plan, tmp_path: Path) -> None:
    plan, out = make_plan(20, 4), tmp_path / "out"
    worker = workers.start("render", "--plan", plan, "--out", out, *LARGE)
    wait_for(lambda: bool(complete_shards(out)))
    workers.kill(worker)
    killed = next((out / "workers").glob("*.json")).stem.partition("-")[2]
    for name in (f"shards/.cats-00004.tar.{killed}.tmp", f".index.parquet.{killed}.tmp", f"claims/.cats-00004.json.{killed}.tmp"):
        (out / name).write_bytes(b"half")
    assert command("render", "--plan", plan, "--out", out, *LARGE).code == 0
    assert temporaries(out) == []


def test_a_temporary_of_another_machine_is_left_alone_until_it_is_old(command, rendered: Path) -> None:
    """Its writer may be alive and about to sign on; nobody can tell from here."""
    young, old = (rendered / "shards" / f".cats-0000{number}.tar.node-0123abcd-17-4711.tmp" for number in (0, 1))
    young.write_bytes(b"half")
    old.write_bytes(b"half")
    os.utime(old, (time.time() - 600, time.time() - 600))
    assert command("render", "--out", rendered, *SMALL).code == 0
    assert young.exists()
    assert not old.exists()
