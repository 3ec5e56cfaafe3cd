"""How images and texts are held against each other: by rows and columns of their similarities, as CLIP learned, or pair by pair, as SigLIP.

Both compare one matrix Z [B, N], row = image, column = text. Softmax asks which of the texts an image belongs to, and which of the
images a text: a constant added to Z changes nothing, so a model's `logit_bias` has no part in it. Sigmoid asks of each pair alone
whether it belongs together, and needs the bias to say so.
"""

from typing import Literal, Protocol

from torch import Tensor

from gift_shared.errors import ConfigError
from gift_train.clip.model import Backbone
from gift_train.clip.zero_shot import similarity_logits
from gift_train.methods.losses import (
    alignment_target,
    image_text_alignment,
    row_distillation,
    same_caption,
    sigmoid_alignment,
    sigmoid_distillation,
    two_way_distillation,
)

ContrastiveLossName = Literal["softmax", "sigmoid"]


class ContrastiveLoss(Protocol):
    """The terms that compare images with texts, and the logits that both read."""

    def logits(self, image_features: Tensor, text_features: Tensor, student: Backbone) -> Tensor:
        """[B, D] and [N, D], L2-normalised -> Z [B, N]; scale and bias are the student's, which no model trains."""

    def distillation(self, student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
        """Z_s close to Z_t, both [B, N]; scalar."""

    def image_distillation(self, student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
        """The same for the images alone, where the texts [N] belong to none of them; scalar."""

    def target(self, caption_ids: Tensor) -> Tensor:
        """What `alignment` wants of images and their own captions: ids [B] -> [B, B]."""

    def alignment(self, student_logits: Tensor, target: Tensor, *, label_smoothing: float) -> Tensor:
        """Z_s [B, B] of images and their own captions close to `target`; scalar."""


class SoftmaxLoss:
    """Cross-entropies of rows and columns, `two_way_distillation` and `image_text_alignment`: GIFT and ZSCL as published."""

    def logits(self, image_features: Tensor, text_features: Tensor, student: Backbone) -> Tensor:
        """Z = s f g'."""
        return similarity_logits(image_features, text_features, student.scale)

    def distillation(self, student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
        return two_way_distillation(student_logits, teacher_logits, temperature=temperature)

    def image_distillation(self, student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
        return row_distillation(student_logits, teacher_logits, temperature=temperature)

    def target(self, caption_ids: Tensor) -> Tensor:
        return alignment_target(caption_ids)

    def alignment(self, student_logits: Tensor, target: Tensor, *, label_smoothing: float) -> Tensor:
        return image_text_alignment(student_logits, target, label_smoothing=label_smoothing)


class SigmoidLoss:
    """Binary cross-entropies of pairs, `sigmoid_distillation` and `sigmoid_alignment`: for models that were trained so."""

    def logits(self, image_features: Tensor, text_features: Tensor, student: Backbone) -> Tensor:
        """Z = s f g' + b."""
        assert student.bias is not None  # see require_bias
        return similarity_logits(image_features, text_features, student.scale) + student.bias

    def distillation(self, student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
        return sigmoid_distillation(student_logits, teacher_logits, temperature=temperature)

    def image_distillation(self, student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
        """Pairs are asked one by one: that the texts are not the images' own changes nothing."""
        return self.distillation(student_logits, teacher_logits, temperature=temperature)

    def target(self, caption_ids: Tensor) -> Tensor:
        return same_caption(caption_ids)

    def alignment(self, student_logits: Tensor, target: Tensor, *, label_smoothing: float) -> Tensor:
        """Without label smoothing, which is the task loss's alone here."""
        return sigmoid_alignment(student_logits, target)


def contrastive_loss(name: ContrastiveLossName) -> ContrastiveLoss:
    """The loss of that name."""
    return SigmoidLoss() if name == "sigmoid" else SoftmaxLoss()


def require_bias(name: ContrastiveLossName, student: Backbone) -> None:
    """Raises ConfigError if the loss of that name reads a bias that the model does not have."""
    if name == "sigmoid" and student.bias is None:
        raise ConfigError(
            'contrastive_loss = "sigmoid" reads a model\'s logit_bias, and this one has none: it was trained by softmax, not as SigLIP.'
            ' Take a model with a bias (ViT-B-16-SigLIP, ...), or contrastive_loss = "softmax".'
        )
