"""The deltas of several tasks as one that all share, and for each task a mask of bits and a factor that give its own back, nearly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Unified:
    """What `unify` made of T tasks.

    delta: delta_uni by parameter. masks: M_i by parameter, uint8 [T, ceil(N / 8)], as `packed` has it. rescalers: lambda [T].
    """

    delta: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    rescalers: Tensor

    @property
    def num_tasks(self) -> int:
        return len(self.rescalers)

    def of_task(self, name: str, number: int) -> Tensor:
        """lambda_i M_i * delta_uni of one parameter, in its shape: what is left of task i's own delta."""
        delta = self.delta[name]
        return delta * unpacked(self.masks[name][number], delta.numel()).view_as(delta) * self.rescalers[number]

    def to(self, device: torch.device) -> Unified:
        """The same there."""
        delta = {name: tensor.to(device) for name, tensor in self.delta.items()}
        return Unified(delta, {name: tensor.to(device) for name, tensor in self.masks.items()}, self.rescalers.to(device))

    def state_dict(self) -> dict[str, Tensor]:
        """As tensors by name: delta/NAME, masks/NAME, rescalers."""
        delta = {f"delta/{name}": tensor for name, tensor in self.delta.items()}
        return delta | {f"masks/{name}": tensor for name, tensor in self.masks.items()} | {"rescalers": self.rescalers}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Unified:
        """Of what `state_dict` gave; other names are passed over."""
        delta = {name.removeprefix("delta/"): tensor for name, tensor in state.items() if name.startswith("delta/")}
        return cls(delta, {name: state[f"masks/{name}"] for name in delta}, state["rescalers"])


def unify(deltas: Iterable[tuple[str, Tensor]]) -> Unified:
    """One delta for all tasks, parameter by parameter; it lies on the CPU.

    s = sign(mean_i delta_i), -1 for 0;   M_i = [s delta_i > 0];   delta_uni = s max_i |M_i delta_i|
    lambda_i = sum_p mean |delta_i| / sum_p mean |M_i delta_uni|, sums over parameters p, means over the entries of each

    Of one task it is the task's delta itself, lambda = 1. Where a mask keeps nothing, lambda is 1 too: the published code divides by 0.

    Args:
        deltas: each parameter's name, once, and its deltas [T, ...]. They may be made as they are asked for: one parameter is in memory.
    Source: ConDU (arXiv 2503.10705), as its public code computes it; after EMR-Merging (arXiv 2405.17461).
    """
    unified: dict[str, Tensor] = {}
    masks: dict[str, Tensor] = {}
    own: Tensor | None = None
    kept: Tensor | None = None
    for name, stacked in deltas:
        rows = stacked.reshape(len(stacked), -1)
        sign = torch.where(rows.mean(dim=0) > 0, 1.0, -1.0)
        mask = rows * sign > 0
        largest = rows.abs().mul_(mask).amax(dim=0)
        unified[name] = (sign * largest).view(stacked.shape[1:]).cpu()
        masks[name] = packed(mask).cpu()
        sizes, sizes_kept = rows.abs().mean(dim=1), (mask * largest).mean(dim=1)
        own = sizes if own is None else own + sizes
        kept = sizes_kept if kept is None else kept + sizes_kept
    assert own is not None
    assert kept is not None
    return Unified(unified, masks, torch.where(kept > 0, own / kept, 1.0).cpu())


def packed(mask: Tensor) -> Tensor:
    """Bool [..., N] -> uint8 [..., ceil(N / 8)]: entry n is bit n % 8, from the lowest, of byte n // 8. Bits left over are 0."""
    padded = F.pad(mask.to(torch.uint8), (0, -mask.shape[-1] % 8)).unflatten(-1, (-1, 8))
    bits: Tensor = padded << _bit_numbers(mask.device)
    return bits.sum(dim=-1, dtype=torch.uint8)


def unpacked(bits: Tensor, num_entries: int) -> Tensor:
    """The first `num_entries` of what was `packed`, bool [..., N]."""
    return (bits[..., None] >> _bit_numbers(bits.device)).bitwise_and_(1).flatten(-2)[..., :num_entries].bool()


def _bit_numbers(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)
