"""Replay RAIL's golden numbers: a fixture of its own form, through the same method object and `loop.train_steps`.

`rail.safetensors` holds the random projection, and after each task the regression's weights and the scores of images among the classes
of all tasks; the JSON says which of the inputs' batches are each task's, and how many of their texts its classes. Labels count modulo a
task's classes. A task without batches is never learned.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from gift_shared.documents import shape_fault
from gift_shared.errors import DataError
from gift_shared.manifests import JoinedClasses, TaskManifest
from gift_train.clip.candidates import all_candidates
from gift_train.clip.load import backbone_from_tensors
from gift_train.data.batches import TaskBatch, place_task
from gift_train.distributed import CPU
from gift_train.methods.base import TaskContext
from gift_train.methods.rail import Rail
from gift_train.recipes.recipe import OptimizerSettings
from gift_train.training.loop import Schedule, Training, build_optimizer, train_steps

PROJECTION = "projection"
_NO_OPTIMIZER = OptimizerSettings(beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.0)  # it is asked for no update
_NUMBERS = {
    "inputs": str, "ridge": float, "regression_share": float, "tasks": [{"batches": [int], "num_classes": int}],
}  # fmt: skip


def is_rail_fixture(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of RAIL's fixture."""
    return PROJECTION in tensors


class RailReplay:
    """Tasks of the fixture learned one after the other, and how far that is from its numbers. Raises DataError for a garbled fixture.

    tensors: with those of the inputs it names.
    """

    def __init__(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], where: str, device: torch.device = CPU) -> None:
        self.tensors = tensors
        self.where = where
        if (fault := shape_fault(numbers, _NUMBERS)) is not None:
            raise DataError(f"The numbers beside {where} lack or garble one of RAIL's{fault}.")
        self.batches: list[list[int]] = [task["batches"] for task in numbers["tasks"]]
        sizes = [task["num_classes"] for task in numbers["tasks"]]
        self.texts = torch.cat([self.tensor("class_tokens"), self.tensor("caption_tokens")])
        ends = list(accumulate(sizes))
        if not ends or ends[-1] > len(self.texts) or min(sizes) < 1:
            raise DataError(f"{where}: its tasks have {sum(sizes)} classes, its inputs {len(self.texts)} texts.")
        self.tasks = [_task(number, range(end - size, end)) for number, (size, end) in enumerate(zip(sizes, ends, strict=True))]
        weights = {key.removeprefix("previous/"): weight for key, weight in tensors.items() if key.startswith("previous/")}
        self.student = backbone_from_tensors(weights)
        self.student.network.to(device)
        self.student.tokenizer = self._tokens
        projection = self.tensor(PROJECTION)
        settings = {key: numbers[key] for key in ("ridge", "regression_share")}
        self.method = Rail(Rail.Config(hidden_width=len(projection), **settings))

    def differences(self) -> tuple[float, Tensor]:
        """The largest difference of a score, and the absolute differences [N] of the regression's weights, over all tasks."""
        scores, weights = [], []
        for index, (task, batches) in enumerate(zip(self.tasks, self.batches, strict=True)):
            if not batches:
                continue
            self._learn(index, task, batches)
            weights.append((self.method.weights.cpu() - self.tensor(f"weights/{index}")).abs().flatten())
            scores.append((self._scores() - self.tensor(f"scores/{index}")).abs().max())
        return float(torch.stack(scores).max()), torch.cat(weights)

    def _learn(self, index: int, task: TaskManifest, batches: Sequence[int]) -> None:
        method, student = self.method, self.student
        context = TaskContext(
            task_name=task.name,
            task_index=index,
            num_steps=len(batches),
            label_smoothing=0.0,
            class_tokens=student.tokenize(task.class_names),
            reference_tokens=None,
            initial_weights=student.weights_copy(),
            replay_pass=None,
            task_images=lambda _: iter(()),
            classes=task,
        )
        method.begin_task(context, student)
        method.projection = self.tensor(PROJECTION).to(student.device)
        parameters = method.trainable(student)
        training = Training(
            method=method,
            student=student,
            parameters=parameters,
            optimizer=build_optimizer(parameters, _NO_OPTIMIZER),
            schedule=Schedule(peak=0.0, warmup_steps=0, total_steps=len(batches) - 1),
        )
        images, labels = self.tensor("task_images"), self.tensor("task_labels") % len(task.class_names)
        placed = (place_task(TaskBatch(images=images[one], labels=labels[one]), student) for one in batches)
        for _ in train_steps(training, ((batch, None) for batch in placed)):
            pass
        method.end_task(student)

    @torch.no_grad()
    def _scores(self) -> Tensor:
        """[N, K] of the inputs' synthetic images among the classes of all tasks, on the CPU."""
        classes = JoinedClasses(tuple(self.tasks))
        answer = self.method.answers(self.student, classes)[""]
        return answer(self.tensor("synthetic_images").flatten(0, 1).to(self.student.device))(all_candidates(classes)).cpu()

    def tensor(self, name: str) -> Tensor:
        """A tensor of the fixture or of its inputs. Raises DataError if it is missing."""
        if name not in self.tensors:
            raise DataError(f"{self.where} has no tensor {name!r}; RAIL's parity fixture needs it.")
        return self.tensors[name]

    def _tokens(self, names: Sequence[str], context_length: int) -> Tensor:
        """Texts by their numbers, which class names are here."""
        return self.texts[[int(name) for name in names], :context_length]


def _task(number: int, texts: range) -> TaskManifest:
    name = f"task {number}"
    names = tuple(map(str, texts))
    return TaskManifest(name=name, display_name=name, class_names=names, templates=("{}",), data=None, counts={}, about="")
