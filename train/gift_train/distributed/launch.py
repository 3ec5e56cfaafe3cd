"""How the processes of a run meet, and part: what a launcher tells them, who takes which device, and what each may say.

accelerate starts the process group (`PartialState`), once all ranks have told each other through its store where they are and none takes
another's device.
"""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from gift_shared.errors import ConfigError, NonFiniteError, Preempted, first_line
from gift_shared.launchers import local_rank_from, number_from
from gift_shared.progress import Progress
from gift_train.devices import Place, look_around, require_kind, require_own_accelerators, share_of_cores
from gift_train.distributed.ranks import CPU, MAIN, SINGLE, Ranks

PATIENCE = timedelta(minutes=20)  # for a rank that does not answer; a launcher ends the others at once when one of them dies
DEFAULT_PORT = 29500  # torchrun's and accelerate's own


@contextmanager
def init_distributed(device: str) -> Iterator[Ranks]:
    """The ranks of this run, as `accelerate launch` and `torchrun` tell them (WORLD_SIZE, RANK, LOCAL_RANK); one without them.

    Args:
        device: `cpu`, `cuda`, or `auto`; on several ranks each takes an accelerator of its own, see `devices.own_accelerator`.
    Raises: ConfigError if there is no such device for every rank, two have one, or the launcher did not tell enough.
    """
    world_size = number_from(os.environ, "WORLD_SIZE", default=1)
    if world_size == 1:
        yield SINGLE
        return
    ranks = _meet(device, world_size)
    if not ranks.is_main:
        Progress.is_shown = False
        logging.disable(logging.WARNING)  # the main rank says the same
    try:
        yield ranks
    except (Preempted, NonFiniteError) as error:  # met by all ranks at the same step
        ranks.leave_group()
        if ranks.is_main:
            raise
        raise SystemExit(error.exit_code) from error
    # After any other error nobody waits: a rank that died is no longer there to part from, and its launcher ends the rest.
    ranks.leave_group()


def _meet(device: str, world_size: int) -> Ranks:
    """Start the process group: on the CPU, or with each rank on its own accelerator."""
    require_kind(device)
    rank = number_from(os.environ, "RANK", default=-1)
    if not 0 <= rank < world_size or "MASTER_ADDR" not in os.environ:
        raise ConfigError(
            f"A launcher set WORLD_SIZE = {world_size}, but not RANK (0 to {world_size - 1}) and MASTER_ADDR as well. Start all processes"
            " with torchrun or accelerate launch, or unset WORLD_SIZE to train in one."
        )
    port = number_from(os.environ, "MASTER_PORT", default=DEFAULT_PORT)
    os.environ["MASTER_PORT"] = str(port)
    try:
        store, _, _ = next(rendezvous("env://", timeout=PATIENCE))
        places = _tell_places(store, device, rank, world_size)
        require_own_accelerators(places)
    except dist.DistError as error:
        where = f"{os.environ['MASTER_ADDR']}:{port} (MASTER_ADDR, MASTER_PORT)"
        raise ConfigError(f"{world_size} processes could not meet at {where}: {first_line(error)}") from error
    except ConfigError as error:
        if rank == MAIN:
            raise
        raise SystemExit(error.exit_code) from error  # all ranks find the same, and one tells it
    from accelerate import PartialState

    # accelerate computes on cuda:LOCAL_RANK and gives that number to barriers, so it is told the device's index among those seen here,
    # which is not the process's number where every process sees its own device alone. What it makes here, `process_state` finds again.
    index = places[rank].index
    with _environment_variable("LOCAL_RANK", str(local_rank_from(os.environ, default=0) if index is None else index)):
        state = PartialState(cpu=index is None, timeout=PATIENCE, store=store, rank=rank, world_size=world_size)
    if state.num_processes != world_size:
        raise ConfigError(f"The launcher speaks of {world_size} processes, {state.num_processes} met. Start them all in the same way.")
    return Ranks(rank, world_size, CPU if index is None else state.device, share_of_cores(places, rank))


def _tell_places(store: Store, device: str, rank: int, world_size: int) -> list[Place]:
    """The places of all ranks, through the store in which they meet: before there is a group, which would fail where two share a device.

    Raises: ConfigError, on all ranks, if one of them has none.
    """
    try:
        own = look_around(device).to_plain()
    except ConfigError as error:
        own = {"fault": str(error)}
    places = PrefixStore("gift/places", store)
    places.set(str(rank), json.dumps(own))
    told = [json.loads(places.get(str(other))) for other in range(world_size)]
    places.set(f"{rank} has read", "")
    if rank == MAIN:  # the store may end with this process
        places.wait([f"{other} has read" for other in range(world_size)])
    for other, place in enumerate(told):
        if "fault" in place:
            raise ConfigError(f"Process {other} of {world_size}: {place['fault']}")
    return [Place.from_plain(place) for place in told]


@contextmanager
def _environment_variable(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def is_main_process() -> bool:
    """Whether this process may speak to people; known before the ranks have met."""
    return number_from(os.environ, "RANK", default=MAIN) == MAIN or number_from(os.environ, "WORLD_SIZE", default=1) == 1


def require_one_process(command: str) -> None:
    """Raises ConfigError if a launcher started more than one process of a command that does not share its work."""
    found = number_from(os.environ, "WORLD_SIZE", default=1)
    if found > 1:
        raise ConfigError(f"{command} works in one process, found WORLD_SIZE = {found}. Start it without accelerate launch or torchrun.")
