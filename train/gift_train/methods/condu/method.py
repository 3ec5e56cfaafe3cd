"""ConDU: every task is finetuned from the initial model; what all of them changed is kept as one delta, and a bit per weight and task."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gift_shared.errors import ConfigError
from gift_shared.manifests import Classes
from gift_train.clip.candidates import Answer
from gift_train.clip.model import Backbone
from gift_train.methods.base import Method, TaskContext
from gift_train.methods.condu.experts import ExpertAnswer, Experts, class_prototypes
from gift_train.methods.condu.merging import Unified, unify
from gift_train.methods.registry import register

ALL_IMAGES = sys.maxsize  # of a task, however many they are


@register("condu")
class Condu(Method):
    """L = L_task from theta_0; delta_t = theta_t - theta_0, unified with the deltas before (arXiv 2503.10705, full finetuning).

    delta_i ~ lambda_i M_i * delta_uni (`merging.unify`), and an expert is theta_0 + lambda_i M_i * delta_uni. A learned task that is known
    is answered by its expert; whatever else, image by image, by the mean of the similarities of theta_0 and of the `num_nearest` experts
    nearest by prototypes (`experts`). What is handed on is theta_0, from which each task begins. All that was learned lies beside it, in
    the method's state: the weights alone are the model that the run began with.

    Departures from the published code (github.com/zhangzicong518/ConDU): after the first task its expert answers for it, where the code
    asks theta_0; experts stand in the order of tasks, not in that of a folder's listing, which matters to equal similarities alone;
    older deltas are not rounded through theta_0's digits before they are unified anew; prototypes are made of the training images as
    evaluation shows them, not cropped at random, and with few shots of those alone, where the code looks at the whole training set;
    similarities are scaled by the model's exp(logit_scale), not by 100. Not here: its form with LoRA (rank 64).
    """

    summary = "Each task finetuned from the initial model; one delta for all tasks, masks that give each its own back, experts that vote."

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """num_nearest: experts that answer beside the initial model where the task is not known; 0: it alone."""

        num_nearest: int

        def __post_init__(self) -> None:
            if self.num_nearest < 0:
                raise ConfigError(f"num_nearest must be 0 or more, found {self.num_nearest}.")

    def __init__(self, config: "Condu.Config") -> None:
        super().__init__(config)
        self.unified: Unified | None = None  # of the tasks learned, on the CPU; None before the first is
        self.prototypes: dict[str, Tensor] = {}  # [K, D] by task, in the order that they were learned

    def begin_task(self, context: TaskContext, student: Backbone) -> None:
        super().begin_task(context, student)
        student.load_weights(context.initial_weights)

    @torch.no_grad()
    def end_task(self, student: Backbone) -> None:
        context = self.context
        self.unified = unify(self._deltas(student))
        student.load_weights(context.initial_weights)
        assert context.classes is not None
        prototypes = class_prototypes(student, context.task_images(ALL_IMAGES), context.classes, context.ranks)
        self.prototypes[context.task_name] = prototypes.cpu()

    def _deltas(self, student: Backbone) -> Iterator[tuple[str, Tensor]]:
        """Of every parameter, [T, ...]: those of the tasks before as they are remembered, and what this task changed."""
        initial, device = self.context.initial_weights, student.device
        before = None if self.unified is None else self.unified.to(device)
        for name, weight in student.weights().items():
            remembered = [] if before is None else [before.of_task(name, number) for number in range(before.num_tasks)]
            yield name, torch.stack([*remembered, weight - initial[name].to(device)])

    def answers(self, student: Backbone, classes: Classes) -> Mapping[str, Answer]:
        if self.unified is None:
            return super().answers(student, classes)
        return {"": ExpertAnswer(Experts(student, self.unified), self.prototypes, self.config.num_nearest, classes)}

    def state_dict(self) -> dict[str, Tensor]:
        if self.unified is None:
            return {}
        prototypes = {f"prototypes/{number:03d}/{name}": one for number, (name, one) in enumerate(self.prototypes.items())}
        return self.unified.state_dict() | prototypes

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.unified = Unified.from_state(state).to(torch.device("cpu")) if state else None
        places = sorted(name for name in state if name.startswith("prototypes/"))
        self.prototypes = {place.split("/", 2)[2]: state[place].cpu() for place in places}
