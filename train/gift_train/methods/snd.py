"""Select and Distill: each reference image is distilled from the last model or from the initial one, by how far the two stand apart."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gift_shared.errors import ConfigError
from gift_train.clip.model import Backbone
from gift_train.clip.zero_shot import similarity_logits
from gift_train.data.batches import TaskBatch
from gift_train.data.replay import ReplayBatch
from gift_train.data.sources import ReplaySource
from gift_train.methods.base import LossTerms, Method, TaskContext
from gift_train.methods.losses import task_cross_entropy
from gift_train.methods.registry import register
from gift_train.methods.teacher import Teacher

IMAGE_TOWER = "visual."


@dataclass(frozen=True, kw_only=True)
class TaskImages:
    """The task's images alone: its classes' features do not change."""

    images: Tensor  # [B or this rank's share, 3, H, W]
    labels: Tensor  # [B]


@dataclass(frozen=True, kw_only=True)
class ReferenceInputs:
    """A batch of reference images, and what both teachers see in it."""

    images: Tensor  # [B or this rank's share, 3, H, W]
    last: Tensor  # [B, D]
    initial: Tensor  # [B, D]


@register("snd")
class SelectAndDistill(Method):
    """L = L_task + w_l mean_b e_b |f_b - l_b|^2 + w_0 mean_b (1 - e_b) |f_b - z_b|^2 (arXiv 2403.09296).

    f, l, z: features of reference image b by the student, by the model the task began with and by the initial one, L2-normalised;
    e_b = sigmoid(scale (|z_b - l_b| - threshold)): what the last model sees otherwise than the initial one is held where the last one
    has it, all else where the initial one has it. The image tower alone is trained. The weights of the two terms are of the published
    code, the paper has none.

    The published code multiplies a column by a row, so that it has mean(e) mean(|f - l|^2) for mean(e |f - l|^2), and selects for a
    batch, not for an image: `selection = "batch"`. The teachers' features, and those of the classes, are computed once per task, which
    changes nothing.
    """

    summary = "Distils each reference image from the last or the initial model, by how far they differ on it."
    replay = ReplaySource.SYNTHETIC

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """`last_weight` and `initial_weight` multiply the two terms; `threshold` is a distance of unit vectors, from 0 to 2.

        selection: "image" as in the paper, or "batch" as the published code computes it: one e, the mean of the batch.
        images: "synthetic" = as the recipe's [replay] says; "reference" = --reference-images, without captions (ImageNet in the paper).
        num_images: a random subset of so many reference images, drawn with the run's seed once for all tasks; all if left out.
        """

        last_weight: float
        initial_weight: float
        threshold: float
        scale: float
        selection: Literal["image", "batch"] = "image"
        images: Literal["synthetic", "reference"] = "synthetic"
        num_images: int | None = None

        def __post_init__(self) -> None:
            if self.num_images is not None and (self.images == "synthetic" or self.num_images < 1):
                raise ConfigError(f'num_images (1 or more) belongs to images = "reference", found {self.num_images} with {self.images!r}.')

    def replay_source(self) -> ReplaySource:
        return ReplaySource(self.config.images)

    def num_reference_images(self) -> int | None:
        num_images: int | None = self.config.num_images
        return num_images

    def trainable(self, student: Backbone) -> dict[str, torch.nn.Parameter]:
        """The image tower's."""
        return {name: parameter for name, parameter in student.parameters().items() if name.startswith(IMAGE_TOWER)}

    def begin_task(self, context: TaskContext, student: Backbone) -> None:
        super().begin_task(context, student)
        self.last = Teacher(student.frozen_copy(), context.ranks)
        initial = student.frozen_copy()
        initial.load_weights(context.initial_weights)
        self.initial = Teacher(initial, context.ranks)
        self.class_features = self.last.encode_texts(context.class_tokens)
        if context.replay_pass is not None:
            for teacher in (self.last, self.initial):
                teacher.cache_features(context.replay_pass(), captions=False)

    def task_inputs(self, student: Backbone, batch: TaskBatch) -> TaskImages:
        return TaskImages(images=batch.images, labels=batch.labels)

    def task_terms(self, student: Backbone, inputs: TaskImages) -> LossTerms:
        images = self.context.ranks.all_gather(student.encode_images(inputs.images), len(inputs.labels))
        logits = similarity_logits(images, self.class_features, student.scale)
        return LossTerms(cross_entropy=task_cross_entropy(logits, inputs.labels, label_smoothing=self.context.label_smoothing))

    def replay_inputs(self, student: Backbone, batch: ReplayBatch) -> ReferenceInputs:
        last, initial = self.last.image_features(batch), self.initial.image_features(batch)
        return ReferenceInputs(images=batch.images, last=last, initial=initial)

    def replay_terms(self, student: Backbone, inputs: ReferenceInputs) -> LossTerms:
        last, initial = inputs.last, inputs.initial
        features = self.context.ranks.all_gather(student.encode_images(inputs.images), len(last))
        share = share_of_last(last, initial, threshold=self.config.threshold, scale=self.config.scale)
        if self.config.selection == "batch":
            share = share.mean()
        to_last = share * (features - last).square().sum(dim=1)
        to_initial = (1 - share) * (features - initial).square().sum(dim=1)
        return LossTerms(last=self.config.last_weight * to_last.mean(), initial=self.config.initial_weight * to_initial.mean())


def share_of_last(last: Tensor, initial: Tensor, *, threshold: float, scale: float) -> Tensor:
    """e_b [B], fractions, of the two teachers' features [B, D], L2-normalised; above 1/2 where they are further apart than `threshold`."""
    return torch.sigmoid(scale * ((initial - last).norm(dim=1) - threshold))
