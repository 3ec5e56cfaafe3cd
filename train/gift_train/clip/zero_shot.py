"""CLIP as a classifier: images against the texts of class names. No training, no test sets."""

from collections.abc import Callable

import torch
from torch import Tensor

from gift_shared.errors import ShapeError
from gift_shared.manifests import TaskManifest
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
def class_features(student: Backbone, manifest: TaskManifest) -> Tensor:
    """One text feature per class: every template encoded and normalised, averaged, normalised again. [K, D] (METHODS 1.12)."""
    tokens = student.tokenize(manifest.prompts)
    features = in_blocks(lambda block: student.encode_texts(student.trim(block)), tokens)
    per_class = features.view(len(manifest.class_names), len(manifest.templates), -1).mean(dim=1)
    return torch.nn.functional.normalize(per_class, dim=-1)


def zero_shot_scores(student: Backbone, manifest: TaskManifest) -> Callable[[Tensor], Tensor]:
    """Images [B, 3, H, W] to their scaled similarities [B, K] to the classes. The text features are computed once, here."""
    text_features = class_features(student, manifest)
    return lambda images: similarity_logits(student.encode_images(images), text_features, student.scale)


def most_similar(scores: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A classifier from similarities: images [B, 3, H, W] to the labels [B] of the most similar classes."""
    return lambda images: scores(images).argmax(dim=1)
