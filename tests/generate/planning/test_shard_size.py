"""Shard sizes that keep workers busy, or that take so many minutes."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from gift_generate.planning.plan import make_plan
from gift_generate.planning.plan_record import shard_line
from gift_generate.planning.plan_request import PlanRequest
from gift_generate.planning.shard_size import busy_fraction, shard_size
from gift_shared.errors import ConfigError
from gift_shared.manifests import Manifests
from gift_shared.parquet_files import read_plan

MTIL = [1000] * 11


def size_for(workers: int, group_sizes: list[int]) -> int:
    return shard_size(PlanRequest(workers=workers), group_sizes, None)


def test_how_busy_workers_are_is_counted_to_the_end_of_the_last() -> None:
    assert busy_fraction(MTIL, 1000, 8) == 11_000 / (8 * 2000)  # 11 shards: three workers make two, five wait for them
    assert busy_fraction(MTIL, 1000, 16) == 11 / 16
    assert busy_fraction([10, 3], 4, 2) == 13 / (2 * 7)  # 4 + 2 (+ ...) : shards of 4, 4, 2, 3 -> 4 + 3 and 4 + 2
    assert busy_fraction([8], 4, 2) == 1.0


@pytest.mark.parametrize(("workers", "size"), [(1, 1000), (8, 128), (16, 64), (64, 16)])
def test_the_published_plan_keeps_its_workers_busy(workers: int, size: int) -> None:
    assert size_for(workers, MTIL) == size
    assert busy_fraction(MTIL, size, workers) >= 0.95


@pytest.mark.parametrize(("workers", "group_sizes"), [(2, [20]), (8, [7]), (5, [100, 3, 1]), (3, [1])])
def test_small_plans_get_the_size_that_keeps_most_busy(workers: int, group_sizes: list[int]) -> None:
    busy = busy_fraction(group_sizes, size_for(workers, group_sizes), workers)
    assert busy >= 0.95 or busy == max(busy_fraction(group_sizes, size, workers) for size in (1, 2, 4, 8, 16, 32))


def test_minutes_are_counted_by_the_rate_in_whole_batches() -> None:
    assert shard_size(PlanRequest(minutes_per_shard=10), MTIL, 0.5) == 288  # 300 images, of which 9 batches of 32 are whole
    assert shard_size(PlanRequest(minutes_per_shard=1), MTIL, 0.1) == 6
    assert shard_size(PlanRequest(minutes_per_shard=10, workers=8), MTIL, 100.0) == 128
    assert shard_size(PlanRequest(minutes_per_shard=0.1, workers=8), MTIL, 10.0) == 32  # the smaller of both


@pytest.mark.parametrize(
    ("options", "rate", "message"),
    [
        ({"minutes_per_shard": 5}, None, "--minutes-per-shard needs a rate"),
        ({"minutes_per_shard": -1}, 1.0, "--minutes-per-shard must be above 0"),
        ({"workers": 8, "images_per_shard": 100}, None, "give one of them"),
    ],
)
def test_what_contradicts_itself_is_refused(options: dict, rate: float | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        shard_size(PlanRequest(**options), MTIL, rate)


def test_the_command_records_what_was_chosen_and_tells_it(command, manifests: Path, tmp_path: Path) -> None:
    result = command(
        "plan", "--out", tmp_path / "p.parquet", "--order", "tiny", "--images-per-task", 640, "--workers", 4, "--manifests", manifests
    )
    assert result.code == 0, result.err
    assert "shards  40 of at most 32 images; 4 equal workers are busy 100% of the time" in result.out
    arguments = json.loads(read_plan(tmp_path / "p.parquet")[1]["arguments"])
    assert (arguments["images_per_shard"], arguments["workers"]) == (32, 4)


def test_the_rate_may_be_that_of_an_earlier_render(command, manifests: Path, rendered: Path, tmp_path: Path) -> None:
    words = ("--order", "tiny", "--images-per-task", 10, "--minutes-per-shard", 1e-9, "--measured", rendered, "--manifests", manifests)
    assert "shards  20 of at most 1 images" in command("plan", "--out", tmp_path / "p.parquet", *words).out


def test_another_shard_size_changes_no_image(manifests: Path) -> None:
    plans = [
        make_plan(PlanRequest(order="tiny", images_per_task=50, images_per_shard=size), Manifests((manifests,)))[0] for size in (7, 1000)
    ]
    assert plans[0].drop_columns("shard").equals(plans[1].drop_columns("shard"))


def test_more_shards_than_the_hub_takes_in_a_folder_are_told_with_a_size_that_fits() -> None:
    shards = [f"x-{number:05d}" for number in range(5_001)]
    line = shard_line(pa.table({"shard": [shard for shard in shards for _ in range(20)]}), None)
    assert line.splitlines()[1].endswith("the Hugging Face hub advises at most 5,000 in a folder: --images-per-shard 32, to push them")
    assert len(shard_line(pa.table({"shard": shards[:5_000]}), None).splitlines()) == 1
