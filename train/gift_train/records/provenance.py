"""What a run records about where its numbers came from: package versions and hardware; the commit is `gift_shared.version`'s."""

import os
import platform

import torch

from gift_shared.processor import processor_name
from gift_shared.version import installed_versions

PACKAGES = ("gift-cl", "torch", "torchvision", "open_clip_torch", "numpy", "pyarrow", "pillow", "safetensors")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide numbers."""
    return {"python": platform.python_version()} | installed_versions(PACKAGES)


def hardware() -> dict[str, object]:
    """Processor, cores, threads torch uses, and accelerators by name."""
    accelerators = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    processor = f"{processor_name()}, {torch.backends.cpu.get_cpu_capability()}"
    return {"processor": processor, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "accelerators": accelerators}
