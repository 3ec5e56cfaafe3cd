"""What of its machine a process of a run works with: which of the accelerators it sees is its own, and how many cores are its share.

The decisions are functions of plain values; `look_around` alone asks the machine.
"""

import math
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from gift_shared.errors import ConfigError
from gift_shared.launchers import local_rank_from, number_from

KINDS = ("auto", "cpu", "cuda")  # what --device may be for several processes


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a process of a run is, as it tells the others."""

    host: str
    accelerator: str | None  # UUID of the one it computes on; None on the CPU
    index: int | None  # of that accelerator among those the process sees
    cores: tuple[int, ...]  # by the system's numbers, that it may run on
    granted: int | None = None  # cores that SLURM grants
    granted_to: str = ""  # which task of SLURM's on this host they are for; empty: they are for all processes of the host

    def to_plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def from_plain(cls, told: Mapping[str, Any]) -> "Place":
        """What `to_plain` gave."""
        return cls(**{**told, "cores": tuple(told["cores"])})


def look_around(device: str, environment: Mapping[str, str] = os.environ) -> Place:
    """Where this process is and what it would compute on. Raises ConfigError if that cannot be told."""
    num_visible = torch.cuda.device_count() if device != "cpu" and torch.cuda.is_available() else 0
    index = own_accelerator(device, num_visible, environment)
    granted, granted_to = _granted_by_slurm(environment)
    return Place(
        host=socket.gethostname(),
        accelerator=None if index is None else str(torch.cuda.get_device_properties(index).uuid),
        index=index,
        cores=usable_cores(),
        granted=granted,
        granted_to=granted_to,
    )


def require_kind(device: str) -> None:
    """Raises ConfigError for a device that several processes cannot have each."""
    if device not in KINDS:
        raise ConfigError(f"--device {device} names one device for several processes; take cpu, cuda or auto.")


def own_accelerator(device: str, num_visible: int, environment: Mapping[str, str]) -> int | None:
    """Which of the accelerators that this process sees, counted from 0, is the one it computes on; None: it computes on the CPU.

    Where every process of a machine sees all of its accelerators (torchrun, accelerate launch, srun --gpus-per-node), each takes the one of
    its own number. Where each sees its own alone (srun --gpus-per-task=1), that is the first, whatever the process's number. The number
    modulo what is visible is both, and also right where each sees several of its own; that no two processes came by one accelerator is
    seen once all of them have told theirs, see `require_own_accelerators`.

    Raises: ConfigError for a device that is not there, or if no launcher told the process's number.
    """
    if device == "cpu" or (device == "auto" and num_visible == 0):
        return None
    if num_visible == 0:
        raise ConfigError(
            f"--device cuda: a process on {socket.gethostname()} finds no accelerator. Give each process one, or --device cpu."
        )
    local_rank = local_rank_from(environment, default=-1)
    if local_rank < 0 and num_visible > 1:
        raise ConfigError(
            f"A process finds {num_visible} accelerators and not which is its own: the launcher must set LOCAL_RANK, as torchrun,"
            " accelerate launch and gift-train submit do (docs/cluster.md has a script for srun)."
        )
    return max(local_rank, 0) % num_visible


def require_own_accelerators(places: Sequence[Place]) -> None:
    """Raises ConfigError unless all ranks compute on the CPU, or each on an accelerator of its own. `places`: of all, by rank."""
    without = [rank for rank, place in enumerate(places) if place.accelerator is None]
    if without and len(without) < len(places):
        raise ConfigError(
            f"Process {without[0]} on {places[without[0]].host} finds no accelerator, others of the run do: give every process one, or all"
            " of them --device cpu."
        )
    holders: dict[str, int] = {}
    for rank, place in enumerate(places):
        if place.accelerator is None:
            continue
        first = holders.setdefault(place.accelerator, rank)
        if first != rank:
            raise ConfigError(
                f"Processes {first} and {rank} on {place.host} would compute on one accelerator, {place.accelerator}: start as many"
                " processes on a machine as it has, each with all of them or with its own visible (CUDA_VISIBLE_DEVICES)."
            )


def usable_cores() -> tuple[int, ...]:
    """The cores that this process may run on, by the system's numbers."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))  # macOS binds no process to cores


def share_of_cores(places: Sequence[Place], rank: int) -> int:
    """How many cores are one process's, whole ones, at least 1: a core that several of them may run on is shared evenly among these.

    That is right whether a launcher leaves all cores to all processes, or SLURM binds each to its own. Where SLURM grants fewer cores than
    a process may run on (clusters that bind nothing), its grant is shared among the processes that it is for.
    """
    own = places[rank]
    neighbours = [place for place in places if place.host == own.host]
    share = sum(1 / sum(core in place.cores for place in neighbours) for core in own.cores)
    if own.granted is not None:
        share = min(share, own.granted / sum(place.granted_to == own.granted_to for place in neighbours))
    return max(1, math.floor(share + 1e-6))


def cores_alone(environment: Mapping[str, str] = os.environ) -> int:
    """How many cores the only process of a run has: those it may run on, and no more than SLURM grants."""
    granted, granted_to = _granted_by_slurm(environment)
    own = Place(host="", accelerator=None, index=None, cores=usable_cores(), granted=granted, granted_to=granted_to)
    return share_of_cores([own], 0)


def _granted_by_slurm(environment: Mapping[str, str]) -> tuple[int | None, str]:
    """Cores that SLURM gives, and the task they are for; empty: all of the node's."""
    per_task = number_from(environment, "SLURM_CPUS_PER_TASK", default=0)
    if per_task > 0:
        return per_task, environment.get("SLURM_PROCID", "")
    on_node = number_from(environment, "SLURM_CPUS_ON_NODE", default=0)
    return (on_node, "") if on_node > 0 else (None, "")
