"""The transforms of METHODS 1.3, held against torchvision's."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as reference

from gift_train.clip.normalise import Normalise
from gift_train.data.transforms import image_transforms, random_resized_crop

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def noise(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(32, 32), (100, 61), (47, 90), (33, 32)])
def test_evaluation_transform_equals_torchvision(size):
    image = noise(*size)
    expected = reference.Compose(
        [
            reference.Resize(32, interpolation=reference.InterpolationMode.BICUBIC),
            reference.CenterCrop(32),
            reference.ToTensor(),
            reference.Normalize(MEAN, STD),
        ]
    )(image)
    images = image_transforms(32).evaluation(image)[None]
    assert images.dtype == torch.uint8
    normalise = Normalise(MEAN, STD, torch.device("cpu"))
    assert torch.equal(normalise(images)[0], expected)
    assert torch.equal(normalise(images.contiguous()), normalise(images))
    assert torch.equal(normalise._computed(images), normalise(images))  # what other devices do


def test_training_transform_has_the_crops_of_torchvision():
    """Means over 4,000 crops of a gradient image, whose pixel values tell where a crop begins and ends."""
    ramp = np.linspace(0, 255, 200, dtype=np.uint8)
    image = Image.fromarray(np.stack(np.broadcast_arrays(ramp[None, :], ramp[:100, None], 0), axis=2).astype(np.uint8))
    ours, theirs = random_resized_crop, reference.RandomResizedCrop(16, scale=(0.9, 1.0), interpolation=reference.InterpolationMode.BICUBIC)
    torch.manual_seed(0)
    ours_corners = np.array([np.asarray(ours(image, 16))[[0, 0, -1], [0, -1, 0]] for _ in range(4000)], dtype=float)
    theirs_corners = np.array([np.asarray(theirs(image))[[0, 0, -1], [0, -1, 0]] for _ in range(4000)], dtype=float)
    assert np.abs(ours_corners.mean(0) - theirs_corners.mean(0)).max() < 0.6  # standard error of the difference is below 0.2
    assert np.abs(ours_corners.std(0) - theirs_corners.std(0)).max() < 0.6


def test_training_transform_repeats_with_the_global_generator():
    train, image = image_transforms(32).train, noise(48, 40)
    torch.manual_seed(7)
    first = train(image)
    second = train(image)
    torch.manual_seed(7)
    assert torch.equal(train(image), first)
    assert not torch.equal(first, second)
    assert first.shape == (3, 32, 32)
    assert first.dtype == torch.uint8


def test_very_long_image_is_cropped_centrally():
    crop = np.asarray(random_resized_crop(noise(400, 30), 24))
    assert np.array_equal(crop, np.asarray(random_resized_crop(noise(400, 30), 24)))  # no try fits: the fallback is fixed
    assert crop.shape == (24, 24, 3)


def test_transforms_travel_to_loader_workers():
    transforms = pickle.loads(pickle.dumps(image_transforms(32)))
    assert transforms.evaluation(noise(32, 32)).shape == (3, 32, 32)
