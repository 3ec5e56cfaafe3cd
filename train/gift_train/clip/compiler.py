"""torch's compiler: whether it works here, asked before work is spent, and what it says when it does not."""

import torch

from gift_shared.errors import ConfigError, first_line


def require_compiler(device: torch.device) -> None:
    """Raises ConfigError if nothing can be compiled for this device: a CPU takes a C++ compiler, a GPU Triton."""
    try:
        torch.compile(torch.sin)(torch.zeros(1, device=device))
    except RuntimeError as error:
        raise ConfigError(
            f"--compile does not work here ({told_by_compiler(error)}). It needs a C++ compiler on a CPU and Triton on a GPU; leave it out."
        ) from error


def told_by_compiler(error: BaseException) -> str:
    """An error of the compiler's in one line, without a full stop: the cause alone where it is told which backend raised it."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    is_wrapped = len(lines) > 1 and lines[0].startswith("backend=")
    return first_line(RuntimeError(lines[1]) if is_wrapped else error).strip().rstrip(".")
