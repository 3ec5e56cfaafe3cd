"""The equations that methods are made of, as pure functions of tensors. No model, no optimizer, no state.

Notation: s = exp(logit_scale); f, g = L2-normalised image and text features; Z = s f g', row = image, column = text;
T = temperature; index t = teacher (always detached by its maker), s = student. Sections are those of the method notes the
docstrings quote: D(Z_t, Z_s) is the cross-entropy form of T^2 KL(teacher || student), with the same gradient.
"""

import torch.nn.functional as F
from torch import Tensor

from gift_shared.errors import ShapeError
from gift_train.clip.zero_shot import similarity_logits


def task_cross_entropy(logits: Tensor, labels: Tensor, *, label_smoothing: float) -> Tensor:
    """How badly the current task's images are told apart: L_task = CE(Z, y; eps), target (1 - eps) y + eps / K.

    Args:
        logits: [B, K], images against all class prompts of the current task, scaled.
        labels: [B], class indices.
        label_smoothing: eps, fraction in [0, 1).
    Returns: scalar, mean over B.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ShapeError(f"Expected logits [B, K] and labels [B], found {list(logits.shape)} and {list(labels.shape)}.")
    return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)


def row_distillation(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """Keep each row's distribution over the columns close to the teacher's (direction: teacher || student).

    D(Z_t, Z_s) = T^2 / R sum_r H(softmax(Z_t[r] / T), softmax(Z_s[r] / T)),   H = cross-entropy

    Args:
        student_logits, teacher_logits: [R, K], scaled.
        temperature: T > 0, no unit.
    Returns: scalar, mean over R. At Z_s = Z_t it is T^2 times the teacher's mean entropy, not zero.
    """
    _require_same_matrix(student_logits, teacher_logits)
    return temperature**2 * F.cross_entropy(student_logits / temperature, (teacher_logits / temperature).softmax(dim=1))


def two_way_distillation(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """Distil rows and columns of one similarity matrix: D2(Z_t, Z_s) = D(Z_t, Z_s) + D(Z_t', Z_s'), a plain sum without 1/2.

    Args:
        student_logits, teacher_logits: [R, K], scaled; rows are images, columns texts, not necessarily paired.
        temperature: T > 0, no unit.
    Returns: scalar.
    Source: ZSCL (arXiv 2303.06628), LwF in its form for CLIP.
    """
    return row_distillation(student_logits, teacher_logits, temperature=temperature) + row_distillation(
        student_logits.T, teacher_logits.T, temperature=temperature
    )


def fixed_text_distillation(
    image_features: Tensor, teacher_image_features: Tensor, teacher_text_features: Tensor, *, scale: Tensor, temperature: float
) -> Tensor:
    """Distil the image tower alone: the teacher's text features stand on both sides.

    L = D2(s f_T(x) g_T(R)', s f(x) g_T(R)'),   R = reference texts that need not belong to the images

    Args:
        image_features, teacher_image_features: [B, D], L2-normalised.
        teacher_text_features: [N, D], L2-normalised, constant within a task.
        scale, temperature: s and T as elsewhere.
    Returns: scalar.
    Source: ZSCL (arXiv 2303.06628) and its forms of LwF, LwF-VR and iCaRL.
    """
    student_logits = similarity_logits(image_features, teacher_text_features, scale)
    teacher_logits = similarity_logits(teacher_image_features, teacher_text_features, scale)
    return two_way_distillation(student_logits, teacher_logits, temperature=temperature)


def contrastive_distillation(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """Keep the student's image-text similarities within a batch of pairs close to the teacher's.

    L_CD = T^2 [ H(softmax(Z_t / T), softmax(Z_s / T)) + H(softmax(Z_t' / T), softmax(Z_s' / T)) ],   H = cross-entropy

    Args:
        student_logits, teacher_logits: [B, B]; row = image, column = its batch's captions; already scaled by exp(logit_scale).
        temperature: T > 0, no unit.
    Returns: scalar, mean over B. At Z_s = Z_t it is T^2 times the teacher's two entropies, not zero.
    Raises: ShapeError if the two are not the same square.
    Source: GIFT (arXiv 2503.04229), contrastive distillation; form as in the authors' code, same gradient as KL(teacher || student).
    """
    _require_same_matrix(student_logits, teacher_logits)
    _require_square(student_logits)
    return two_way_distillation(student_logits, teacher_logits, temperature=temperature)


def alignment_target(caption_ids: Tensor) -> Tensor:
    """Which captions belong to which images: Y_ij = [c_i = c_j] / sum_k [c_i = c_k].

    Args:
        caption_ids: [B], equal exactly where the caption strings are equal.
    Returns: [B, B], symmetric; each row sums to 1, shared evenly among the columns whose caption equals the row's.
    """
    if caption_ids.ndim != 1:
        raise ShapeError(f"Expected caption ids [B], found {list(caption_ids.shape)}.")
    equal = (caption_ids[:, None] == caption_ids[None, :]).float()
    return equal / equal.sum(dim=1, keepdim=True)


def image_text_alignment(student_logits: Tensor, target: Tensor, *, label_smoothing: float) -> Tensor:
    """Hold synthetic images to the captions they were painted from: L_ITA = CE(Z_s, Y; eps) + CE(Z_s', Y; eps).

    Args:
        student_logits: [B, B], scaled; row = image, column = caption.
        target: [B, B], from `alignment_target`; symmetric, so it serves both directions.
        label_smoothing: eps, fraction in [0, 1). The authors smooth here too, with the task loss's value.
    Returns: scalar, mean over B.
    Source: GIFT (arXiv 2503.04229). In the authors' code this is an added loss, not a mixture with the teacher's targets.
    """
    _require_same_matrix(student_logits, target)
    _require_square(student_logits)
    image_to_text = F.cross_entropy(student_logits, target, label_smoothing=label_smoothing)
    text_to_image = F.cross_entropy(student_logits.T, target, label_smoothing=label_smoothing)
    return image_to_text + text_to_image


def feature_distance(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Squared distance of features, mean over B x D: the "Feat. Dist." row of GIFT's ablation, one tower at a time.

    Args:
        student_features, teacher_features: [B, D], L2-normalised.
    Returns: scalar. The mean over D makes it tiny beside `contrastive_distillation`.
    """
    _require_same_matrix(student_features, teacher_features)
    return F.mse_loss(student_features, teacher_features)


def _require_same_matrix(first: Tensor, second: Tensor) -> None:
    if first.ndim != 2 or first.shape != second.shape:
        raise ShapeError(f"Expected two matrices of one shape, found {list(first.shape)} and {list(second.shape)}.")


def _require_square(logits: Tensor) -> None:
    if logits.shape[0] != logits.shape[1]:
        raise ShapeError(f"Expected a square matrix, images x their own captions, found {list(logits.shape)}.")
