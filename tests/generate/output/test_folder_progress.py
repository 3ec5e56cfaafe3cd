"""What a worker's terminal shows: the images of all workers of the folder, rate and time left of all together."""

import json
import os
from pathlib import Path

import pytest

from gift_generate.output import folder_progress as module
from gift_generate.output.folder import open_output
from gift_generate.output.folder_progress import FolderProgress
from gift_generate.output.work import NewShards
from gift_generate.workers.heartbeat import HeartbeatIntervals
from gift_shared import progress as terminal
from gift_shared.atomic import write_json
from gift_shared.processes import this_process
from gift_shared.progress import Progress

OWN = "00000-here-00000000-1-1"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that progress sees; the test moves it on."""
    now = [1000.0]
    for seen in (module, terminal):
        monkeypatch.setattr(seen.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def half(rendered: Path) -> Path:
    """A folder of 20 images in 6 shards, 8 of the images and 2 of the shards done; a worker that has ended lies in it."""
    for name in ("cats-00002", "cars-00000", "cars-00001", "cars-00002"):
        (rendered / "shards" / f"{name}.parquet").unlink()
    return rendered


def other_worker(out: Path, rank: int, made: int, done: int, state: str = "running") -> None:
    """What another process says of itself; it is this one, so it lives."""
    worker = f"{rank:05d}-{this_process()}"
    write_json(
        out / "workers" / f"{worker}.json",
        {
            "worker": worker, "rank": rank, "world_size": 9, "started": "2026-01-01T00:00:00+00:00", "state": state, "shard": "cars-00000",
            "shards_done": 0, "images_done": done, "images_made": made, "seconds": 9.0, "message": "",
        },
    )  # fmt: skip


def test_the_images_of_all_live_workers_count(half: Path, clock: list[float], capsys) -> None:
    output = open_output(half)
    other_worker(half, 3, made=3, done=0)
    other_worker(half, 4, made=4, done=1, state="preempted")  # what it had under way is lost
    with FolderProgress(NewShards(output, {}), output.remaining(), HeartbeatIntervals(look_again_seconds=15), OWN) as progress:
        clock[0] += 10
        progress.advance(1)
        other_worker(half, 3, made=6, done=4)  # a shard, and two of the next
        (half / "shards" / "cars-00000.parquet").write_bytes((half / "shards" / "cats-00000.parquet").read_bytes())
        os.replace(half / "shards" / "cats-00000.tar", half / "shards" / "cars-00000.tar")
        clock[0] += 10
        progress.advance(1)
    assert capsys.readouterr().err.splitlines() == [
        "images: 12 of 20 images, 0.10 images/s, 1:20 left (2/6 shards, 2 workers)",
        "images: 16 of 20 images, 0.25 images/s, 0:16 left (3/6 shards, 2 workers)",
        "images: 16 of 20 images in 0:20, 0.25 images/s (3/6 shards, 2 workers)",
    ]


def test_a_worker_that_dies_takes_its_images_with_it(half: Path, clock: list[float], capsys) -> None:
    output = open_output(half)
    other_worker(half, 3, made=3, done=0)
    with FolderProgress(NewShards(output, {}), output.remaining(), HeartbeatIntervals(look_again_seconds=15), OWN) as progress:
        progress.advance(4)
        progress.settled(output.remaining()[0].num_rows)
        progress.forget(output.remaining()[0])
        other_worker(half, 3, made=3, done=0, state="failed")
        clock[0] += 20
        progress.advance(1)
    assert "images: 13 of 20 images, " in capsys.readouterr().err


def test_the_files_of_workers_are_read_now_and_then_and_not_where_nothing_is_shown(half: Path, clock: list[float], monkeypatch) -> None:
    looks = []
    monkeypatch.setattr(module.LiveWorkers, "look", lambda self: looks.append(clock[0]) or [])
    output = open_output(half)
    with FolderProgress(NewShards(output, {}), output.remaining(), HeartbeatIntervals(look_again_seconds=15), OWN) as progress:
        for _ in range(100):
            clock[0] += 0.5
            progress.advance(0)
    assert looks == [1000.0, 1015.0, 1030.0, 1045.0, 1050.0]
    monkeypatch.setattr(Progress, "is_shown", False)
    looks.clear()
    with FolderProgress(NewShards(output, {}), output.remaining(), HeartbeatIntervals(look_again_seconds=15), OWN) as progress:
        clock[0] += 60
        progress.advance(1)
    assert looks == []


def test_two_workers_tell_the_same_folder(command, workers, manifests: Path, tmp_path: Path) -> None:
    """Each process counts what both have made: whoever is last ends at all images."""
    plan, out = tmp_path / "p.parquet", tmp_path / "out"
    sizes = ("--images-per-task", 100, "--draws-per-task", 100, "--images-per-shard", 10)
    assert command("plan", "--out", plan, "--manifests", manifests, "--order", "tiny", *sizes).code == 0
    line = ("render", "--plan", plan, "--out", out, "--model", "flat-color", "--height", 256, "--width", 256, "--world-size", 2)
    assert workers.wait(*(workers.start(*line, "--rank", rank) for rank in range(2))) == [0, 0]
    assert "images: 200 of 200 images in " in workers.log
    made = [json.loads(path.read_text())["images_done"] for path in (out / "workers").glob("*.json")]
    assert sum(made) == 200
