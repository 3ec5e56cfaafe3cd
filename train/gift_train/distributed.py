"""One training step on several processes: who takes which rows, and how all of them come by the same numbers.

A *rank* is one process of a run. Every rank holds the whole student and encodes its share of a batch; features are gathered, so every
rank computes the loss of the whole batch. Going backward, a rank follows its own rows alone and needs nobody: the sum of all ranks'
gradients is the gradient that one process would have. That holds where parameters reach the loss through gathered rows only.

One process is the rule: then everything here hands back what it is given, and torch.distributed is not touched.

accelerate starts the process group (`PartialState`), once all ranks have told each other through its store where they are and none takes
another's device; and it carries what travels: gather, reduce and broadcast of tensors and objects, barriers. It is imported where several
ranks meet: one process does without, and starts 0.15 s earlier. Ours is what accelerate does not have, each with its reason where it
stands: whose rows are whose (`share`), a gather with its own gradient (`_Gathered`), gradients summed in buckets, `synchronize_rng` and
`all_or_none`.
"""

import json
import logging
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from gift_shared.errors import ConfigError, GiftError, NonFiniteError, Preempted, first_line
from gift_shared.launchers import local_rank_from, number_from
from gift_shared.progress import Progress
from gift_train.devices import Place, look_around, require_kind, require_own_accelerators, share_of_cores

if TYPE_CHECKING:
    from accelerate import PartialState

T = TypeVar("T")
MAIN = 0
CPU = torch.device("cpu")
PATIENCE = timedelta(minutes=20)  # for a rank that does not answer; a launcher ends the others at once when one of them dies
STEPS_BETWEEN_SYNCS = 10  # between two questions to all ranks: answering makes the host wait for the device
DEFAULT_PORT = 29500  # torchrun's and accelerate's own
BUCKET_ENTRIES = 2**24  # gradients that travel together: 64 MiB of float32


