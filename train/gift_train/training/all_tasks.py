"""All tasks of an order as one, for a method that learns them at once: their images mixed, their classes side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from gift_shared.manifests import JoinedClasses, TaskManifest, as_read
from gift_train.data.batches import SampleOrder, TaskBatch
from gift_train.data.mixture import MixedImages, collate_mixed, mixed_order
from gift_train.data.sources import Draw
from gift_train.data.tasks import Task
from gift_train.methods.base import Method
from gift_train.records.files import ALL_TASKS
from gift_train.training.setup import RunSetup
from gift_train.training.task import TaskSetup


def task_setup(run: RunSetup, method: Method, index: int) -> TaskSetup:
    """What is learned at `index` of the order: that task, or all of them if the method learns them at once."""
    draw = method.mixture()
    return TaskSetup(run, index) if draw is None else AllTasks(run, 0, draw)


@dataclass(frozen=True)
class AllTasks(TaskSetup):
    """The one task of a run that learns all at once. It makes as many updates as all tasks together, on one schedule."""

    draw: Draw

    @property
    def name(self) -> str:
        return ALL_TASKS

    @property
    def label(self) -> str:
        return f"{self.recipe.method}, {len(self._tasks)} tasks at once"

    @property
    def is_last(self) -> bool:
        return True

    @property
    def num_updates(self) -> int:
        return sum(self.run.num_updates)

    @property
    def num_learned(self) -> int:
        return len(self._tasks)

    @property
    def peak_rate(self) -> float:
        """The one that all datasets have, else the recipe's own: rates of single datasets have no place here."""
        rates = {self.recipe.peak_rate(task.manifest.dataset.name) for task in self._tasks}
        return rates.pop() if len(rates) == 1 else self.recipe.learning_rate

    @property
    def images(self) -> Dataset[Any]:
        return MixedImages([task.train for task in self._tasks], self._classes.numbers)

    @property
    def plain_images(self) -> Dataset[Any]:
        return MixedImages([task.train_plain for task in self._tasks], self._classes.numbers)

    @property
    def class_texts(self) -> tuple[str, ...]:
        return self._classes.texts

    @property
    def classes(self) -> JoinedClasses:
        return JoinedClasses(tuple(task.manifest for task in self._tasks))

    def own_classes(self) -> Tensor:
        if self._are_joined:
            return torch.ones(len(self._tasks), len(self._classes.texts), dtype=torch.bool)
        own = torch.zeros(len(self._tasks), len(self._classes.texts), dtype=torch.bool)
        for row, numbers in zip(own, self._classes.numbers, strict=True):
            row[torch.from_numpy(numbers)] = True
        return own

    def order(self) -> SampleOrder:
        sizes = [len(task.train) for task in self._tasks]
        return mixed_order(self.draw, sizes, self.recipe.batch_size, self.seed, "task")

    def collate(self, samples: Any) -> TaskBatch:
        return collate_mixed(samples)

    @property
    def _tasks(self) -> list[Task]:
        return [self.run.tasks[name] for name in self.run.plan.order.tasks]

    @property
    def _are_joined(self) -> bool:
        """Whether the order's evaluation does not know the task, so that an image may be of any task's class."""
        return self.run.plan.order.label_space != "known"

    @cached_property
    def _classes(self) -> "AllClasses":
        return all_classes([task.manifest for task in self._tasks], are_joined=self._are_joined)


@dataclass(frozen=True)
class AllClasses:
    """The classes of all tasks as one list: their sentences, and for each task its labels' places in it."""

    texts: tuple[str, ...]
    numbers: tuple[NDArray[np.int64], ...]


def all_classes(manifests: Sequence[TaskManifest], *, are_joined: bool) -> AllClasses:
    """One task's classes after the other's. Joined, a class of several datasets is one, in the sentence of the first of them.

    Within one dataset labels decide, as its benchmark has them, also where it is cut into several tasks.
    """
    texts: list[str] = []
    known: dict[str, tuple[int, str]] = {}  # by name as read: place, and the dataset that has it
    numbers = []
    for manifest in manifests:
        own = []
        for name, caption in zip(manifest.class_names, manifest.first_template_captions, strict=True):
            place, dataset = known.get(as_read(name), (len(texts), manifest.dataset.name))
            if not are_joined or dataset == manifest.dataset.name:
                place = len(texts)
                texts.append(caption)
            own.append(place)
            known.setdefault(as_read(name), (place, manifest.dataset.name))
        numbers.append(np.array(own))
    return AllClasses(tuple(texts), tuple(numbers))
