"""Image transforms of the protocol. A picture comes in as an RGB PIL image and leaves as a normalised float32 tensor.

Randomness is torch's global generator, so a checkpoint that keeps its state keeps the crops of a resumed run.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

ImageTransform = Callable[[Image.Image], Tensor]

CROP_AREA = (0.9, 1.0)  # of the image's area
CROP_ASPECT = (3 / 4, 4 / 3)  # width over height
_CROP_TRIES = 10


@dataclass(frozen=True, kw_only=True)
class ImageTransforms:
    """The two transforms of a run: `train` for the current task's images, `evaluation` for tests, replay and memory."""

    train: ImageTransform
    evaluation: ImageTransform


def image_transforms(image_size: int, mean: Sequence[float], std: Sequence[float]) -> ImageTransforms:
    """Both transforms for square inputs of `image_size` pixels; mean and std per channel, on the 0-1 scale.

    train: random resized crop, no flip and no colour change. evaluation: shorter side to image_size, centre crop. Both
    resize bicubically and end normalised, [3, image_size, image_size].
    Source: METHODS 1.3. RGB conversion comes before the resize here and after it there: the difference is rounding.
    """
    normalise = _Normalise(mean, std)
    return ImageTransforms(
        train=_Transform(random_resized_crop, image_size, normalise),
        evaluation=_Transform(centre_crop, image_size, normalise),
    )


def random_resized_crop(image: Image.Image, image_size: int) -> Image.Image:
    """A random crop of CROP_AREA and CROP_ASPECT, resized to a square.

    The distribution of torchvision's RandomResizedCrop at these settings. All numbers come from one draw, as its six or
    more draws per image cost three times the rest of the transform at 32 pixels.
    """
    width, height = image.size
    draws = torch.rand(_CROP_TRIES, 4, dtype=torch.float64).tolist()
    low, high = math.log(CROP_ASPECT[0]), math.log(CROP_ASPECT[1])
    for for_area, for_aspect, for_left, for_top in draws:
        area = width * height * (CROP_AREA[0] + for_area * (CROP_AREA[1] - CROP_AREA[0]))
        aspect = math.exp(low + for_aspect * (high - low))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left, top = int(for_left * (width - crop_width + 1)), int(for_top * (height - crop_height + 1))
            return _resize(image.crop((left, top, left + crop_width, top + crop_height)), image_size, image_size)
    # No try fitted, so the image is long: the largest central crop of an allowed aspect.
    aspect = min(max(width / height, CROP_ASPECT[0]), CROP_ASPECT[1])
    crop_width, crop_height = min(width, round(height * aspect)), min(height, round(width / aspect))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return _resize(image.crop((left, top, left + crop_width, top + crop_height)), image_size, image_size)


def centre_crop(image: Image.Image, image_size: int) -> Image.Image:
    """Shorter side to image_size, the longer in proportion (rounded down), then the central square: as torchvision does."""
    width, height = image.size
    shorter = min(width, height)
    image = _resize(image, int(image_size * width / shorter), int(image_size * height / shorter))
    left, top = round((image.width - image_size) / 2), round((image.height - image_size) / 2)
    return image if image.width == image.height else image.crop((left, top, left + image_size, top + image_size))


def _resize(image: Image.Image, width: int, height: int) -> Image.Image:
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)


@dataclass(frozen=True)
class _Transform:
    """A class, since loader workers must be able to pickle it."""

    to_square: Callable[[Image.Image, int], Image.Image]
    image_size: int
    normalise: "_Normalise"

    def __call__(self, image: Image.Image) -> Tensor:
        return self.normalise(self.to_square(image, self.image_size))


class _Normalise:
    """RGB PIL image -> (pixel / 255 - mean) / std, float32 [3, H, W]; the value of torchvision's ToTensor and Normalize."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = np.array(mean, dtype=np.float32)
        self.std = np.array(std, dtype=np.float32)

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = np.asarray(image).astype(np.float32)
        pixels /= 255
        pixels -= self.mean
        pixels /= self.std
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy())
