"""How far from golden numbers still counts as equal: what other processors and libraries round otherwise, and AdamW then blows up."""

from torch import Tensor

LOSS_BOUND = 2e-5  # largest difference of a step's total loss
WEIGHT_BOUND = 1e-6  # 99th percentile of the weights' differences; AdamW blows rounding up in a few weights whose gradient is near 0
FEATURE_BOUND = 5e-6  # largest difference of a feature that is not normalised; those of the fixture reach 3.3, where float32 steps 2.4e-7


def percentile_99(differences: Tensor) -> float:
    """99th percentile of absolute differences [N]. By sorting: torch's quantile refuses more than 2^24 entries."""
    ranked = differences.sort().values
    return float(ranked[min(len(ranked) - 1, int(0.99 * len(ranked)))])
