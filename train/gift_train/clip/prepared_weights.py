"""What products take in place of a weight, made once for all passes between two updates: it times a factor, and in autocast's precision.

Autocast would cast a weight anew in each forward pass, and a weight times a factor is no weight to it: never remembered. Here both are
one operation. Values and gradients are those of multiplying and then casting, to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor


class PreparedWeights:
    """Weights as the products of one network take them. Good until one of them changes."""

    def __init__(self, dtype: torch.dtype | None = None, *, keeps: bool = True) -> None:
        """dtype: of autocast; None where there is none. keeps: or makes them anew for each product, for less memory."""
        self._dtype = dtype
        self._keeps = keeps
        self._made: dict[tuple[int, float, bool, bool], Tensor] = {}

    @contextmanager
    def used(self) -> Iterator[None]:
        """Inside, `prepared` looks here."""
        before = _current.set(self)
        try:
            yield
        finally:
            _current.reset(before)

    def get(self, weight: Tensor, factor: float, *, divides: bool) -> Tensor:
        """See `prepared`."""
        dtype = self._dtype or weight.dtype
        if factor == 1 and dtype == weight.dtype:
            return weight
        key = (id(weight), factor, divides, torch.is_grad_enabled())  # without a graph it must not serve where one is wanted
        found = self._made.get(key)
        if found is None:
            found = torch.as_tensor(_Prepared.apply(weight, factor, divides, dtype))
            if self._keeps:
                self._made[key] = found
        return found


_current: ContextVar[PreparedWeights | None] = ContextVar("prepared_weights", default=None)


def prepared(weight: Tensor, factor: float = 1.0, *, divides: bool = False) -> Tensor:
    """A weight times a factor, or divided by it, for a product."""
    kept = None if torch.compiler.is_compiling() else _current.get()
    if kept is not None:
        return kept.get(weight, factor, divides=divides)
    if factor == 1:
        return weight
    return weight / factor if divides else weight * factor


class _Prepared(torch.autograd.Function):
    """Keeps nothing for the backward pass, so that passes of which one is already gone may share what it gives."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, factor: float, divides: bool, dtype: torch.dtype) -> Tensor:
        ctx.factor, ctx.divides, ctx.dtype = factor, divides, weight.dtype
        if factor == 1:
            return weight.to(dtype)
        made = torch.empty_like(weight, dtype=dtype)
        return torch.div(weight, factor, out=made) if divides else torch.mul(weight, factor, out=made)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None, None]:
        gradient = gradients[0].to(ctx.dtype)
        if ctx.factor != 1:
            gradient = gradient / ctx.factor if ctx.divides else gradient * ctx.factor
        return gradient, None, None, None
