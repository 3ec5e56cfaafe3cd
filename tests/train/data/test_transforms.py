"""The transforms of METHODS 1.3, held against torchvision's."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as reference

from gift_train.clip.normalise import Normalise
from gift_train.data.transforms import LONGEST_RESIZED_WHOLE, centre_crop, image_transforms, random_resized_crop

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


def long_and_short():
    """Sizes up to some hundred times as long as wide, upright and lying, enlarged and reduced."""
    generator = np.random.default_rng(1)
    for _ in range(60):
        short = int(generator.integers(1, 90))
        long = int(short * np.exp(generator.uniform(0, np.log(min(300, 9000 / short)))))
        yield (short, long) if generator.integers(2) else (long, short)


@pytest.mark.parametrize("image_size", [7, 32, 64])
def test_long_images_are_resized_as_if_they_were_resized_whole(image_size):
    """Bit for bit up to LONGEST_RESIZED_WHOLE, and beyond it but for the rounding of a few values."""
    num_compared, num_other = 0, 0
    for size in long_and_short():
        image = noise(*size)
        plain = reference.CenterCrop(image_size)(reference.Resize(image_size, reference.InterpolationMode.BICUBIC)(image))
        difference = np.abs(np.asarray(centre_crop(image, image_size)).astype(int) - np.asarray(plain).astype(int))
        if max(size) <= LONGEST_RESIZED_WHOLE * min(size):
            assert difference.max() == 0, size
        else:
            assert difference.max() <= 1, size
            num_compared, num_other = num_compared + difference.size, num_other + int((difference > 0).sum())
    assert num_compared > 0
    assert num_other <= num_compared / 1000


def test_an_image_like_a_thread_takes_no_more_memory_than_others():
    """Resized whole, the first would take 3 GB at 224 pixels; a limit on this process's memory holds both transforms to 0.5 GB."""
    program = (
        "import resource, sys\n"
        "from PIL import Image\n"
        "from gift_train.data.transforms import image_transforms\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 500_000_000, resource.RLIM_INFINITY))\n"
        "both = image_transforms(224)\n"
        "for size in ((1, 20_000), (20_000, 1), (3, 50_000)):\n"
        "    image = Image.new('RGB', size, 'red')\n"
        "    assert both.train(image).shape == both.evaluation(image).shape == (3, 224, 224)\n"
        "    assert (both.evaluation(image)[0] == 255).all()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
