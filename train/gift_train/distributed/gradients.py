"""Gradients summed over ranks while the backward pass still makes others.

Not DistributedDataParallel, which reduces during one backward pass: a step has several, and the Fisher is read between them. Nor
accelerate's reduce, which copies tensor by tensor where a bucket travels at once.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gift_train.distributed.ranks import Ranks

BUCKET_ENTRIES = 2**24  # gradients that travel together: 64 MiB of float32


class GradientSum:
    """Replaces every `.grad` by its sum over the ranks. One that no rank has stays None, one that some have counts as 0 elsewhere.

    Which ones there are is asked first, and waited for: a moment at which the host knows less than the device. Where it is the same at
    every step it is asked at the first alone. From then on gradients travel in buckets, in the order in which the main rank came by them
    at the first step: a bucket leaves when its last gradient is there and all before it have left.
    """

    def __init__(self, ranks: Ranks, parameters: Iterable[Tensor], *, may_vary: bool) -> None:
        """may_vary: whether parameters have a gradient at one step and none at another."""
        self._ranks, self._trained, self._may_vary = ranks, list(parameters), may_vary
        self._buckets: list[list[int]] | None = None  # numbers of parameters, once they are known
        self._journey: _Journey | None = None
        if ranks.world_size > 1:
            # Parameters live longer than the task whose gradients are summed here.
            note = weakref.WeakMethod(self._note)
            hooked = enumerate(self._trained)
            handles = [parameter.register_post_accumulate_grad_hook(partial(_tell, note, number)) for number, parameter in hooked]
            weakref.finalize(self, _remove, handles)

    @contextmanager
    def during_backward(self) -> Iterator[None]:
        """The step's last backward pass goes on inside; at the end all gradients are sums."""
        if self._ranks.world_size == 1 or not self._trained:
            yield
            return
        self._journey = journey = _Journey(self._buckets or [])
        yield
        self._journey = None
        if self._buckets is None:
            journey.buckets = self._asked(journey.arrived)
        if not self._may_vary:
            self._buckets = journey.buckets
        self._finish(journey)

    def _note(self, number: int) -> None:
        """A parameter's gradient is there. One of another pass than the last is not told on: that goes on from it."""
        journey = self._journey
        if journey is not None:
            journey.arrived[number] = None
            while journey.is_next_whole:
                self._send_next(journey)

    @torch.no_grad()
    def _asked(self, arrived: Iterable[int]) -> list[list[int]]:
        """Parameters that have a gradient on any rank, in buckets."""
        exists = torch.tensor([parameter.grad is not None for parameter in self._trained], dtype=torch.int32)
        chosen = [number for number, num_owners in enumerate(self._ranks.all_reduce(exists).tolist()) if num_owners]
        order = {number: place for place, number in enumerate(self._ranks.broadcast_object(lambda: [*arrived]))}
        chosen.sort(key=lambda number: order.get(number, len(order)))
        return list(_buckets(chosen, self._trained))

    @torch.no_grad()
    def _send_next(self, journey: _Journey) -> None:
        """The next bucket, whether all of it is there or not."""
        bucket = journey.buckets[len(journey.sent)]
        flat = torch.cat([gradient.flatten() for gradient in self._gradients(bucket)])
        journey.sent.append((flat, self._ranks.start_sum(flat)))

    @torch.no_grad()
    def _finish(self, journey: _Journey) -> None:
        known = {number for bucket in journey.buckets for number in bucket}
        own = {number for number, parameter in enumerate(self._trained) if parameter.grad is not None}
        assert own <= known, "a parameter that had no gradient at the first step has one now: the method should say that gradients vary"
        while len(journey.sent) < len(journey.buckets):
            self._send_next(journey)
        for bucket, (flat, wait) in zip(journey.buckets, journey.sent, strict=True):
            wait()
            gradients = self._gradients(bucket)
            parts = flat.split_with_sizes([gradient.numel() for gradient in gradients])
            torch._foreach_copy_(gradients, [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)])

    def _gradients(self, bucket: Sequence[int]) -> list[Tensor]:
        """Of a bucket's parameters, 0 where this rank has none."""
        gradients = []
        for number in bucket:
            parameter = self._trained[number]
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        return gradients


@dataclass
class _Journey:
    """One step's gradients: the buckets they travel in, which are there, and what is on its way."""

    buckets: list[list[int]]
    arrived: dict[int, None] = field(default_factory=dict)  # in their order
    sent: list[tuple[Tensor, Callable[[], None]]] = field(default_factory=list)

    @property
    def is_next_whole(self) -> bool:
        if len(self.sent) == len(self.buckets):
            return False
        return all(number in self.arrived for number in reversed(self.buckets[len(self.sent)]))  # the last is the one to wait for


def _tell(note: weakref.WeakMethod[Any], number: int, _: Tensor) -> None:
    told = note()
    if told is not None:
        told(number)


def _remove(handles: Iterable[Any]) -> None:
    for handle in handles:
        handle.remove()


def _buckets(numbers: Iterable[int], parameters: Sequence[Tensor]) -> Iterator[list[int]]:
    """Consecutive ones of one type, up to BUCKET_ENTRIES entries together."""
    bucket: list[int] = []
    num_entries = 0
    for number in numbers:
        parameter = parameters[number]
        if bucket and (parameter.dtype != parameters[bucket[0]].dtype or num_entries + parameter.numel() > BUCKET_ENTRIES):
            yield bucket
            bucket, num_entries = [], 0
        bucket.append(number)
        num_entries += parameter.numel()
    if bucket:
        yield bucket
