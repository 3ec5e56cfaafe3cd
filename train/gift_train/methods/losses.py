"""The equations that methods are made of, as pure functions of tensors. No model, no optimizer, no state.

Notation: s = exp(logit_scale); f, g = L2-normalised image and text features; Z = s f g', row = image, column = text;
T = temperature; b = logit_bias, which SigLIP adds to Z and CLIP does not have; index t = teacher (always detached by its maker),
s = student. Sections are those of the method notes the docstrings quote: D(Z_t, Z_s) is the cross-entropy form of
T^2 KL(teacher || student), with the same gradient. The sigmoid forms are ours, after SigLIP's own loss.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from gift_shared.errors import ShapeError


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


def own_class_cross_entropy(logits: Tensor, labels: Tensor, own: Tensor, *, label_smoothing: float) -> Tensor:
    """As `task_cross_entropy` where each image has its own list of classes: softmax and smoothing are over that list alone.

    L = -1/B sum_i [ (1 - eps) log p_i(y_i) + eps / K_i sum_{k in C_i} log p_i(k) ],   p_i = softmax(Z_i) over C_i,   K_i = |C_i|

    Args:
        logits: [B, K], images against all classes, scaled. labels: [B], each within its image's list.
        own: [B, K] bool, C_i: the classes that image i may be of.
        label_smoothing: eps, fraction in [0, 1).
    Returns: scalar, mean over B.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or own.shape != logits.shape:
        found = f"{list(logits.shape)}, {list(labels.shape)} and {list(own.shape)}"
        raise ShapeError(f"Expected logits [B, K], labels [B] and own classes [B, K], found {found}.")
    log_probabilities = logits.masked_fill(~own, -torch.inf).log_softmax(dim=1)
    of_label = log_probabilities.gather(1, labels[:, None]).squeeze(1)
    mean_of_own = log_probabilities.masked_fill(~own, 0.0).sum(dim=1) / own.sum(dim=1)
    return -((1 - label_smoothing) * of_label + label_smoothing * mean_of_own).mean()


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
        student_logits, teacher_logits: [R, K], scaled; rows are images, columns texts: a batch's own captions [B, B], or texts that
            belong to none of the images.
        temperature: T > 0, no unit.
    Returns: scalar. At Z_s = Z_t it is T^2 times the teacher's two mean entropies, not zero.
    Source: ZSCL (arXiv 2303.06628) and its forms of LwF, LwF-VR and iCaRL; contrastive distillation of GIFT (arXiv 2503.04229), L_CD,
        in the form of the authors' code.
    """
    return row_distillation(student_logits, teacher_logits, temperature=temperature) + row_distillation(
        student_logits.T, teacher_logits.T, temperature=temperature
    )


def alignment_target(caption_ids: Tensor) -> Tensor:
    """Which captions belong to which images: Y_ij = [c_i = c_j] / sum_k [c_i = c_k].

    Args:
        caption_ids: [B], equal exactly where the caption strings are equal.
    Returns: [B, B], symmetric; each row sums to 1, shared evenly among the columns whose caption equals the row's.
    """
    equal = same_caption(caption_ids)
    return equal / equal.sum(dim=1, keepdim=True)


def same_caption(caption_ids: Tensor) -> Tensor:
    """[c_i = c_j] as 1.0 and 0.0: ids [B] -> [B, B], symmetric."""
    if caption_ids.ndim != 1:
        raise ShapeError(f"Expected caption ids [B], found {list(caption_ids.shape)}.")
    return (caption_ids[:, None] == caption_ids[None, :]).float()


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


def sigmoid_distillation(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """Keep each pair's own probability of belonging together, sigma(Z), close to the teacher's (direction: teacher || student).

    L = T^2 / B sum_ij H(sigma(Z_t[ij] / T), sigma(Z_s[ij] / T)),   H(p, q) = -p log q - (1 - p) log(1 - q),   Z = s f g' + b

    The bias is divided by T with the rest: a pair that is even to the model, Z = 0, stays even at every T. The gradient with respect to
    Z_s[ij] is T / B (sigma(Z_s[ij] / T) - sigma(Z_t[ij] / T)), that of T^2 KL(teacher || student) of each pair.

    Args:
        student_logits, teacher_logits: [B, N]; row = image, column = text; scaled, and with the bias added.
        temperature: T > 0, no unit; 1 compares the probabilities that the models give.
    Returns: scalar; a sum over the N texts, a mean over the B images, as SigLIP's own loss counts. At Z_s = Z_t it is the teacher's
        entropies, not zero.
    Source: ours; the pairwise form of `row_distillation`, for models trained by the loss of SigLIP (arXiv 2303.15343).
    """
    _require_same_matrix(student_logits, teacher_logits)
    target = (teacher_logits / temperature).sigmoid()
    total = F.binary_cross_entropy_with_logits(student_logits / temperature, target, reduction="sum")
    return temperature**2 * total / len(student_logits)


def sigmoid_alignment(student_logits: Tensor, is_pair: Tensor) -> Tensor:
    """Hold synthetic images to the captions they were painted from, pair by pair: SigLIP's own loss.

    L = -1 / B sum_ij log sigma(y_ij Z_s[ij]),   y_ij = 1 where c_i = c_j, -1 elsewhere,   Z = s f g' + b

    A caption of m images of the batch stands in m columns: each of its m^2 pairs belongs together, and each counts. No label
    smoothing: a target of eps / 2 for every pair that does not belong together would be far above what the bias makes of it.

    Args:
        student_logits: [B, B]; row = image, column = caption; scaled, and with the bias added.
        is_pair: [B, B], 1.0 and 0.0, from `same_caption`.
    Returns: scalar; a sum over the captions, a mean over the images.
    Source: SigLIP (arXiv 2303.15343), whose batches repeat no caption; in place of GIFT's `image_text_alignment`.
    """
    _require_same_matrix(student_logits, is_pair)
    _require_square(student_logits)
    total = F.binary_cross_entropy_with_logits(student_logits, is_pair.to(student_logits.dtype), reduction="sum")
    return total / len(student_logits)


def feature_distance(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Squared distance of features, mean over B x D: the "Feat. Dist." row of GIFT's ablation, one tower at a time.

    Args:
        student_features, teacher_features: [B, D], L2-normalised.
    Returns: scalar. The mean over D makes it tiny beside `two_way_distillation`.
    """
    _require_same_matrix(student_features, teacher_features)
    return F.mse_loss(student_features, teacher_features)


def _require_same_matrix(first: Tensor, second: Tensor) -> None:
    if first.ndim != 2 or first.shape != second.shape:
        raise ShapeError(f"Expected two matrices of one shape, found {list(first.shape)} and {list(second.shape)}.")


def _require_square(logits: Tensor) -> None:
    if logits.shape[0] != logits.shape[1]:
        raise ShapeError(f"Expected a square matrix, images x their own captions, found {list(logits.shape)}.")
