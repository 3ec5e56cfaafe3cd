"""Memory for time: what a backward pass needs is computed again when its turn comes, not kept from the forward pass until then.

At two grains: rows of a batch, a few at a time (`in_micro_batches`: gradient accumulation under a loss that spans the batch, GradCache,
Gao et al., arXiv 2101.06983), and blocks of a tower (`recompute_blocks`: gradient checkpointing, Chen et al., arXiv 1604.06174). Values
and gradients are the plain ones, up to the order of floating-point sums.

What stands around a forward pass stands around its repetition too: random state and autocast as torch keeps them, and everything that is
held in a context variable. Code that counts or collects while it is passed asks `is_repetition`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Call = Callable[..., Any]  # (function, *arguments) -> what the function gives: `plainly` or `recomputed`


@dataclass(frozen=True)
class MicroBatch:
    """Which of the rows given to be encoded pass now, and what the micro-batches of these rows tell each other."""

    rows: slice
    shared: dict[Any, Any]


_classes: dict[type[nn.Module], type[nn.Module]] = {}  # of blocks, and what they become
_is_repetition = ContextVar("is_repetition", default=False)
_micro_batch: ContextVar[MicroBatch | None] = ContextVar("micro_batch", default=None)


def is_repetition() -> bool:
    """Whether what runs now has run before and is only computed again for a backward pass."""
    return _is_repetition.get()


def micro_batch() -> MicroBatch | None:
    """The micro-batch that is passing; None if all rows pass at once."""
    return _micro_batch.get()


def plainly(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """function(*arguments), as it is."""
    return function(*arguments, **named)


def recomputed(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """function(*arguments), of whose inside nothing is kept; the backward pass calls it again.

    Without gradients it is called as it is: then nothing is kept anyway.
    """
    if not torch.is_grad_enabled():
        return function(*arguments, **named)
    surroundings, calls = copy_context(), itertools.count()

    def call(*arguments: Any, **named: Any) -> Any:
        here = surroundings.copy()  # one can be entered once, and repetitions nest
        if next(calls) > 0:
            here.run(_is_repetition.set, True)
        return here.run(function, *arguments, **named)

    return checkpoint(call, *arguments, use_reentrant=False, **named)


def in_micro_batches(encode: Callable[[Tensor], Tensor], rows: Tensor, size: int | None) -> Tensor:
    """encode(rows) [K, ...] for rows [K, ...], `size` rows at a time and each time recomputed; all at once if None, or without gradients.

    Only the features of all rows are there at once, so a loss may mix them as it likes.
    """
    if size is None or len(rows) <= size or not torch.is_grad_enabled():
        return encode(rows)
    shared: dict[Any, Any] = {}
    parts = [MicroBatch(slice(start, start + size), shared) for start in range(0, len(rows), size)]
    return torch.cat([recomputed(partial(_encode_part, encode, part), rows) for part in parts])


def _encode_part(encode: Callable[[Tensor], Tensor], part: MicroBatch, rows: Tensor) -> Tensor:
    before = _micro_batch.set(part)
    try:
        return encode(rows[part.rows])
    finally:
        _micro_batch.reset(before)


def recompute_blocks(tower: nn.Module) -> int:
    """Recompute each block of a tower whenever it is called, its hooks too. Returns how many blocks there are.

    Blocks are modules of one class that stand in a row: those of a transformer, a ResNet, a ConvNeXt. Which of them are found decides
    about memory alone.
    """
    blocks = list(_blocks(tower))
    for block in blocks:
        block.__class__ = _recomputed_class(type(block))
    return len(blocks)


def _recomputed_class(block_class: type[nn.Module]) -> type[nn.Module]:
    """One for each class, so that blocks of one class stay of one class."""
    if issubclass(block_class, _Recomputed):
        return block_class
    if block_class not in _classes:
        _classes[block_class] = type(block_class.__name__, (_Recomputed, block_class), {})
    return _classes[block_class]


class _Recomputed:
    """What a block's class also is, so that calling the block is recomputed. Attributes, hooks and names in the state dict stay."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return recomputed(super().__call__, *arguments, **named)  # type: ignore[misc]


def _blocks(tower: nn.Module) -> Iterator[nn.Module]:
    """Members of the innermost lists and sequences of modules of one class that have weights. A sequence of one is no row."""
    for module in tower.modules():
        members = list(module.children()) if isinstance(module, nn.ModuleList | nn.Sequential) else []
        is_row = isinstance(module, nn.ModuleList) or len(members) > 1
        if is_row and _are_alike(members) and not any(_holds_row(member) for member in members):
            yield from members


def _are_alike(members: list[nn.Module]) -> bool:
    return len({type(member) for member in members}) == 1 and any(True for _ in members[0].parameters())


def _holds_row(module: nn.Module) -> bool:
    return any(True for _ in _blocks(module))
