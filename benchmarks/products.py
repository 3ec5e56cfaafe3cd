"""The floor of a computation: how many multiplications and additions it makes, and how many of them a second this machine makes at best."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

ROUNDS = 12


@register_flop_formula(torch.ops.mkldnn._linear_pointwise)
def _onednn_flops(rows: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    """Of [..., K] times [N, K]. torch's counter knows its own products only."""
    return 2 * math.prod(rows) * weight[0]


def count_flops(call: Callable[[], Any]) -> int:
    """Of the matrix products and convolutions of one call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def best_rate(num_rows: int, inner: int, num_columns: int, device: str, dtype: torch.dtype) -> float:
    """FLOP a second of one product of this size, by the faster of torch's ways to it."""
    left, right = torch.randn(num_rows, inner, device=device, dtype=dtype), torch.randn(num_columns, inner, device=device, dtype=dtype)
    ways: list[Callable[[], Any]] = [lambda: torch.nn.functional.linear(left, right)]
    if device == "cpu" and dtype == torch.float32 and torch.backends.mkldnn.is_available():
        ways.append(lambda: torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], ""))
    with torch.no_grad():
        seconds = min(_seconds(way, device) for way in ways for _ in range(ROUNDS))
    return 2 * num_rows * inner * num_columns / seconds


def _seconds(way: Callable[[], Any], device: str) -> float:
    synchronise(device)
    started = time.perf_counter()
    way()
    synchronise(device)
    return time.perf_counter() - started


def synchronise(device: str) -> None:
    """Wait for what was asked of a GPU."""
    if device != "cpu":
        torch.cuda.synchronize()
