"""Images of several datasets as one, for what learns all tasks at once: who is which dataset's, and in what order they come.

Like every order here it follows from (seed, position) alone.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from gift_shared.keys import hashed_seed
from gift_train.data.batches import BatchOrder, SampleOrder, TaskBatch, shuffled, stack_images
from gift_train.data.sources import Draw
from gift_train.data.tasks import TaskImages


class MixedImages(Dataset[tuple[Tensor, int, int]]):
    """Items (image, class, dataset): one dataset's images after the other's, each label told as a class of all datasets together.

    Args:
        parts: the datasets' images. classes: for each of them its labels' numbers among all classes, [K].
    """

    def __init__(self, parts: Sequence[TaskImages], classes: Sequence[NDArray[np.int64]]) -> None:
        self.parts = parts
        self.classes = classes
        self.ends = list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        number, own = self._place(index)
        image, label = self.parts[number][own]
        return image, int(self.classes[number][label]), number

    def about(self, index: int) -> tuple[int, int]:
        """(class, dataset) of an item; its image is not loaded."""
        number, own = self._place(index)
        (label,) = self.parts[number].about(own)
        return int(self.classes[number][label]), number

    def _place(self, index: int) -> tuple[int, int]:
        number = bisect_right(self.ends, index)
        return number, index - (self.ends[number - 1] if number else 0)


def collate_mixed(samples: Sequence[tuple[Tensor, int, int]]) -> TaskBatch:
    """(image, class, dataset) samples -> TaskBatch."""
    _, classes, datasets = zip(*samples, strict=True)
    return TaskBatch(images=stack_images(samples), labels=torch.tensor(classes), datasets=torch.tensor(datasets))


@dataclass(frozen=True, kw_only=True)
class EvenOrder:
    """The datasets take turns, image by image: T in a row are one of each. Each goes through shuffled epochs of its own.

    So each has the same number of images over a run, as it has in a run of one task after the other; a small one comes round more often.
    """

    sizes: Sequence[int]
    batch_size: int
    seed: int
    name: str
    _epochs: dict[int, tuple[int, Tensor]] = field(default_factory=dict, repr=False, compare=False)  # of each dataset the one it is in

    def indices(self, position: int) -> list[int]:
        """Sample indices, as `MixedImages` counts them, of the batch at this zero-based position of the endless stream."""
        turns = range(position * self.batch_size, (position + 1) * self.batch_size)
        return [self._image(number=turn % len(self.sizes), turn=turn // len(self.sizes)) for turn in turns]

    def _image(self, number: int, turn: int) -> int:
        epoch, place = divmod(turn, self.sizes[number])
        if self._epochs.get(number, (None,))[0] != epoch:
            seed = hashed_seed(self.seed, f"{self.name}/dataset-{number}/epoch-{epoch}")
            self._epochs[number] = epoch, shuffled(self.sizes[number], seed)
        return sum(self.sizes[:number]) + int(self._epochs[number][1][place])


def mixed_order(draw: Draw, sizes: Sequence[int], batch_size: int, seed: int, name: str) -> SampleOrder:
    """How batches are drawn from datasets of these sizes: evenly, or in proportion, which is shuffled epochs over all images."""
    if draw == "even":
        return EvenOrder(sizes=sizes, batch_size=batch_size, seed=seed, name=name)
    return BatchOrder(num_samples=sum(sizes), batch_size=batch_size, seed=seed, name=name)
