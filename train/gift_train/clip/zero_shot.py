"""CLIP as a classifier: images against the texts of class names. No training, no test sets."""

from collections.abc import Callable

import torch
from torch import Tensor

from gift_shared.errors import ShapeError
from gift_shared.manifests import Classes, JoinedClasses
from gift_train.clip.model import Backbone, in_blocks


def similarity_logits(image_features: Tensor, text_features: Tensor, scale: Tensor) -> Tensor:
    """Scaled cosine similarities, Z = s f g'.

    Args:
        image_features, text_features: [B, D] and [K, D], L2-normalised.
        scale: s = exp(logit_scale), a scalar.
    Returns: [B, K].
    Raises: ShapeError if the two feature widths differ.
    """
    if image_features.ndim != 2 or text_features.ndim != 2 or image_features.shape[1] != text_features.shape[1]:
        raise ShapeError(f"Expected features [B, D] and [K, D], found {list(image_features.shape)} and {list(text_features.shape)}.")
    return scale * image_features @ text_features.T


@torch.no_grad()
def class_features(student: Backbone, classes: Classes) -> Tensor:
    """One text feature per class: every template encoded and normalised, averaged, normalised again. [K, D] (METHODS 1.12).

    Of joined classes the features of each dataset are those it has alone, to the last bit.
    """
    return torch.nn.functional.normalize(mean_text_features(student, classes), dim=-1)


@torch.no_grad()
def mean_text_features(student: Backbone, classes: Classes) -> Tensor:
    """The mean of each class's text features, one of every template; shorter than 1 by as much as they differ. [K, D]."""
    if isinstance(classes, JoinedClasses):
        return torch.cat([mean_text_features(student, part) for part in classes.parts])
    tokens = student.tokenize(classes.prompts)
    features = in_blocks(lambda block: student.encode_texts(student.trim(block)), tokens)
    return features.view(len(classes.class_names), len(classes.prompts) // len(classes.class_names), -1).mean(dim=1)


def zero_shot_scores(student: Backbone, classes: Classes) -> Callable[[Tensor], Tensor]:
    """Images [B, 3, H, W] to their scaled similarities [B, K] to the classes. The text features are computed once, here."""
    text_features = class_features(student, classes)
    return lambda images: similarity_logits(student.encode_images(images), text_features, student.scale)
