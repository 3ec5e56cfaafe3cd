"""A U-Net's matrix products on a CPU, by the faster of the two libraries that torch ships. Same values up to the order of sums.

The only place that calls oneDNN by torch's own, private operator: torch has no public way to choose the library of one product.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gift_shared.processor import FEWEST_PRODUCTS


def has_onednn() -> bool:
    """Whether this torch was built with it."""
    onednn: Any = torch.backends.mkldnn
    return bool(onednn.is_available())


def multiply_by_onednn(unet: Any) -> None:
    """Send large matrix products to oneDNN, for a processor on which it is faster than MKL, torch's own choice."""
    for module in unet.modules():
        if isinstance(module, nn.Linear):
            module.forward = _by_onednn(module, module.forward)  # type: ignore[method-assign, assignment]


def product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` by oneDNN: rows [M, K], weight [N, K], bias [N] or None -> [M, N]; float32 on a CPU."""
    answer: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return answer


def _by_onednn(module: nn.Linear, forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def forward_by_onednn(rows: Tensor) -> Tensor:
        if rows.dtype != torch.float32 or rows.numel() * module.out_features < FEWEST_PRODUCTS:
            return forward(rows)
        answer = product(rows.reshape(-1, rows.shape[-1]), module.weight, module.bias)
        return answer.view(*rows.shape[:-1], module.out_features)

    return forward_by_onednn
