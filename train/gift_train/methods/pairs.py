"""What losses on synthetic image-text pairs are made of, for the methods that hold the student against a teacher on them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gift_train.clip.model import Backbone
from gift_train.data.replay import ReplayBatch
from gift_train.methods.contrastive import ContrastiveLoss
from gift_train.methods.teacher import Teacher
from gift_train.methods.texts import Texts, caption_texts


@dataclass(frozen=True, kw_only=True)
class PairInputs:
    """A batch of B images and their captions, and what the teacher sees in both."""

    images: Tensor  # [B or this rank's share, 3, H, W]
    captions: Texts | None  # None where the student does not read them
    teacher_images: Tensor  # [B, D]
    teacher_texts: Tensor  # [B, D]
    target: Tensor | None  # [B, B], see ContrastiveLoss.target; None where nothing is aligned


def pair_inputs(
    student: Backbone, teacher: Teacher, batch: ReplayBatch, loss: ContrastiveLoss, *, reads_captions: bool = True, aligns: bool = True
) -> PairInputs:
    """Of one batch of the replay stream."""
    return PairInputs(
        images=batch.images,
        captions=caption_texts(student, batch, teacher.ranks) if reads_captions else None,
        teacher_images=teacher.image_features(batch),
        teacher_texts=teacher.text_features(batch),
        target=loss.target(batch.caption_ids).to(student.device, non_blocking=True) if aligns else None,
    )
