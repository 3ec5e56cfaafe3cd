"""Joint training: all tasks of the order at once, the upper bound of what one after the other can reach."""

from dataclasses import dataclass

from torch import Tensor

from gift_train.clip.model import Backbone
from gift_train.clip.zero_shot import similarity_logits
from gift_train.data.batches import TaskBatch
from gift_train.data.sources import Draw
from gift_train.methods.base import LossTerms, Method, TaskInputs
from gift_train.methods.losses import own_class_cross_entropy
from gift_train.methods.registry import register
from gift_train.methods.texts import class_texts


@dataclass(frozen=True, kw_only=True)
class JointInputs(TaskInputs):
    """Images of all datasets."""

    own: Tensor  # [B, K] bool: the classes that each image may be of


@register("joint")
class JointTraining(Method):
    """L = mean over a batch of all datasets' images of CE over each image's own dataset's classes; updates as many as all tasks have.

    In an order whose evaluation does not know the task, CE is over the classes of all tasks, as its evaluation is.
    Ours: the papers of this line name the bound, none tells how its images are drawn.
    """

    summary = "All tasks of the order at once, one model; the upper bound."

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """draw: `even`, each dataset as many images as a run of one task after the other gives it; `proportion`, as many as it has."""

        draw: Draw

    def mixture(self) -> Draw:
        draw: Draw = self.config.draw
        return draw

    def task_inputs(self, student: Backbone, batch: TaskBatch) -> JointInputs:
        context = self.context
        assert batch.datasets is not None
        assert context.own_classes is not None
        classes = class_texts(student, context.class_tokens, context.ranks)
        return JointInputs(images=batch.images, labels=batch.labels, classes=classes, own=context.own_classes[batch.datasets])

    def task_terms(self, student: Backbone, inputs: JointInputs) -> LossTerms:
        context = self.context
        images = context.ranks.all_gather(student.encode_images(inputs.images), len(inputs.labels))
        logits = similarity_logits(images, inputs.classes.encoded(student, context.ranks), student.scale)
        loss = own_class_cross_entropy(logits, inputs.labels, inputs.own, label_smoothing=context.label_smoothing)
        return LossTerms(cross_entropy=loss)
