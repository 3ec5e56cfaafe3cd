"""Denoiser and image decoder through torch.compile. The only place that asks torch's compiler for what torch has no public way to ask."""

from collections.abc import Callable
from typing import Any

import torch
import torch._inductor

from gift_shared.errors import ConfigError, first_line

InductorOptions = dict[str, str | int | bool | Callable[..., Any]]  # as torch.compile has it


def compile_pipeline(pipeline: Any, denoiser: Any) -> None:
    """Compile a pipeline's denoiser and decoder, one graph per size of batch. Raises ConfigError where nothing can be compiled."""
    options = deterministic_options()
    try:
        torch.compile(torch.sin, options=options)(torch.zeros(1, device=pipeline.device))
    except RuntimeError as error:
        raise ConfigError(
            f"--compile does not work here ({first_line(error)}). It needs a C++ compiler on a CPU and Triton on a GPU; leave it out."
        ) from error
    denoiser.compile(dynamic=False, options=options)
    pipeline.vae.decoder.compile(dynamic=False, options=options)


def deterministic_options() -> InductorOptions | None:
    """Have kernels not chosen by timing, since bytes would depend on it; None where torch (before 2.9) cannot be told so."""
    return {"deterministic": True} if "deterministic" in torch._inductor.list_options() else None
