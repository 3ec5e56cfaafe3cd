"""One plan on one, two and four workers, however they are started: byte-identical shards and indexes."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from gift_generate.workers.rank import Worker, find_worker, is_first_of_its_node
from gift_shared.errors import ConfigError

TINY = ("--model", "flat-color", "--height", 8, "--width", 8, "--image-format", "png")
SCRIPTS = Path(sys.executable).parent
ENVIRONMENT = os.environ | {"PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


def plan_of(command, manifests: Path, path: Path, num_images: int, images_per_shard: int) -> Path:
    """So many images in all, for the two tasks of the tiny world."""
    sizes = ("--images-per-task", num_images // 2, "--images-per-shard", images_per_shard)
    assert (
        command("plan", "--out", path, "--manifests", manifests, "--order", "tiny", *sizes, "--draws-per-task", num_images // 2).code == 0
    )
    return path


@pytest.mark.parametrize("num_images", [10_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_shards_are_the_same_bytes_on_one_two_and_four_workers(
    command, content, workers, manifests: Path, tmp_path: Path, num_images: int
) -> None:
    plan = plan_of(command, manifests, tmp_path / "p.parquet", num_images, num_images // 100)
    contents = []
    for world_size in (1, 2, 4):
        out = tmp_path / f"out-{world_size}"
        start = ("render", "--plan", plan, "--out", out, *TINY, "--world-size", world_size, "--rank")
        assert set(workers.wait(*(workers.start(*start, rank) for rank in range(world_size)), seconds=1200)) == {0}
        contents.append(content(out))
    assert len(contents[0]) == 2 * 100 + 4
    assert contents[1] == contents[0]
    assert contents[2] == contents[0]


@pytest.mark.slow
@pytest.mark.parametrize(("num_images", "world_sizes"), [(7, (1, 2)), pytest.param(334, (1, 2, 4), marks=pytest.mark.slow)])
def test_images_of_the_mini_model_are_the_same_bytes_on_one_and_several_workers(
    command, content, tmp_path: Path, num_images: int, world_sizes: tuple[int, ...]
) -> None:
    plan = tmp_path / "p.parquet"
    sizes = ("--images-per-task", num_images, "--images-per-shard", num_images // 6, "--steps", 2, "--guidance-scale", 3)
    assert command("plan", "--out", plan, "--order", "mini", *sizes).code == 0
    contents = []
    for world_size in world_sizes:
        out = tmp_path / f"out-{world_size}"
        line = [SCRIPTS / "gift-generate", "render", "--plan", plan, "--out", out, "--world-size", str(world_size), "--rank"]
        processes = [subprocess.Popen([*line, str(rank)], env=ENVIRONMENT) for rank in range(world_size)]
        assert {process.wait() for process in processes} == {0}
        contents.append(content(out))
    assert all(other == contents[0] for other in contents[1:])
    assert command("verify", "--out", out).code == 0


@pytest.mark.parametrize(
    "launcher",
    [
        ("torchrun", "--nproc-per-node", "2", "--no-python"),
        # For CPUs alone accelerate starts several processes through MPI only; --multi_gpu starts them whatever the devices are.
        ("accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--no_python"),
    ],
    ids=["torchrun", "accelerate"],
)
def test_a_launcher_splits_the_shards_by_rank(command, content, manifests: Path, tmp_path: Path, launcher: tuple[str, ...]) -> None:
    plan = plan_of(command, manifests, tmp_path / "p.parquet", 400, 10)
    whole, out = tmp_path / "whole", tmp_path / "out"
    size = ("--model", "flat-color", "--height", "512", "--width", "512")  # so that neither is done before the other has begun
    assert command("render", "--plan", plan, "--out", whole, *size).code == 0
    line = [*launcher, SCRIPTS / "gift-generate", "render", "--plan", plan, "--out", out, *size]
    done = subprocess.run(line, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert content(out) == content(whole)
    assert sorted(path.name[:5] for path in (out / "workers").glob("*.json")) == ["00000", "00001"]


SLURM_ARRAY = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_STEP": "3", "SLURM_ARRAY_TASK_COUNT": "3"}
ARRAY_3_8 = {"SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_STEP": "1", "SLURM_ARRAY_TASK_COUNT": "2"}


@pytest.mark.parametrize(
    ("environment", "worker"),
    [
        ({}, Worker(0, 1)),
        ({"RANK": "2", "WORLD_SIZE": "4"}, Worker(2, 4)),
        ({"SLURM_PROCID": "5", "SLURM_NTASKS": "8"}, Worker(5, 8)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "RANK": "2", "WORLD_SIZE": "4"}, Worker(2, 4)),  # torchrun inside of one srun task
        (SLURM_ARRAY, Worker(2, 3)),
        (ARRAY_3_8 | {"SLURM_ARRAY_TASK_ID": "3"}, Worker(0, 2)),
        (ARRAY_3_8 | {"SLURM_ARRAY_TASK_ID": "8"}, Worker(1, 2)),
        (SLURM_ARRAY | {"SLURM_PROCID": "1", "SLURM_NTASKS": "4"}, Worker(9, 12)),
        (SLURM_ARRAY | {"RANK": "3", "WORLD_SIZE": "4"}, Worker(11, 12)),
        ({"SLURM_PROCID": "0"}, Worker(0, 1)),  # a batch script that asked for no number of tasks
    ],
)
def test_a_launcher_names_the_worker(environment: Mapping[str, str], worker: Worker) -> None:
    assert find_worker(None, None, environment) == worker
    assert find_worker(0, 2, environment) == Worker(0, 2)


def test_a_launcher_without_a_count_is_told() -> None:
    with pytest.raises(ConfigError, match="names no worker: 'SLURM_ARRAY_TASK_COUNT'"):
        find_worker(None, None, {"SLURM_ARRAY_TASK_ID": "1"})


def test_every_worker_takes_its_own_share_first_and_all_there_is_in_the_end() -> None:
    shards = list(range(10))
    assert Worker(1, 3).preferred(shards) == [1, 4, 7, 8, 5, 2, 9, 6, 3, 0]
    assert Worker(11, 12).preferred(shards)[:1] == [0]  # more workers than shards
    for rank in range(4):
        assert sorted(Worker(rank, 4).preferred(shards)) == shards


def test_a_worker_finds_the_work_of_one_that_never_came(command, content, manifests: Path, tmp_path: Path) -> None:
    plan = plan_of(command, manifests, tmp_path / "p.parquet", 40, 5)
    for out, share in ((tmp_path / "whole", ()), (tmp_path / "out", ("--rank", 1, "--world-size", 3))):
        assert command("render", "--plan", plan, "--out", out, *TINY, *share).code == 0
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.mark.parametrize(
    ("environment", "is_first"),
    [({}, True), ({"LOCAL_RANK": "0"}, True), ({"LOCAL_RANK": "1"}, False), ({"SLURM_LOCALID": "3"}, False), ({"SLURM_LOCALID": ""}, True)],
)
def test_of_the_processes_of_a_node_the_first_shows_progress(environment: dict[str, str], is_first: bool) -> None:
    assert is_first_of_its_node(environment) is is_first
