"""How far from golden numbers still counts as equal: what other processors and libraries round otherwise, and AdamW then blows up."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Largest differences that count as rounding, all in float32.

    loss: of a step's total loss.
    weight: 99th percentile of the weights' differences; AdamW blows rounding up in a few weights whose gradient is near 0.
    feature: of a feature that is not normalised; those of the fixture reach 3.3, where float32 steps 2.4e-7.
    """

    loss: float
    weight: float
    feature: float


ON_CPU = Bounds(loss=2e-5, weight=1e-6, feature=5e-6)
# An accelerator splits each product's sum into other parts than the CPU that made the numbers, and sums with atomics besides.
ON_ACCELERATOR = Bounds(loss=1e-4, weight=5e-6, feature=2e-5)


def bounds_on(device: torch.device) -> Bounds:
    """Those that hold for float32 there."""
    return ON_CPU if device.type == "cpu" else ON_ACCELERATOR


def percentile_99(differences: Tensor) -> float:
    """99th percentile of absolute differences [N]. By sorting: torch's quantile refuses more than 2^24 entries."""
    ranked = differences.sort().values
    return float(ranked[min(len(ranked) - 1, int(0.99 * len(ranked)))])