@dataclass(frozen=True)
class Ranks:
    """One process among those of its run. `device` is where its student lies, `num_cores` its share of the machine's cores."""

    rank: int = MAIN
    world_size: int = 1
    device: torch.device = CPU
    num_cores: int | None = None  # None of the only process: all that it may use

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that reads and writes the run folder and speaks to people."""
        return self.rank == MAIN

    def share(self, num_rows: int) -> slice:
        """The rank's consecutive part of so many rows, equal among ranks up to one row.

        Of fewer rows than ranks everybody takes all, and the main rank's count: a network is never asked for no rows at all.
        """
        if num_rows < self.world_size:
            return slice(0, num_rows)
        bounds = self._bounds(num_rows)
        return slice(bounds[self.rank], bounds[self.rank + 1])

    def counts(self, num_rows: int) -> bool:
        """Whether this rank's share of so many rows is its own, and not another one's too."""
        return self.is_main or num_rows >= self.world_size

    def all_gather(self, own: Tensor, num_rows: int) -> Tensor:
        """Every rank's rows of a batch, in their order: own [share, ...] -> [num_rows, ...], the same on all ranks.

        The gradient of `own` is that of the loss with respect to its rows; no rank waits for another on the way back.
        """
        return own if self.world_size == 1 else _Gathered.apply(own, num_rows, self)

    def encode(self, encoder: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        """encoder(rows), each rank encoding its share: for rows that every rank holds, such as class prompts."""
        return self.all_gather(encoder(rows[self.share(len(rows))]), len(rows))

    @torch.no_grad()
    def all_reduce_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace every `.grad` by its sum over the ranks. One that no rank has stays None, one that some have counts as 0 elsewhere.

        Not DistributedDataParallel, which reduces during one backward pass: a step has several, and the Fisher is read between them. Nor
        accelerate's reduce, which copies tensor by tensor where a bucket travels at once.

        Which ones there are is asked first, and waited for: the one moment of a step at which the host knows less than the device.
        """
        if self.world_size == 1:
            return
        listed = list(parameters)
        exists = torch.tensor([parameter.grad is not None for parameter in listed], dtype=torch.int32, device=self.device)
        owners = self.all_reduce(exists).tolist()
        chosen = [parameter for parameter, num_owners in zip(listed, owners, strict=True) if num_owners]
        for parameter in chosen:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in chosen if parameter.grad is not None]
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat)
            parts = flat.split_with_sizes([gradient.numel() for gradient in bucket])
            torch._foreach_copy_(bucket, [part.view_as(gradient) for part, gradient in zip(parts, bucket, strict=True)])

    def all_reduce(self, value: Tensor) -> Tensor:
        """The sum of a tensor over the ranks, as a new one."""
        if self.world_size == 1:
            return value
        from accelerate.utils import reduce

        total: Tensor = reduce(value.to(self.device), reduction="sum")
        return total.to(value.device)

    def any_rank(self, claim: bool) -> bool:
        """Whether any rank claims it."""
        return bool(self.all_reduce(torch.tensor(int(claim))))

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        if self.world_size > 1:
            _state().wait_for_everyone()

    def main_process_first(self, make: Callable[[], T]) -> T:
        """make() on every rank, on the main one before the others: what it leaves on disk they find."""
        if self.world_size == 1:
            return make()
        with _state().main_process_first():
            return make()

    def gather_object(self, value: T) -> list[T]:
        """A small object of every rank, in the order of ranks; all ranks get the list."""
        if self.world_size == 1:
            return [value]
        from accelerate.utils import gather_object

        values: list[T] = gather_object([value])  # it joins the lists of all ranks
        return values

    def broadcast_object(self, make: Callable[[], T]) -> T:
        """What the main rank makes, a small object, on all ranks. The others do not make it."""
        if self.world_size == 1:
            return make()
        from accelerate.utils import broadcast_object_list

        made: T = broadcast_object_list([make() if self.is_main else None], from_process=MAIN)[0]
        return made

    @torch.no_grad()
    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite these tensors, of equal shapes on all ranks, with the main rank's."""
        if self.world_size == 1:
            return
        from accelerate.utils import broadcast

        for tensor in tensors:
            if tensor.numel():
                tensor.copy_(broadcast(tensor.to(self.device).contiguous(), from_process=MAIN))

    def broadcast_tensors(self, tensors: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """The main rank's tensors by name on all ranks, on the CPU; the others give None."""
        held = {} if tensors is None else dict(tensors)
        if self.world_size == 1:
            return held
        forms = self.broadcast_object(lambda: {name: (tensor.shape, tensor.dtype) for name, tensor in held.items()})
        if not self.is_main:
            held = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in forms.items()}
        self.broadcast(held.values())
        return held

    def synchronize_rng(self) -> None:
        """Let every rank's generators go on from the main rank's state, those of its own device included.

        Not accelerate's synchronize_rng_states, which knows torch's generators alone: datasets draw from Python's and NumPy's too.
        """
        if self.world_size == 1:
            return
        cpu = torch.get_rng_state()
        self.broadcast([cpu])
        torch.set_rng_state(cpu)
        if self.device.type == "cuda":
            own = torch.cuda.get_rng_state(self.device)
            self.broadcast([own])
            torch.cuda.set_rng_state(own, self.device)
        others = self.broadcast_object(lambda: (random.getstate(), np.random.get_state()))
        random.setstate(others[0])
        np.random.set_state(others[1])

    def all_or_none(self, make: Callable[[], T]) -> T:
        """make() on every rank, which must not talk to other ranks meanwhile; if it fails on any, all of them leave.

        accelerate has nothing like it: there, the others wait for the one that failed until the launcher kills them.

        Raises: on the main rank GiftError or OSError, its own or one that tells which other process met it; SystemExit elsewhere.
        """
        if self.world_size == 1:
            return make()
        error: GiftError | OSError | None = None
        try:
            made = make()
        except (GiftError, OSError) as caught:
            error = caught
        met = self.gather_object(None if error is None else str(error))
        if not any(message is not None for message in met):
            return made
        self.leave_group()
        if not self.is_main:
            raise SystemExit(GiftError.exit_code)
        if error is not None:
            raise error
        rank = next(number for number, message in enumerate(met) if message is not None)
        raise GiftError(f"Process {rank} of {self.world_size}: {met[rank]}")

    def leave_group(self) -> None:
        """Wait for all ranks and let go of each other, at a place that all of them reach."""
        if self.world_size > 1:
            self.barrier()
            _state().destroy_process_group()

    def _bounds(self, num_rows: int) -> list[int]:
        return [num_rows * rank // self.world_size for rank in range(self.world_size + 1)]

    def _all_rows(self, own: Tensor, num_rows: int) -> Tensor:
        from accelerate.utils import broadcast, gather

        if num_rows < self.world_size:
            counted: Tensor = broadcast(own.detach().clone(memory_format=torch.contiguous_format), from_process=MAIN)
            return counted
        bounds = self._bounds(num_rows)
        most = -(-num_rows // self.world_size)
        padded = own.new_zeros(most, *own.shape[1:])  # accelerate gathers equal shapes
        padded[: len(own)] = own
        by_rank = gather(padded).split(most)
        return torch.cat([part[: bounds[rank + 1] - bounds[rank]] for rank, part in enumerate(by_rank)])


SINGLE = Ranks()


class _Gathered(torch.autograd.Function):
    """Forward: all ranks' rows. Backward: the gradient of this rank's own.

    Not accelerate's gather, which has no gradient, nor torch.distributed.nn's all_gather, whose backward pass waits for all ranks again.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, num_rows: int, ranks: Ranks) -> Tensor:
        ctx.own = ranks.share(num_rows)
        rows = ranks._all_rows(own, num_rows)
        if num_rows < ranks.world_size and not ranks.is_main:
            ctx.mark_non_differentiable(rows)  # everybody encoded these rows; they must count once
        return rows

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        return gradients[0][ctx.own], None, None


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
    # which is not the process's number where every process sees its own device alone. What it makes here, `_state` finds again.
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


def _state() -> "PartialState":
    """accelerate's view of the process group, as `init_distributed` made it."""
    from accelerate import PartialState

    return PartialState()


def is_main_process() -> bool:
    """Whether this process may speak to people; known before the ranks have met."""
    return number_from(os.environ, "RANK", default=MAIN) == MAIN or number_from(os.environ, "WORLD_SIZE", default=1) == 1


def require_one_process(command: str) -> None:
    """Raises ConfigError if a launcher started more than one process of a command that does not share its work."""
    found = number_from(os.environ, "WORLD_SIZE", default=1)
    if found > 1:
        raise ConfigError(f"{command} works in one process, found WORLD_SIZE = {found}. Start it without accelerate launch or torchrun.")


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Consecutive tensors of one type, up to BUCKET_ENTRIES entries together."""
    bucket: list[Tensor] = []
    num_entries = 0
    for tensor in tensors:
        if bucket and (tensor.dtype != bucket[0].dtype or num_entries + tensor.numel() > BUCKET_ENTRIES):
            yield bucket
            bucket, num_entries = [], 0
        bucket.append(tensor)
        num_entries += tensor.numel()
    if bucket:
        yield bucket
