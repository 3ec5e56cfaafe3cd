"""Which share of the shards is this process's to begin with: by flags, by a launcher's environment, or all of them."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from gift_shared.errors import ConfigError

T = TypeVar("T")
LAUNCHERS = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"))  # torchrun and accelerate; srun


@dataclass(frozen=True)
class Worker:
    """One of `world_size` processes that share a plan and an output folder; `rank` counts from 0."""

    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(f"Rank {self.rank} of {self.world_size} workers: expected 0 to {self.world_size - 1}.")

    def share(self, items: Sequence[T]) -> list[T]:
        """What this worker begins with."""
        return list(items[self.rank :: self.world_size])

    def preferred(self, items: Sequence[T]) -> list[T]:
        """All items in the order this worker takes them: its own share, then the next workers', each from its end.

        An owner works from the front of its share, so whoever helps out meets it late, and helpers begin at different shares.
        """
        order = self.share(items)
        for further in range(1, self.world_size):
            order += items[(self.rank + further) % self.world_size :: self.world_size][::-1]
        return order


def find_worker(rank: int | None, world_size: int | None, environment: Mapping[str, str] = os.environ) -> Worker:
    """Flags first; else the tasks of every SLURM array element, each by torchrun, accelerate or srun; else the only worker."""
    if (rank is None) != (world_size is None):
        raise ConfigError("--rank and --world-size belong together: give both or none.")
    if rank is not None and world_size is not None:
        return Worker(rank, world_size)
    try:
        element, launched = _array_element(environment), _launched(environment)
    except (KeyError, ValueError) as error:
        raise ConfigError(f"The launcher's environment names no worker: {error}. Give --rank and --world-size.") from error
    return Worker(element.rank * launched.world_size + launched.rank, element.world_size * launched.world_size)


def is_first_of_its_node(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process shows progress: those of a node that one launcher started write to one terminal."""
    return (environment.get("LOCAL_RANK") or environment.get("SLURM_LOCALID") or "0") == "0"


def _array_element(environment: Mapping[str, str]) -> Worker:
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return Worker()
    first = int(environment.get("SLURM_ARRAY_TASK_MIN", "0"))
    step = int(environment.get("SLURM_ARRAY_TASK_STEP", "1"))
    count = int(environment["SLURM_ARRAY_TASK_COUNT"])
    # Of --array=3,7 SLURM tells step 1, which makes 7 the fifth of two. Wrapped, two may begin with the same share: claims part them.
    return Worker((int(environment["SLURM_ARRAY_TASK_ID"]) - first) // step % count, count)


def _launched(environment: Mapping[str, str]) -> Worker:
    for rank, world_size in LAUNCHERS:
        if rank in environment and world_size in environment:
            return Worker(int(environment[rank]), int(environment[world_size]))
    return Worker()
