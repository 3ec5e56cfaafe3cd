"""How often a worker asks the storage: what it costs a file server when there are a thousand of them (docs/scale.md)."""

import os
from collections import Counter
from pathlib import Path

import pytest

from gift_generate.output import folder as module
from gift_generate.output.folder import OutputFolder, Shard, open_output
from gift_generate.workers.claims import Claims
from gift_generate.workers.heartbeat import Heartbeat, HeartbeatIntervals
from gift_generate.workers.rank import Worker

FLAT = ("--model", "flat-color", "--height", 16, "--width", 16)


@pytest.fixture
def long_plan(command, manifests: Path, tmp_path: Path) -> Path:
    """40 shards of an image."""
    path = tmp_path / "long.parquet"
    arguments = ("--order", "tiny", "--images-per-task", 20, "--images-per-shard", 1, "--manifests", manifests)
    assert command("plan", "--out", path, *arguments).code == 0
    return path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the folder of shards was listed, and which shards were looked into."""
    counts: Counter[str] = Counter()
    listdir, is_complete = os.listdir, OutputFolder.is_complete

    def list_noted(path: Path) -> list[str]:
        counts["listings"] += Path(path).name == "shards"
        return listdir(path)

    def look_noted(output: OutputFolder, shard: Shard) -> bool:
        counts[shard.name] += 1
        return is_complete(output, shard)

    monkeypatch.setattr(module.os, "listdir", list_noted)
    monkeypatch.setattr(OutputFolder, "is_complete", look_noted)
    return counts


def test_the_folder_is_not_listed_for_each_shard(command, long_plan: Path, tmp_path: Path, asked: Counter[str]) -> None:
    assert command("render", "--plan", long_plan, "--out", tmp_path / "out", *FLAT).code == 0
    assert 0 < asked["listings"] <= 8 < len(open_output(tmp_path / "out").shards)


def test_a_worker_looks_into_its_own_shards_and_not_into_those_of_others(
    command, long_plan: Path, tmp_path: Path, asked: Counter[str]
) -> None:
    out = tmp_path / "out"
    assert command("render", "--plan", long_plan, "--out", out, *FLAT).code == 0
    shards = open_output(out).shards
    (out / "shards" / f"{shards[1].name}.parquet").unlink()  # of rank 1, so that rank 0 has something to do
    (out / "shards" / f"{shards[4].name}.parquet").unlink()
    (out / "claims" / f"{shards[4].name}.json").write_text('{"worker": "a-worker-elsewhere"}')  # and the folder does not end
    asked.clear()
    assert command("render", "--out", out, *FLAT, "--rank", 0, "--world-size", 4).code == 0
    looked_into = {shard.name for shard in shards if asked[shard.name]}
    assert looked_into <= {shard.name for shard in (*shards[0::4], shards[1])}
    assert (out / "shards" / f"{shards[1].name}.parquet").is_file()


def test_what_is_damaged_in_the_share_of_a_worker_that_never_came_is_made_before_the_index(
    command, content, rendered: Path, tmp_path: Path
) -> None:
    before = content(rendered)
    shards = open_output(rendered).shards
    os.truncate(rendered / "shards" / f"{shards[0].name}.tar", 700)  # of rank 0
    (rendered / "index.parquet").unlink()
    assert command("render", "--out", rendered, *FLAT, "--rank", 1, "--world-size", 2).code == 0
    assert content(rendered) == before


def test_who_finds_the_index_being_written_leaves_it_to_the_other(command, rendered: Path) -> None:
    (rendered / "index.parquet").unlink()
    intervals = HeartbeatIntervals()
    with Heartbeat(rendered, Worker(1, 2), intervals) as other, Claims(rendered, other.worker, intervals) as claims:
        assert claims.take_one(["index.parquet"]) is not None
        result = command("render", "--out", rendered, *FLAT)
        assert (result.code, (rendered / "index.parquet").exists()) == (0, False)
    assert command("render", "--out", rendered, *FLAT).code == 0
    assert (rendered / "index.parquet").exists()


def test_of_many_shards_a_few_are_looked_for_by_name(command, long_plan: Path, tmp_path: Path, asked: Counter[str]) -> None:
    out = tmp_path / "out"
    assert command("render", "--plan", long_plan, "--out", out, *FLAT).code == 0
    output = open_output(out)
    (out / "shards" / f"{output.shards[7].name}.tar").unlink()
    asked.clear()
    assert output.absent(output.shards[6:8]) == [output.shards[7]]
    assert asked["listings"] == 0
    assert output.absent() == [output.shards[7]]
    assert asked["listings"] == 1
