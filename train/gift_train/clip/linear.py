"""The towers' matrix products on a CPU, by the faster of the two libraries that torch ships. Same values up to the order of sums.

The trainer's only call of oneDNN by torch's own, private operator: torch has no public way to choose the library of one product.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from gift_shared.processor import FEWEST_PRODUCTS, favours_onednn


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`: rows [..., K], weight [N, K], bias [N] -> [..., N]."""
    if torch.compiler.is_compiling() or not _goes_to_onednn(rows, weight):
        return F.linear(rows, weight, bias)
    product: Tensor = _Linear.apply(rows.reshape(-1, rows.shape[-1]), weight, bias)
    return product.view(*rows.shape[:-1], -1)


class _Linear(torch.autograd.Function):
    """[M, K], [N, K], [N] or None -> [M, N]."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return _product(rows, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows, weight = ctx.saved_tensors
        wants_rows, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            _product(gradient, weight.t()) if wants_rows else None,
            _product(gradient.t(), rows.t()) if wants_weight else None,
            gradient.sum(dim=0) if wants_bias else None,
        )


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.as_tensor(torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], ""))


def _goes_to_onednn(rows: Tensor, weight: Tensor) -> bool:
    is_float = rows.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if rows.device.type != "cpu" or not is_float or rows.numel() * weight.shape[0] < FEWEST_PRODUCTS:
        return False
    return favours_onednn() and bool(torch.backends.mkldnn.is_available())
