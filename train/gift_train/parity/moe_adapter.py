"""Replay MoE-Adapter's golden numbers: a fixture of its own form, through the same method object and `loop.train_steps`.

`moe_adapter.safetensors` holds a CLIP, its experts and routers with random weights, the batches of one task, the features of the
first batch through every router, and the experts and gates after training; the JSON holds sizes, losses and expert counts. Gate
noise and dropout were silenced when it was made.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gift_shared.documents import shape_fault
from gift_shared.errors import DataError
from gift_train.clip.load import backbone_from_tensors
from gift_train.clip.model import Backbone
from gift_train.data.batches import TaskBatch, place_task
from gift_train.distributed import CPU
from gift_train.methods.base import TaskContext
from gift_train.methods.moe_adapter.method import MoeAdapter
from gift_train.recipes.recipe import OptimizerSettings
from gift_train.recipes.typed_table import parse_table
from gift_train.training.loop import Schedule, TermRecorder, Training, build_optimizer, train_steps

FEWEST_RANKED = 1000  # entries of a tensor whose 99th percentile stands for itself
LABEL_SMOOTHING = 0.2
PEAK, WARMUP_STEPS = 1e-3, 2
_OPTIMIZER = OptimizerSettings(beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.0)
_NUMBERS = {
    "losses": [float],
    "expert_counts": {str: [int]},
    **dict.fromkeys(("num_tasks", "task_index", "num_experts", "top_k", "bottleneck"), int),
    "scale": float,
}
_NO_SELECTOR = {
    "features": "none",
    "no_task_images": "reference",
    "hidden": 1,
    "threshold": 1.0,
    "no_task_updates": 1,
    "task_updates": 1,
    "learning_rate": 1.0,
    "decay_epochs": 1,
    "weight_decay": 0.0,
}


def is_adapter_fixture(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of MoE-Adapter's fixture."""
    return any(name.startswith("moe/") for name in tensors)


