"""Weight consolidation: the Fisher that GIFT reads off one batch, and the penalties that hold weights near their anchor.

The penalties are quadratic, so their gradient is known in closed form; `add_penalty_gradient` adds it without an autograd graph over
every parameter. `weighted_squared_distance` is the same equation to read, and the test of the other. All tensors of a model lie in one
buffer (`flat_tensors`), so what is asked of a device does not grow with their number.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gift_shared.errors import ShapeError
from gift_train.clip.flat_tensors import CHUNK, FlatLayout, FlatTensors, Piece, add_gradients

FISHER_FLOOR = 1e-6  # weight of a tensor that the replay loss does not reach (its mean squared gradient is 0 or absent)

Weights = Mapping[str, Tensor]


class Fisher(Protocol):
    """F: which weights a loss leans on."""

    def times(self, difference: Tensor, piece: Piece) -> Tensor:
        """F difference for a piece of the weights' layout, as a new tensor."""


@dataclass(frozen=True)
class HeldFisher:
    """F as it is, entry by entry."""

    entries: FlatTensors

    def times(self, difference: Tensor, piece: Piece) -> Tensor:
        return difference * self.entries.buffer[piece.entries]


@dataclass(frozen=True)
class BatchFisher:
    """F_p = floor_p + G_p^2 / divisor_p, made of the gradient G where it is wanted: it takes no memory of its own.

    floors, divisors: [chunks], that of its tensor for each chunk.
    """

    gradient: FlatTensors
    floors: Tensor
    divisors: Tensor

    def times(self, difference: Tensor, piece: Piece) -> Tensor:
        return self._entries(piece).mul_(difference)

    def held(self) -> FlatTensors:
        """All entries."""
        return FlatTensors(self.gradient.layout, torch.cat([self._entries(piece) for piece in self.gradient.layout.pieces()]))

    def _entries(self, piece: Piece) -> Tensor:
        gradient = self.gradient.buffer[piece.entries]
        by_chunk = (gradient * gradient).view(-1, CHUNK)
        floors, divisors = self.floors[piece.chunks, None], self.divisors[piece.chunks, None]
        return torch.addcdiv(floors, by_chunk, divisors, out=by_chunk).view(-1)


@dataclass(frozen=True, kw_only=True)
class Penalty:
    """One term weight * sum_p sum_i F_{p,i} (theta_{p,i} - anchor_{p,i})^2; `fisher=None` stands for F = 1 everywhere."""

    name: str
    weight: float
    theta: FlatTensors  # the trained weights themselves, see `Backbone.flat_weights`
    anchor: FlatTensors
    fisher: Fisher | None = None


@torch.no_grad()
def batch_fisher(gradient: FlatTensors) -> BatchFisher:
    """Which weights the replay loss of this batch leans on, read from its gradient.

    F_p = G_p^2 / mean(G_p^2) for each tensor p on its own (mean over its entries), G = gradient of the *batch's* loss.
    F_p = 1e-6 where its square has mean 0 (else 0/0), also because the loss does not reach the tensor.

    Args:
        gradient: of the replay loss and nothing else, 0 where there is none. Good until it changes.
    Returns: F; every tensor that has a gradient gets mean 1.
    Source: GIFT (arXiv 2503.04229), adaptive weight consolidation; normalised per tensor as in the authors' code only.
    """
    layout = gradient.layout
    norms = [torch.linalg.vector_norm(gradient.buffer[piece.entries].view(-1, CHUNK), dim=1) for piece in layout.pieces()]
    sums = layout.sums((norms[0] if len(norms) == 1 else torch.cat(norms)).square_())
    # Without a branch on a device value: floor + 0 / floor where the mean is 0, 0 + square / mean elsewhere.
    floors = (sums == 0) * FISHER_FLOOR
    return BatchFisher(gradient, floors, torch.addcdiv(floors, sums, layout.entries_of))


@torch.no_grad()
def running_mean(average: FlatTensors | None, latest: FlatTensors, num_averaged: int) -> FlatTensors:
    """(k average + latest) / (k + 1) for each entry, k = `num_averaged`; the first call passes None and 0."""
    if average is None or num_averaged == 0:
        return FlatTensors(latest.layout, latest.buffer.clone())
    return FlatTensors(latest.layout, (num_averaged * average.buffer + latest.buffer) / (num_averaged + 1))


@torch.no_grad()
def interpolate(first: Weights, second: Weights, second_share: float) -> dict[str, Tensor]:
    """(1 - a) first + a second for each tensor, a = `second_share`, a fraction; on the device of `first`."""
    return {name: (1 - second_share) * tensor + second_share * second[name].to(tensor.device) for name, tensor in first.items()}


def weighted_squared_distance(parameters: Weights, anchor: Weights, fisher: Weights | None = None) -> Tensor:
    """L = sum_p sum_i F_{p,i} (theta_{p,i} - anchor_{p,i})^2, a sum and not a mean; F = 1 gives the l2 baseline's penalty.

    Args:
        parameters, anchor, fisher: by name, equal shapes. Gradients flow to `parameters` only if the others are detached.
    Returns: scalar.
    """
    terms = []
    for name, parameter in parameters.items():
        difference = _difference(name, parameter, anchor)
        terms.append((difference**2 if fisher is None else fisher[name] * difference**2).sum())
    return torch.stack(terms).sum()


@torch.no_grad()
def add_penalty_gradient(parameters: Weights, penalty: Penalty, gradient: FlatTensors | None = None) -> Tensor:
    """Add the penalty's gradient, 2 weight F (theta - anchor), to every `.grad` and return its value, weight included.

    Args:
        parameters: those of the penalty's `theta` by name; `.grad` is changed in place, and created where it is None.
        gradient: another one that is added as well, such as the replay loss's, which the Fisher may be made of; overwritten.
    Returns: scalar, detached: the same number as weight * `weighted_squared_distance`.
    """
    layout, values = penalty.theta.layout, []
    _require_same_places(layout, penalty.anchor.layout)
    for piece in layout.pieces():
        places = piece.entries
        difference = penalty.theta.buffer[places] - penalty.anchor.buffer[places]
        pull = difference if penalty.fisher is None else penalty.fisher.times(difference, piece)
        whole = pull * (2 * penalty.weight) if gradient is None else gradient.buffer[places].add_(pull, alpha=2 * penalty.weight)
        add_gradients(parameters, layout.views(whole, piece))
        values.append(difference.mul_(pull).sum())
    return penalty.weight * (values[0] if len(values) == 1 else torch.stack(values).sum())


def _difference(name: str, parameter: Tensor, anchor: Weights) -> Tensor:
    _require_shape(name, parameter, anchor)
    return parameter - anchor[name]


def _require_shape(name: str, parameter: Tensor, anchor: Weights) -> None:
    if name not in anchor or anchor[name].shape != parameter.shape:
        found = list(anchor[name].shape) if name in anchor else "nothing"
        raise ShapeError(f"Anchor of {name!r} should be {list(parameter.shape)}, found {found}.")


def _require_same_places(layout: FlatLayout, anchor: FlatLayout) -> None:
    for name, shape in layout.shapes.items():
        if anchor.shapes.get(name) != shape:
            found = list(anchor.shapes[name]) if name in anchor.shapes else "nothing"
            raise ShapeError(f"Anchor of {name!r} should be {list(shape)}, found {found}.")
    if layout != anchor:
        raise ShapeError(f"The anchor should hold {layout.dtype} on {layout.device} and nothing else, found other tensors.")
