"""iCaRL, as CLIP's continual-learning benchmark adapts it: distillation on stored images of earlier tasks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gift_shared.errors import ConfigError
from gift_train.clip.model import Backbone
from gift_train.data.replay import ReplayBatch
from gift_train.data.sources import ReplaySource, TextSource
from gift_train.methods.base import LossTerms, Method, TaskContext, require_temperature
from gift_train.methods.image_distillation import DistillationInputs, ImageDistillation
from gift_train.methods.registry import register


@register("icarl")
class Icarl(Method):
    """L = L_task + D2 on memory images against the current class prompts (arXiv 1611.07725, adapted; METHODS 2.6).

    No nearest-mean classifier and no labels in the memory. Departures from the published code, which stores wrong images and
    exceeds its budget: herding picks the images it names and every task gets floor(K / t) of the budget K (B8); the first task
    is herded too (B9). `quota = "reference"` brings the published sizes and the unherded first task back.
    """

    summary = "Distils on a herded memory of earlier tasks' real images."
    replay = ReplaySource.MEMORY
    texts = TextSource.CLASSES

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """memory_size: images in all, K. herding_candidates: a task is herded from its first so many training images."""

        distill_weight: float
        temperature: float
        teacher: Literal["initial", "last"]
        memory_size: int
        herding_candidates: int
        quota: Literal["even", "reference"]

        def __post_init__(self) -> None:
            require_temperature(self.temperature)
            for name in ("memory_size", "herding_candidates"):
                if getattr(self, name) < 1:
                    raise ConfigError(f"{name} must be 1 or more images, found {getattr(self, name)}.")

    def __init__(self, config: "Icarl.Config") -> None:
        super().__init__(config)
        self._memory: dict[str, Tensor] = {}

    def begin_task(self, context: TaskContext, student: Backbone) -> None:
        super().begin_task(context, student)
        backbone = student.frozen_copy()
        if self.config.teacher == "initial":
            backbone.load_weights(context.initial_weights)
        weight, temperature = self.config.distill_weight, self.config.temperature
        self.distillation = ImageDistillation(backbone, context, weight=weight, temperature=temperature)

    def replay_inputs(self, student: Backbone, batch: ReplayBatch) -> DistillationInputs | None:
        return self.distillation.inputs(batch)

    def replay_terms(self, student: Backbone, inputs: DistillationInputs) -> LossTerms:
        return self.distillation.terms(student, inputs)

    @torch.no_grad()
    def end_task(self, student: Backbone) -> None:
        config = self.config
        num_tasks = len(self._memory) + 1
        share = config.memory_size // num_tasks
        is_reference = config.quota == "reference"
        new_share = config.memory_size - share if is_reference and num_tasks > 1 else share
        candidates = config.memory_size if is_reference and num_tasks == 1 else config.herding_candidates
        ranks, images = self.context.ranks, self.context.task_images(candidates)
        features = torch.cat([ranks.all_gather(student.encode_images(batch.images), len(batch.labels)) for batch in images])
        picked = torch.arange(len(features)) if is_reference and num_tasks == 1 else herd(features, new_share)
        self._memory = {name: indices[:share] for name, indices in self._memory.items()}
        self._memory[self.context.task_name] = picked[:new_share].cpu()

    def memory(self) -> Mapping[str, Tensor]:
        return self._memory

    def state_dict(self) -> dict[str, Tensor]:
        return {f"{position:02d}/{name}": indices for position, (name, indices) in enumerate(self._memory.items())}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._memory = {key.split("/", 1)[1]: state[key].cpu() for key in sorted(state)}


def herd(features: Tensor, num_picks: int) -> Tensor:
    """Pick, one after the other, the image that brings the picks' mean closest to the mean of all.

    Pick i minimises ||mu - (S + f_i) / (k + 1)||^2, S = sum of the k features picked so far, without replacement.

    Args:
        features: [N, D], L2-normalised; so ||f_i|| is constant and the pick maximises f_i . ((k + 1) mu - S).
        num_picks: at most this many; all N if there are fewer.
    Returns: [min(N, num_picks)] indices, best first, so that a prefix is a valid smaller memory.
    """
    mean = features.mean(dim=0)
    picked_sum = torch.zeros_like(mean)
    taken = torch.zeros(len(features), dtype=torch.bool, device=features.device)
    picks = torch.empty(min(len(features), num_picks), dtype=torch.long, device=features.device)
    for k in range(len(picks)):
        scores = features @ ((k + 1) * mean - picked_sum)
        picks[k] = scores.masked_fill(taken, -torch.inf).argmax()
        taken[picks[k]] = True
        picked_sum += features[picks[k]]
    return picks
