"""Finished batches on disk: found again by whoever goes on, and by nobody if torn, damaged or made for something else."""

from pathlib import Path

import pytest

from gift_generate.images.image_source import Picture
from gift_generate.output.spool import ShardSpool, Spool, purpose
from gift_shared.schema import SampleStatus

WORKER, OTHER = "00000-host-0123abcd-17-4711", "00001-node12-89abcdef-4711-99"
OK = Picture(
    status=SampleStatus.OK, message="", attempts=1, used_seed=2**62, content=b"GIFT-B1\nno record", suffix=".png", width=16, height=8
)  # fmt: skip
FLAGGED = Picture(status=SampleStatus.FLAGGED, message='the "checker" objected', attempts=1, used_seed=5)


def of_shard(out: Path, worker: str = WORKER, made_for: str = "this") -> ShardSpool:
    return Spool(out, "render", worker).of_shard("cats-00001", made_for, lambda count: None)


def spool_file(out: Path) -> Path:
    return out / "spool" / "render" / f"cats-00001.{WORKER}.batches"


def test_a_batch_is_found_as_it_was_made_by_any_worker(tmp_path: Path) -> None:
    of_shard(tmp_path).add(0, [0, 1], [OK, FLAGGED])
    of_shard(tmp_path, OTHER).add(1, [1], [OK])
    assert [path.name for path in sorted((tmp_path / "spool" / "render").iterdir())] == [
        f"cats-00001.{WORKER}.batches",
        f"cats-00001.{OTHER}.batches",
    ]
    for worker in (WORKER, OTHER):
        found = of_shard(tmp_path, worker)
        assert found.find(0, [0, 1]) == [OK, FLAGGED]
        assert found.find(1, [1]) == [OK]


@pytest.mark.parametrize(("attempt", "positions"), [(1, [0, 1]), (0, [0]), (0, [1, 0]), (0, [0, 1, 2])])
def test_a_batch_that_is_cut_otherwise_is_another_one(tmp_path: Path, attempt: int, positions: list[int]) -> None:
    of_shard(tmp_path).add(0, [0, 1], [OK, FLAGGED])
    assert of_shard(tmp_path).find(attempt, positions) is None


def test_what_was_made_for_something_else_is_not_found(tmp_path: Path) -> None:
    of_shard(tmp_path, made_for="that").add(0, [0], [OK])
    assert of_shard(tmp_path).find(0, [0]) is None
    assert Spool(tmp_path, "retry-1", WORKER).of_shard("cats-00001", "that", lambda count: None).find(0, [0]) is None


def test_a_purpose_names_plan_settings_and_rows() -> None:
    one = purpose("abc", {"dtype": "float16", "scheduler": None}, ["a-0", "a-1"])
    assert one == purpose("abc", {"dtype": "float16"}, ["a-0", "a-1"])
    assert len({one, purpose("abd", {"dtype": "float16"}, ["a-0", "a-1"]), purpose("abc", {"dtype": "float32"}, ["a-0", "a-1"]),
                purpose("abc", {"dtype": "float16"}, ["a-0", "a-2"])}) == 4  # fmt: skip


def test_a_batch_that_was_torn_anywhere_takes_no_other_along(tmp_path: Path) -> None:
    of_shard(tmp_path).add(0, [0], [OK])
    first = spool_file(tmp_path).read_bytes()
    of_shard(tmp_path).add(0, [1], [OK])
    second = spool_file(tmp_path).read_bytes()[len(first) :]
    for end in range(len(second)):
        spool_file(tmp_path).write_bytes(first + second[:end])
        of_shard(tmp_path).add(0, [2], [FLAGGED])
        found = of_shard(tmp_path)
        assert [found.find(0, [position]) is not None for position in range(3)] == [True, False, True], end


def test_a_flipped_bit_anywhere_costs_the_batch(tmp_path: Path) -> None:
    of_shard(tmp_path).add(0, [0], [OK])
    content = spool_file(tmp_path).read_bytes()
    for place in range(len(content)):
        spool_file(tmp_path).write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        assert of_shard(tmp_path).find(0, [0]) is None, place


def test_a_finished_shard_is_forgotten_whoever_made_it(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "render", WORKER)
    for worker in (WORKER, OTHER):
        of_shard(tmp_path, worker).add(0, [0], [OK])
    spool.of_shard("cats-00002", "this", lambda count: None).add(0, [0], [OK])
    spool.forget("cats-00001")
    assert [path.name for path in (tmp_path / "spool" / "render").iterdir()] == [f"cats-00002.{WORKER}.batches"]
    Spool(tmp_path, "retry-1", WORKER).of_shard("cats-00001", "this", lambda count: None).add(0, [0], [OK])
    spool.clear()
    assert [path.name for path in (tmp_path / "spool").iterdir()] == ["retry-1"]
    Spool(tmp_path, "retry-1", WORKER).clear()
    assert not (tmp_path / "spool").exists()
    spool.clear()
