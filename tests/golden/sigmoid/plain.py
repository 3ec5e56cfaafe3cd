"""The sigmoid losses once more, in numpy and double precision, pair by pair and from the words of docs/sigmoid_losses.md alone.

`python tests/golden/sigmoid/plain.py` prints golden.json beside it: features of a batch whose captions repeat, the two losses, and
their gradients with respect to the student's features by central differences.
"""

import json
import math

import numpy as np

TEMPERATURE, SCALE, BIAS = 2.0, 12.0, -3.0
CAPTION_IDS = [0, 1, 0, 2, 1]
NUM_TEXTS = 7  # of the reference set, which belong to none of the images
STEP = 1e-6


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def logit(image, text):
    return SCALE * float(np.dot(image, text)) + BIAS


def distillation(images, texts, teacher_images, teacher_texts, temperature=TEMPERATURE):
    """T^2 / B times the sum over all pairs of the cross-entropy of two coins: the teacher's, and the student's."""
    total = 0.0
    for image, teacher_image in zip(images, teacher_images, strict=True):
        for text, teacher_text in zip(texts, teacher_texts, strict=True):
            p = sigmoid(logit(teacher_image, teacher_text) / temperature)
            q = sigmoid(logit(image, text) / temperature)
            total -= p * math.log(q) + (1 - p) * math.log(1 - q)
    return temperature**2 * total / len(images)


def alignment(images, texts, caption_ids):
    """Minus the log-probability of what each pair is, a match or none: summed over all pairs, divided by B."""
    total = 0.0
    for image, own in zip(images, caption_ids, strict=True):
        for text, other in zip(texts, caption_ids, strict=True):
            probability = sigmoid(logit(image, text))
            total -= math.log(probability if own == other else 1 - probability)
    return total / len(images)


def gradient(loss, features):
    """Central differences of loss() in every entry of `features`, which is changed in place and put back."""
    found = np.zeros_like(features)
    for place in np.ndindex(*features.shape):
        kept, values = features[place], []
        for step in (STEP, -STEP):
            features[place] = kept + step
            values.append(loss())
        features[place] = kept
        found[place] = (values[0] - values[1]) / (2 * STEP)
    return found


def normalised(rng, rows):
    features = rng.standard_normal((rows, 4))
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def golden():
    rng = np.random.default_rng(0)
    images, teacher_images = normalised(rng, len(CAPTION_IDS)), normalised(rng, len(CAPTION_IDS))
    captions, teacher_captions = (normalised(rng, 3)[CAPTION_IDS] for _ in range(2))  # one feature a caption, repeated
    references = normalised(rng, NUM_TEXTS)
    losses = {
        "distillation": lambda: distillation(images, captions, teacher_images, teacher_captions),
        "distillation_of_probabilities": lambda: distillation(images, captions, teacher_images, teacher_captions, temperature=1.0),
        "distillation_on_references": lambda: distillation(images, references, teacher_images, references),
        "alignment": lambda: alignment(images, captions, CAPTION_IDS),
    }
    inputs = {
        "images": images, "teacher_images": teacher_images, "captions": captions, "teacher_captions": teacher_captions,
        "references": references,
    }  # fmt: skip
    return {
        "inputs": {name: features.tolist() for name, features in inputs.items()},
        "losses": {name: loss() for name, loss in losses.items()},
        "image_gradients": {name: gradient(loss, images).tolist() for name, loss in losses.items()},
        "caption_gradients": {
            name: gradient(loss, captions).tolist() for name, loss in losses.items() if name != "distillation_on_references"
        },
    }


if __name__ == "__main__":
    print(json.dumps(golden(), indent=1))  # noqa: T201
