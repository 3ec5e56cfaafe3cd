"""Image transforms of the protocol, and the normalisation that follows them on the model's device.

A picture comes in as an RGB PIL image and leaves as bytes, uint8 [3, S, S]: what is kept in memory or on disk, what loader processes
hand over and what travels to an accelerator is a quarter of the floats it stands for. Randomness is torch's global generator, so a
checkpoint that keeps its state keeps the crops of a resumed run.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from gift_train.clip.preprocessing import OPENAI, ResizeSettings, fit_and_fill

Pixels = NDArray[np.uint8]  # [H, W, 3], 0-255

CROP_AREA = (0.9, 1.0)  # of the image's area
CROP_ASPECT = (3 / 4, 4 / 3)  # width over height
_CROP_TRIES = 10
LONGEST_RESIZED_WHOLE = 32  # longer side over shorter; at 224 pixels a picture of 5 MB
_REACH = 2  # pixels to either side that a bicubic filter looks at, of the larger of image and result; a bilinear one at fewer


@dataclass(frozen=True)
class ImageTransform:
    """RGB image -> square of `image_size` pixels. A class, since loader workers must be able to pickle it."""

    name: str  # of what it does; changes with it, as files of prepared images are told apart by it
    to_square: Callable[[Image.Image, int], Image.Image]
    image_size: int
    is_random: bool

    def pixels(self, image: Image.Image) -> Pixels:
        """uint8 [S, S, 3]; what a cache keeps where the transform is repeatable."""
        return np.array(self.to_square(image, self.image_size))

    def __call__(self, image: Image.Image) -> Tensor:
        """uint8 [3, S, S]."""
        return as_tensor(self.pixels(image))


@dataclass(frozen=True, kw_only=True)
class ImageTransforms:
    """The two transforms of a run: `train`, random, for the current task's images; `evaluation` for tests, replay and memory."""

    train: ImageTransform
    evaluation: ImageTransform


def image_transforms(image_size: int, resize: ResizeSettings = OPENAI) -> ImageTransforms:
    """Both transforms for square inputs of `image_size` pixels.

    train: random resized crop, no flip and no colour change. evaluation: as the model wants it, for OpenAI's CLIP the shorter side to
    image_size and a centre crop. Both resize by the model's interpolation. Sources: METHODS 1.3, open_clip's `image_transform`, whose
    pixels these are. RGB conversion comes before the resize here and after it there: the difference is rounding.
    """
    crop = partial(random_resized_crop, resample=resize.filter)
    kinds = {
        "shortest": ("centre-crop", partial(centre_crop, resample=resize.filter)),
        "squash": ("squash", partial(squash, resample=resize.filter)),
        "longest": (f"longest-fill-{resize.fill_color}", partial(fit_and_fill, resize=resize)),
    }
    kind, to_square = kinds[resize.mode]
    prefix = "" if resize.interpolation == "bicubic" else f"{resize.interpolation}-"
    return ImageTransforms(
        train=ImageTransform(f"{prefix}random-resized-crop", crop, image_size, is_random=True),
        evaluation=ImageTransform(f"{resize.interpolation}-{kind}", to_square, image_size, is_random=False),
    )


def as_tensor(pixels: Pixels) -> Tensor:
    """[H, W, 3] -> [3, H, W], the same memory."""
    return torch.from_numpy(pixels).permute(2, 0, 1)


def random_resized_crop(image: Image.Image, image_size: int, resample: Image.Resampling = Image.Resampling.BICUBIC) -> Image.Image:
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
            return _resize(image.crop((left, top, left + crop_width, top + crop_height)), image_size, image_size, resample)
    # No try fitted, so the image is long: the largest central crop of an allowed aspect.
    aspect = min(max(width / height, CROP_ASPECT[0]), CROP_ASPECT[1])
    crop_width, crop_height = min(width, round(height * aspect)), min(height, round(width / aspect))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return _resize(image.crop((left, top, left + crop_width, top + crop_height)), image_size, image_size, resample)


def squash(image: Image.Image, image_size: int, resample: Image.Resampling = Image.Resampling.BICUBIC) -> Image.Image:
    """Both sides to image_size, whatever the proportions were."""
    return _resize(image, image_size, image_size, resample)


def centre_crop(image: Image.Image, image_size: int, resample: Image.Resampling = Image.Resampling.BICUBIC) -> Image.Image:
    """Shorter side to image_size, the longer in proportion (rounded down), then the central square: as torchvision does.

    Of an image longer than LONGEST_RESIZED_WHOLE times its width only the part is resized that the square shows: the whole of
    1 x 20,000 pixels would become 224 x 4,480,000. Its values are those of the whole up to the rounding of a pixel, one level of 255.
    """
    width, height = image.size
    shorter = min(width, height)
    resized_width, resized_height = int(image_size * width / shorter), int(image_size * height / shorter)
    if max(width, height) > LONGEST_RESIZED_WHOLE * shorter:
        return _centre_of_long(image, image_size, max(resized_width, resized_height), resample)
    image = _resize(image, resized_width, resized_height, resample)
    left, top = round((image.width - image_size) / 2), round((image.height - image_size) / 2)
    return image if image.width == image.height else image.crop((left, top, left + image_size, top + image_size))


def _centre_of_long(image: Image.Image, image_size: int, resized_length: int, resample: Image.Resampling) -> Image.Image:
    """The central square of an image whose longer side becomes `resized_length` pixels, without the rest of them."""
    length = max(image.size)
    scale = length / resized_length  # pixels of the image to one of the square, along the longer side
    first = round((resized_length - image_size) / 2) * scale
    last = first + image_size * scale
    # Cut with the margin that the filter sees first: Pillow holds a box in 32 bits, which would shift it far from the origin.
    margin = _REACH * max(scale, 1) + 1
    start, end = max(0, math.floor(first - margin)), min(length, math.ceil(last + margin))
    # One axis after the other in the order of Pillow's own resize (13.0), since what is between them is rounded.
    if image.width > image.height:
        part = image.crop((start, 0, end, image.height))
        columns = (first - start, 0, last - start, image.height)
        return _resize(part.resize((image_size, image.height), resample, box=columns), image_size, image_size, resample)
    part = image.crop((0, start, image.width, end))
    if scale < 1:
        part = _resize(part, image_size, part.height, resample)
    rows = (0, first - start, part.width, last - start)
    return _resize(part.resize((part.width, image_size), resample, box=rows), image_size, image_size, resample)


def _resize(image: Image.Image, width: int, height: int, resample: Image.Resampling) -> Image.Image:
    return image if image.size == (width, height) else image.resize((width, height), resample)