class AdapterReplay:
    """The fixture's model and method, and how far they are from its numbers. Raises DataError for a garbled fixture."""

    def __init__(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], where: str, device: torch.device = CPU) -> None:
        self.tensors = tensors
        self.where = where
        if (fault := shape_fault(numbers, _NUMBERS)) is not None:
            raise DataError(f"The numbers beside {where} lack or garble one of MoE-Adapter's{fault}.")
        self.losses: list[float] = numbers["losses"]
        self.counts: dict[str, list[int]] = numbers["expert_counts"]
        self.num_tasks, self.task_index = numbers["num_tasks"], numbers["task_index"]
        mixture = {
            "num_experts": numbers["num_experts"],
            "top_k": numbers["top_k"],
            "bottleneck": numbers["bottleneck"],
            "expert_scale": numbers["scale"],
            "dropout": 0.0,
            "gate_noise": 0.0,
        }
        held = sum(tensor.numel() for name, tensor in tensors.items() if name.startswith("moe/"))
        if numbers["num_experts"] * max(numbers["bottleneck"], self.num_tasks) > held:
            raise DataError(f"{where} holds {held} numbers of adapters, too few for what the numbers beside it say.")
        self._check_batches()
        settings = {"mixture": mixture, "selector": _NO_SELECTOR, "routing": "batch", "balance_weight": 0.0}
        self.method = MoeAdapter(parse_table(MoeAdapter.Config, settings, where))
        self.student = self._student()
        self.student.network.to(device)

    def feature_difference(self) -> float:
        """Largest difference of an image or text feature, not normalised, over plain CLIP and every router."""
        differences = []
        network, device = self.student.network, self.student.device
        for name, router in {"unknown": None, **{f"task_{number}": number for number in range(self.num_tasks)}}.items():
            with torch.no_grad(), self.method.route.through(router):
                image_features = network.encode_image(self.tensor("task_images")[0].to(device))
                text_features = network.encode_text(self.tensor("class_tokens").to(device))
            differences.append((image_features.cpu() - self.tensor(f"features/{name}/image")).abs().max())
            differences.append((text_features.cpu() - self.tensor(f"features/{name}/text")).abs().max())
        return float(torch.stack(differences).max())

    def train(self) -> float:
        """Train the task on the fixture's batches. Returns the largest difference of a step's loss."""
        images, labels = self.tensor("task_images"), self.tensor("task_labels")
        context = TaskContext(
            task_name="parity",
            task_index=self.task_index,
            num_steps=len(images),
            label_smoothing=LABEL_SMOOTHING,
            class_tokens=self.tensor("class_tokens"),  # not trimmed: that changes rounding, which AdamW blows up beyond these bounds
            reference_tokens=None,
            initial_weights=self.student.weights_copy(),
            replay_pass=None,
            task_images=lambda _: iter(()),
        )
        self.method.begin_task(context, self.student)
        parameters = self.method.trainable(self.student)
        training = Training(
            method=self.method,
            student=self.student,
            parameters=parameters,
            optimizer=build_optimizer(parameters, _OPTIMIZER),
            schedule=Schedule(peak=PEAK, warmup_steps=WARMUP_STEPS, total_steps=len(images) - 1),
        )
        placed = (place_task(TaskBatch(images=batch, labels=targets), self.student) for batch, targets in zip(images, labels, strict=True))
        batches = ((batch, None) for batch in placed)
        recorder = TermRecorder("parity")
        for step, terms in train_steps(training, batches):
            recorder.add(step, terms)
        ours = [sum(values.values()) for _, values in recorder.flush()]
        return max(abs(loss - golden) for loss, golden in zip(ours, self.losses, strict=True))

    def weight_differences(self) -> list[Tensor]:
        """Absolute differences [N] within each tensor of the experts and the trained gates; small tensors of a kind are one.

        A percentile of few entries is their worst, and a bias has one entry a unit.
        """
        weights = self.student.weights()
        golden = {_parameter(name.removeprefix("final/")): tensor for name, tensor in self.tensors.items() if name.startswith("final/")}
        if not golden or not golden.keys() <= weights.keys():
            raise DataError(f"{self.where}: the 'final/' weights are missing or of another model.")
        found: dict[str, list[Tensor]] = {}
        for name, tensor in golden.items():
            kind = name if tensor.numel() >= FEWEST_RANKED else re.sub(r"\d+", "*", name)  # all blocks' and experts' biases, by tower
            found.setdefault(kind, []).append((weights[name].cpu() - tensor).abs().flatten())
        return [torch.cat(differences) for differences in found.values()]

    def counts_agree(self) -> bool:
        """Whether every expert was chosen exactly as often."""
        return {name: mixture.counts.tolist() for name, mixture in self.method.mixtures.items()} == self.counts

    def tensor(self, name: str) -> Tensor:
        """A tensor of the fixture. Raises DataError if it is missing."""
        if name not in self.tensors:
            raise DataError(f"{self.where} has no tensor {name!r}; MoE-Adapter's parity fixture needs it.")
        return self.tensors[name]

    def _check_batches(self) -> None:
        images, labels = self.tensor("task_images"), self.tensor("task_labels")
        if images.ndim != 5 or images.shape[:2] != labels.shape or len(images) != len(self.losses):
            raise DataError(f"{self.where}: images, labels and losses disagree in steps or batch size.")
        if not 0 <= self.task_index < self.num_tasks:
            raise DataError(f"{self.where}: task_index must be from 0 to below num_tasks = {self.num_tasks}, found {self.task_index}.")

    def _student(self) -> Backbone:
        initial = {name.removeprefix("initial/"): tensor for name, tensor in self.tensors.items() if name.startswith("initial/")}
        student = backbone_from_tensors(initial)
        self.method.prepare(student, self.num_tasks)
        adapters = {_parameter(name.removeprefix("moe/")): tensor for name, tensor in self.tensors.items() if name.startswith("moe/")}
        student.load_weights(initial | adapters)
        return student


def _parameter(name: str) -> str:
    """`visual.transformer.0.gate.1` -> `visual.transformer.resblocks.0.mixture.gate.1`, the name in the student's state dict."""
    tower, rest = name.split("transformer.", 1)
    block, parameter = rest.split(".", 1)
    return f"{tower}transformer.resblocks.{block}.mixture.{parameter}"
