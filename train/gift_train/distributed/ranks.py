"""What one process of a run knows of the others, and what they tell each other.

accelerate carries what travels: gather, reduce and broadcast of tensors and objects, barriers. It is imported where several ranks meet:
one process does without, and starts 0.15 s earlier. Ours is what accelerate does not have, each with its reason where it stands: whose
rows are whose (`share`), a gather with its own gradient (`_Gathered`), `synchronize_rng` and `all_or_none`.
"""

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from gift_shared.errors import GiftError

if TYPE_CHECKING:
    from accelerate import PartialState

T = TypeVar("T")
MAIN = 0
CPU = torch.device("cpu")
STEPS_BETWEEN_SYNCS = 10  # between two questions to all ranks: answering makes the host wait for the device


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

    def all_reduce(self, value: Tensor) -> Tensor:
        """The sum of a tensor over the ranks, as a new one."""
        if self.world_size == 1:
            return value
        from accelerate.utils import reduce

        total: Tensor = reduce(value.to(self.device), reduction="sum")
        return total.to(value.device)

    def start_sum(self, tensor: Tensor) -> Callable[[], None]:
        """Replace a tensor on this rank's device by its sum over the ranks, while others work on; what is returned waits for it."""
        if self.world_size == 1:
            return lambda: None
        work = dist.all_reduce(tensor, async_op=True)

        def wait() -> None:
            work.wait()

        return wait

    def any_rank(self, claim: bool) -> bool:
        """Whether any rank claims it."""
        return bool(self.all_reduce(torch.tensor(int(claim))))

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        if self.world_size > 1:
            process_state().wait_for_everyone()

    def main_process_first(self, make: Callable[[], T]) -> T:
        """make() on every rank, on the main one before the others: what it leaves on disk they find."""
        if self.world_size == 1:
            return make()
        with process_state().main_process_first():
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
        """Wait for all ranks and let go of each other, at a place that all of them reach; once."""
        if self.world_size > 1 and dist.is_initialized():
            self.barrier()
            process_state().destroy_process_group()

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


def process_state() -> "PartialState":
    """accelerate's view of the process group, as `launch.init_distributed` made it."""
    from accelerate import PartialState

    return PartialState()
