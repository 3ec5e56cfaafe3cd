"""How large a batch may be: as asked, or the largest that the machine holds. Only looks at memory; knows no model."""

import os
import re
from collections.abc import Callable
from pathlib import Path

from gift_shared.errors import ConfigError

AUTO = "auto"
LARGEST = 64  # on an accelerator: beyond it a U-Net gains nothing
LARGEST_ON_CPU = 32  # measured on the mini model: 16 and 64 are slower by a few percent, 8 by more
SHARE_OF_MEMORY = 0.5  # of what is free on the CPU: other workers and the files' cache want theirs
PROBED_IMAGES = 2


def parse_batch_size(given: str | int) -> int | None:
    """A number from 1, or None for `auto`; a default comes as a number. Raises ConfigError."""
    text = str(given)
    if text == AUTO:
        return None
    if not re.fullmatch(r"\d{1,6}", text) or int(text) < 1:
        raise ConfigError(f"--batch-size must be at least 1, or {AUTO}; found {text}.")
    return int(text)


def largest_batch(fits: Callable[[int], bool], largest: int = LARGEST) -> int:
    """Halve from `largest` until a batch fits. Raises ConfigError if not even one image does."""
    size = largest
    while not fits(size):
        if size == 1:
            raise ConfigError("Not even one image fits in the device's memory: take a smaller --height and --width, or another device.")
        size //= 2
    return size


def largest_batch_on_cpu(render: Callable[[int], object]) -> int:
    """A power of two by the memory that `PROBED_IMAGES` images take; the largest where the system does not tell."""
    render(1)  # weights come from their file at first use, and buffers stay: they are no image's
    taken, free = _peak_growth(lambda: render(PROBED_IMAGES)), _free_bytes()
    if taken is None or free is None:
        return LARGEST_ON_CPU
    return batch_within(free * SHARE_OF_MEMORY / int(os.environ.get("LOCAL_WORLD_SIZE") or 1), max(taken, 1) / PROBED_IMAGES)


def batch_within(num_bytes: float, bytes_per_image: float) -> int:
    """The largest power of two whose images fit, between 1 and the most that pays on a CPU."""
    return largest_batch(lambda size: size == 1 or size * bytes_per_image <= num_bytes, LARGEST_ON_CPU)


def _peak_growth(work: Callable[[], object]) -> int | None:
    """Bytes by which this process grows at most while `work` runs; None but on Linux."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = _kilobytes("/proc/self/status", "VmRSS")
        work()
        return (_kilobytes("/proc/self/status", "VmHWM") - before) * 1024
    except (OSError, LookupError):
        return None


def _free_bytes() -> int | None:
    """What the machine, and the control group if there is one, still has."""
    try:
        free = _kilobytes("/proc/meminfo", "MemAvailable") * 1024
    except (OSError, LookupError):
        return None
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        return min(free, limit - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError):  # no group, or "max"
        return free


def _kilobytes(file: str, name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+) kB$", Path(file).read_text(), re.MULTILINE)
    if match is None:
        raise LookupError(name)
    return int(match[1])
