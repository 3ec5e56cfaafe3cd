"""What LwF, LwF-VR, iCaRL and ZSCL share: the image tower is distilled against texts that stay as the teacher sees them."""

from dataclasses import dataclass

from torch import Tensor

from gift_train.clip.model import Backbone
from gift_train.data.replay import ReplayBatch
from gift_train.methods.base import LossTerms, TaskContext
from gift_train.methods.contrastive import ContrastiveLossName, contrastive_loss
from gift_train.methods.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class DistillationInputs:
    """One replay batch, and what the teacher sees in it."""

    images: Tensor  # [B or this rank's share, 3, H, W]
    teacher_images: Tensor  # [B, D]


class ImageDistillation:
    """D2(s f_T(x) g_T(R)', s f(x) g_T(R)') of one task: teacher, reference texts R and the replay images' features, computed once.

    The teacher's text features stand on both sides (METHODS 2.4). `loss` names the form of D2, see `contrastive`.
    """

    def __init__(
        self, teacher: Backbone, context: TaskContext, *, weight: float, temperature: float, loss: ContrastiveLossName = "softmax"
    ) -> None:
        """`teacher` is frozen; `weight` multiplies both directions, `temperature` has no unit."""
        assert context.reference_tokens is not None
        self.weight = weight
        self.temperature = temperature
        self.loss = contrastive_loss(loss)
        self.ranks = context.ranks
        self.teacher = Teacher(teacher, context.ranks)
        self.reference_features = self.teacher.encode_texts(context.reference_tokens)
        if context.replay_pass is not None:
            self.teacher.cache_features(context.replay_pass(), captions=False)

    def inputs(self, batch: ReplayBatch) -> DistillationInputs | None:
        """Of one replay batch; None where the weight is 0."""
        if self.weight == 0:
            return None
        return DistillationInputs(images=batch.images, teacher_images=self.teacher.image_features(batch))

    def terms(self, student: Backbone, inputs: DistillationInputs) -> LossTerms:
        """The weighted term `distillation`."""
        images = self.ranks.all_gather(student.encode_images(inputs.images), len(inputs.teacher_images))
        logits = self.loss.logits(images, self.reference_features, student)
        teacher_logits = self.loss.logits(inputs.teacher_images, self.reference_features, student)
        distillation = self.loss.distillation(logits, teacher_logits, temperature=self.temperature)
        return LossTerms(distillation=self.weight * distillation)
