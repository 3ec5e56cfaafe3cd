"""Weight consolidation: the Fisher that GIFT reads off one batch, and the penalties that hold weights near their anchor.

The penalties are quadratic, so their gradient is known in closed form; `add_penalty_gradient` writes it into `.grad` without
an autograd graph over every parameter. `weighted_squared_distance` is the same equation to read, and the test of the other.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gift_shared.errors import ShapeError

FISHER_FLOOR = 1e-6  # weight of a tensor that the replay loss does not reach (its mean squared gradient is 0 or absent)
CACHED_ENTRIES = 2**20  # 4 MiB of float32

Weights = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Penalty:
    """One term weight * sum_p sum_i F_{p,i} (theta_{p,i} - anchor_{p,i})^2; `fisher=None` stands for F = 1 everywhere."""

    name: str
    weight: float
    anchor: Weights
    fisher: Weights | None = None


@torch.no_grad()
def batch_fisher(parameters: Weights) -> dict[str, Tensor]:
    """Which weights the replay loss of this batch leans on, read from `.grad`.

    F_p = G_p^2 / mean(G_p^2) for each tensor p on its own (mean over its entries), G = gradient of the *batch's* loss.
    F_p = 1e-6 where there is no gradient or its square has mean 0 (else 0/0).

    Args:
        parameters: by name; their `.grad` must hold the replay loss's gradient and nothing else. Not changed.
    Returns: by name, each shaped like its parameter and detached; every tensor that has a gradient gets mean 1.
    Source: GIFT (arXiv 2503.04229), adaptive weight consolidation; normalised per tensor as in the authors' code only.
    """
    names = [name for name, parameter in parameters.items() if parameter.grad is not None]
    gradients = [parameter.grad for parameter in parameters.values() if parameter.grad is not None]
    fisher = {name: torch.full_like(parameter, FISHER_FLOOR) for name, parameter in parameters.items() if parameter.grad is None}
    if not gradients:
        return fisher
    squares = torch._foreach_mul(gradients, gradients)
    means = torch.stack([square.mean() for square in squares])
    # Without a branch on a device value: floor + 0 / 1 where the mean is 0, 0 + square / mean elsewhere.
    is_dead = means == 0
    floors, divisors = (is_dead * FISHER_FLOOR).unbind(), torch.where(is_dead, 1.0, means).unbind()
    for name, floor, square, divisor in zip(names, floors, squares, divisors, strict=True):
        fisher[name] = torch.addcdiv(floor, square, divisor, out=square)
    return fisher


@torch.no_grad()
def running_mean(average: Weights | None, latest: Weights, num_averaged: int) -> dict[str, Tensor]:
    """(k average + latest) / (k + 1) for each tensor, k = `num_averaged`; the first call passes None and 0."""
    if average is None or num_averaged == 0:
        return {name: tensor.detach().clone() for name, tensor in latest.items()}
    return {name: (num_averaged * average[name] + tensor) / (num_averaged + 1) for name, tensor in latest.items()}


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
def add_penalty_gradient(parameters: Weights, penalty: Penalty) -> Tensor:
    """Add the penalty's gradient, 2 weight F (theta - anchor), to every `.grad` and return its value, weight included.

    Args:
        parameters: by name; `.grad` is changed in place, and created where it is None.
    Returns: scalar, detached: the same number as weight * `weighted_squared_distance`.
    """
    for name, parameter in parameters.items():
        _require_shape(name, parameter, penalty.anchor)
    values: list[Tensor] = []
    for names in _groups(parameters):
        held = [parameters[name] for name in names]
        differences = pulls = torch._foreach_sub(held, [penalty.anchor[name] for name in names])
        if penalty.fisher is not None:
            pulls = torch._foreach_mul(differences, [penalty.fisher[name] for name in names])
        values += [product.sum() for product in torch._foreach_mul(pulls, differences)]
        pulls = torch._foreach_mul(pulls, 2 * penalty.weight)
        for parameter, pull in zip(held, pulls, strict=True):
            if parameter.grad is None:
                parameter.grad = pull
        has_gradient = [(parameter.grad, pull) for parameter, pull in zip(held, pulls, strict=True) if parameter.grad is not pull]
        if has_gradient:
            torch._foreach_add_(*(list(part) for part in zip(*has_gradient, strict=True)))
    return penalty.weight * torch.stack(values).sum()


def _groups(parameters: Weights) -> Iterator[list[str]]:
    """Names whose tensors go through one fused operation after the other together.

    On a GPU all, for few launches. On a CPU as many as its caches hold, because there the memory is what takes the time: a
    third of the seconds for the 150 million weights of a ViT-B/16 (0.95 to 0.33 on one core), and no temporary copies of them all.
    """
    names: list[str] = []
    num_entries = 0
    for name, parameter in parameters.items():
        if names and parameter.device.type == "cpu" and num_entries + parameter.numel() > CACHED_ENTRIES:
            yield names
            names, num_entries = [], 0
        names.append(name)
        num_entries += parameter.numel()
    if names:
        yield names


def _difference(name: str, parameter: Tensor, anchor: Weights) -> Tensor:
    _require_shape(name, parameter, anchor)
    return parameter - anchor[name]


def _require_shape(name: str, parameter: Tensor, anchor: Weights) -> None:
    if name not in anchor or anchor[name].shape != parameter.shape:
        found = list(anchor[name].shape) if name in anchor else "nothing"
        raise ShapeError(f"Anchor of {name!r} should be {list(parameter.shape)}, found {found}.")
