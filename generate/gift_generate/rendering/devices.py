"""Where a model runs, and how it is told that it found too little memory."""

import os

import torch

from gift_shared.errors import ConfigError
from gift_shared.launchers import local_rank_from

# cuDNN passes over every algorithm whose workspace does not fit, and then has none left; cuBLAS cannot make its handle.
OUT_OF_MEMORY = (
    "out of memory", "unable to find an engine", "CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED",
    "can't allocate memory", "not enough memory",  # of a CPU
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch, or a library of NVIDIA's behind it that has no error class of its own for this, found too little memory."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)


def find_device(name: str) -> torch.device:
    """`cuda` without a number is the GPU of this process among those of its node, as under torchrun and SLURM; so is auto.

    Its number modulo what it sees: that is right where each process of a node sees all GPUs, and where each sees its own alone.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device {name!r} is none: expected auto, cpu, cuda, cuda:1 ... or mps.") from error
    is_there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not is_there.get(device.type, True):
        raise ConfigError(f"--device {name}: this machine has no such device that torch can use; try --device auto.")
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", local_rank_from(os.environ, default=0) % torch.cuda.device_count())
    return device
