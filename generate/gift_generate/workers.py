"""Which share of the shards is this process's: by flags, by a launcher's environment, or all of them."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from gift_shared.errors import ConfigError


@dataclass(frozen=True)
class Worker:
    """One of `world_size` processes that share a plan and an output folder; `rank` counts from 0."""

    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(f"Rank {self.rank} of {self.world_size} workers: expected 0 to {self.world_size - 1}.")


def find_worker(rank: int | None, world_size: int | None, environment: Mapping[str, str] = os.environ) -> Worker:
    """Flags first, then RANK/WORLD_SIZE (torchrun, accelerate), then a SLURM job array; else the only worker."""
    if (rank is None) != (world_size is None):
        raise ConfigError("--rank and --world-size belong together: give both or none.")
    if rank is not None and world_size is not None:
        return Worker(rank, world_size)
    try:
        if "WORLD_SIZE" in environment and "RANK" in environment:
            return Worker(int(environment["RANK"]), int(environment["WORLD_SIZE"]))
        if "SLURM_ARRAY_TASK_ID" in environment:
            first = int(environment.get("SLURM_ARRAY_TASK_MIN", "0"))
            step = int(environment.get("SLURM_ARRAY_TASK_STEP", "1"))
            return Worker((int(environment["SLURM_ARRAY_TASK_ID"]) - first) // step, int(environment["SLURM_ARRAY_TASK_COUNT"]))
    except (KeyError, ValueError) as error:
        raise ConfigError(f"The launcher's environment names no worker: {error}. Give --rank and --world-size.") from error
    return Worker()
