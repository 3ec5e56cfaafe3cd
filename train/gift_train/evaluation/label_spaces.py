"""Who knows the task of a test image: among the classes of which tasks of an order its label is looked for.

known       its own dataset's
union-seen  those of the tasks learned so far, and its own dataset's, without which nothing could be right
union-all   those of all tasks of the order, learned or not

Class names of several datasets that read alike are one class: whichever of its columns scores highest, the class is right. Within one
dataset, also one that is cut into steps, labels decide, as its benchmark has them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from gift_shared.errors import ConfigError
from gift_shared.manifests import Classes, JoinedClasses, LabelSpace, TaskManifest, as_read
from gift_train.clip.candidates import Candidates

Tasks = tuple[int, ...]  # places in an order


@dataclass(frozen=True)
class LabelSpaces:
    """What an evaluation is asked: its label spaces, the tasks of the order, and for which numbers of learned tasks.

    asked: the first is the one whose predictions are noted. learned: 0 = before the first task; more than one where one model stands for
    several rows of a matrix.
    """

    asked: tuple[LabelSpace, ...]
    order: Mapping[str, TaskManifest]
    learned: tuple[int, ...] = (0,)

    @property
    def is_known(self) -> bool:
        """Whether every dataset meets its own classes alone, so that the others' are never read."""
        return set(self.asked) == {"known"}

    @cached_property
    def joined(self) -> JoinedClasses:
        """The classes of all tasks, in order."""
        return JoinedClasses(tuple(self.order.values()))

    def place(self, dataset: str) -> int:
        """Where a dataset stands in the order. Raises ConfigError if it does not and classes of others are asked for."""
        if dataset not in self.order:
            raise ConfigError(f"{dataset} is no task of the order, whose classes {self.asked[-1]} joins. Leave it out, or ask for known.")
        return list(self.order).index(dataset)

    def candidates(self, space: LabelSpace, dataset: str, num_learned: int) -> Tasks:
        """The tasks whose classes a test image of this dataset may be given, in order."""
        own = self.place(dataset)
        if space == "known":
            return (own,)
        if space == "union-seen":
            return tuple(sorted({own, *range(num_learned)}))
        return tuple(range(len(self.order)))

    def all_candidates(self, dataset: str) -> list[Tasks]:
        """Each set of tasks that is asked for, once; the first belongs to the first space and number of learned tasks."""
        return list(dict.fromkeys(self.candidates(space, dataset, number) for space in self.asked for number in self.learned))


class Columns:
    """The columns of scores: which class, which task and which dataset each is of."""

    def __init__(self, classes: Classes, device: torch.device) -> None:
        parts = classes.parts if isinstance(classes, JoinedClasses) else (classes,)
        ids: dict[str, int] = {}
        names = [ids.setdefault(as_read(name), len(ids)) for name in classes.class_names]
        sizes = [len(part.class_names) for part in parts]
        ends = list(accumulate(sizes))
        self.names = torch.tensor(names, device=device)
        self.tasks = torch.arange(len(parts)).repeat_interleave(torch.tensor(sizes)).to(device)
        datasets = list(dict.fromkeys(part.dataset.name for part in parts))
        numbers = torch.tensor([datasets.index(part.dataset.name) for part in parts])
        self.datasets = numbers.repeat_interleave(torch.tensor(sizes)).to(device)
        self._task_names = [part.name for part in parts]
        self._ends = [(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        self._candidates: dict[Tasks, Candidates] = {}

    def candidates(self, tasks: Tasks) -> Candidates:
        """The classes of some tasks; a slice of columns where the tasks are neighbours, as all but one that is not learned yet."""
        if tasks not in self._candidates:
            names = tuple(self._task_names[task] for task in tasks)
            first, last = self._ends[tasks[0]][0], self._ends[tasks[-1]][1]
            are_neighbours = len(tasks) == 1 + tasks[-1] - tasks[0]
            self._candidates[tasks] = Candidates(names, slice(first, last) if are_neighbours else self._of(tasks))
        return self._candidates[tasks]

    def _of(self, tasks: Tasks) -> Tensor:
        wanted = torch.tensor(tasks, device=self.tasks.device)
        return torch.isin(self.tasks, wanted).nonzero().flatten()

    @staticmethod
    def predicted(scores: Tensor, candidates: Candidates) -> Tensor:
        """The highest column [B] by the scores [B, M] of the candidates' columns."""
        best, columns = scores.argmax(dim=1), candidates.columns
        predicted: Tensor = columns.start + best if isinstance(columns, slice) else columns[best]
        return predicted

    def are_right(self, predicted: Tensor, true: Tensor) -> Tensor:
        """Whether columns [B] are of the true columns' classes: the same, or of another dataset and of a name that reads alike."""
        is_other_dataset = self.datasets[predicted] != self.datasets[true]
        return (predicted == true) | (is_other_dataset & (self.names[predicted] == self.names[true]))


def known(manifests: Iterable[TaskManifest]) -> LabelSpaces:
    """Every dataset against its own classes."""
    return LabelSpaces(("known",), {manifest.name: manifest for manifest in manifests})
