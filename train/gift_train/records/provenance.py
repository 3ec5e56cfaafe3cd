"""What a run records about where its numbers came from: package versions, commit, hardware."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from gift_shared.processor import processor_name

PACKAGES = ("gift-cl", "torch", "torchvision", "open_clip_torch", "numpy", "pyarrow", "pillow", "safetensors")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide numbers."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed


def git_commit() -> str | None:
    """The commit of the checkout this code runs from, with `+changes` if files differ; None for an installed wheel."""
    folder = Path(__file__).resolve().parent
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return f"{commit}+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None


def hardware() -> dict[str, object]:
    """Processor, cores, threads torch uses, and accelerators by name."""
    accelerators = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    processor = f"{processor_name()}, {torch.backends.cpu.get_cpu_capability()}"
    return {"processor": processor, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "accelerators": accelerators}


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()
