"""What every training run here shares: a clock that sets the learning rate, checkpoints, pictures drawn on the fly."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from captions import PictureClass, web_classes

from gift_mini.drawing import task_picture, web_picture


class Clock:
    """A training budget in minutes of this run's own time.

    The schedule follows it, so a run ends when it was promised to end,
    however fast the machine is; a resumed run goes on where it stopped.
    """

    def __init__(self, minutes: float, spent: float = 0.0) -> None:
        self.budget, self._start = minutes * 60, time.monotonic() - spent

    @property
    def spent(self) -> float:
        """Seconds of training so far, earlier parts of a resumed run included."""
        return time.monotonic() - self._start

    @property
    def progress(self) -> float:
        return min(self.spent / self.budget, 1.0)


def learning_rate(progress: float, peak: float, warmup: float = 0.01) -> float:
    """Linear warm-up over the first hundredth, then a cosine down to 2 % of the peak; progress from 0 to 1."""
    return peak * min(progress / warmup + 0.02, 1.0) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


class Due:
    """True once every `minutes`."""

    def __init__(self, minutes: float) -> None:
        self._period, self._last = minutes * 60, time.monotonic()

    def __call__(self) -> bool:
        if time.monotonic() - self._last < self._period:
            return False
        self._last = time.monotonic()
        return True


def save_checkpoint(path: Path, **state: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".partial")
    torch.save(state, draft)
    draft.rename(path)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    return torch.load(path, weights_only=True) if path.exists() else None


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


class Pool:
    """Pictures of all classes, a part redrawn before each batch: every picture is seen a few times, drawing stays cheap.

    Attributes: pixels [N, 32, 32, 3] uint8; label [N] index into web_classes(); caption [N], the one that tells the colours or None.
    """

    def __init__(self, per_class: int, rng: np.random.Generator, task_style_share: float = 0.0) -> None:
        self.rng, self.task_style_share = rng, task_style_share
        self.classes: tuple[PictureClass, ...] = web_classes()
        self.per_class = per_class
        self.label = np.repeat(np.arange(len(self.classes)), per_class)
        self.pixels = np.empty((len(self.label), 32, 32, 3), np.uint8)
        self.coloured: list[str | None] = [None] * len(self.label)
        self._next = np.argsort(np.tile(np.arange(per_class), len(self.classes)), kind="stable")  # round robin over classes
        self._turn = 0
        self.redraw(len(self.label))

    def redraw(self, count: int) -> np.ndarray:
        """Draw the `count` oldest pictures anew; returns their positions."""
        places = self._next[(self._turn + np.arange(count)) % len(self._next)]
        self._turn = (self._turn + count) % len(self._next)
        for place in places:
            item = self.classes[self.label[place]]
            if item.task != "mini_base" and self.rng.random() < self.task_style_share:
                self.pixels[place], self.coloured[place] = task_picture(self.rng, item.task, item.name), None
            else:
                self.pixels[place], ink, ground = web_picture(self.rng, item.task, item.name)
                self.coloured[place] = item.coloured(ink, ground)
        return places

    def places_of(self, labels: Sequence[int], count: int) -> np.ndarray:
        """`count` random positions for each of the given labels, [len(labels) * count]."""
        return (np.repeat(labels, count) * self.per_class) + self.rng.integers(self.per_class, size=len(labels) * count)


def as_tensor(pixels: np.ndarray) -> torch.Tensor:
    """[B, 32, 32, 3] uint8 to [B, 3, 32, 32] in -1 to 1, channels last in memory (faster convolutions on a CPU)."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
