"""GIFT+: GIFT, and on the task's own pictures too the student goes on seeing what its teacher saw of all that the captions name."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gift_shared.errors import ConfigError
from gift_train.clip.model import Backbone
from gift_train.clip.zero_shot import similarity_logits
from gift_train.data.batches import TaskBatch
from gift_train.data.sources import TextSource
from gift_train.methods.base import LossTerms, TaskContext, TaskInputs
from gift_train.methods.gift import Gift
from gift_train.methods.losses import task_cross_entropy
from gift_train.methods.registry import register
from gift_train.methods.texts import class_texts


@dataclass(frozen=True, kw_only=True)
class HeldInputs(TaskInputs):
    """The task's images, and what the teacher sees in them."""

    teacher_images: Tensor  # [B, D]


@register("gift_plus")
class GiftPlus(Gift):
    """L = L_GIFT + w T^2 / B sum_b H(softmax(s l_b C' / T), softmax(s f_b C' / T)); ours.

    f_b, l_b: features of image b of the task by the student and by the teacher, as the transform of training has drawn it this time;
    C [N, D]: the teacher's features of all N captions that the task replays, which name what pre-training and the tasks before knew.
    They are computed once a task and do not change: the student's images are held to the texts as they were.

    GIFT holds the student on painted pictures alone, in a batch to as many captions as it has pictures, and leans on the weights' anchor
    for all that these do not show. Pictures of the task are real, there are fresh ones in each step, and they are where the student moves;
    asked about everything else, its answers may stay as they are while it learns the task's own names. The anchor may then be weaker.
    LwF distils on the task's pictures too, to the task's own classes or, in LwF-VR, to random sentences.

    A step is one more pass of the teacher's image tower longer, without gradient.
    """

    summary = "GIFT, and distillation on the task's own images to all captions it replays; ours."
    texts = TextSource.CAPTIONS

    @dataclass(frozen=True, kw_only=True)
    class Config(Gift.Config):
        """Those of GIFT and w, `task_distill_weight`; T is GIFT's `temperature`, and the form that of its `contrastive_loss`."""

        task_distill_weight: float

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.task_distill_weight <= 0:
                raise ConfigError(f"task_distill_weight must be positive, found {self.task_distill_weight}. Without it this is gift.")

    def begin_task(self, context: TaskContext, student: Backbone) -> None:
        super().begin_task(context, student)
        assert context.reference_tokens is not None
        self.captions = self.teacher.encode_texts(context.reference_tokens)
        self.teacher.backbone.keep_prepared()  # it is asked in every step

    def task_inputs(self, student: Backbone, batch: TaskBatch) -> HeldInputs:
        return HeldInputs(
            images=batch.images,
            labels=batch.labels,
            classes=class_texts(student, self.context.class_tokens, self.context.ranks),
            teacher_images=self.teacher.encode_images(batch.images, len(batch.labels)),
        )

    def task_terms(self, student: Backbone, inputs: HeldInputs) -> LossTerms:
        context, loss = self.context, self.contrastive_loss
        images = context.ranks.all_gather(student.encode_images(inputs.images), len(inputs.labels))
        logits = similarity_logits(images, inputs.classes.encoded(student, context.ranks), student.scale)
        held = loss.image_distillation(
            loss.logits(images, self.captions, student),
            loss.logits(inputs.teacher_images, self.captions, student),
            temperature=self.config.temperature,
        )
        return LossTerms(
            cross_entropy=task_cross_entropy(logits, inputs.labels, label_smoothing=context.label_smoothing),
            task_distillation=self.config.task_distill_weight * held,
        )

    def end_task(self, student: Backbone) -> None:
        super().end_task(student)
        self.captions = torch.empty(0)
