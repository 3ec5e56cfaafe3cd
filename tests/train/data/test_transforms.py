"""The transforms of METHODS 1.3, held against torchvision's."""

import pickle
import subprocess
import sys

import numpy as np
import open_clip
import pytest
import torch
from open_clip.pretrained import get_pretrained_cfg
from open_clip.transform import PreprocessCfg, image_transform, merge_preprocess_dict
from PIL import Image
from torchvision import transforms as reference

from gift_shared.errors import ConfigError
from gift_train.clip.normalise import Normalise
from gift_train.clip.preprocessing import resize_settings
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


def ways_of_published_models():
    """(interpolation, resize_mode, fill_color) of every model and tag that open_clip lists, and the one it has beside them."""
    found = {("bicubic", "longest", 0), ("bilinear", "longest", 127)}
    for model, tag in open_clip.list_pretrained():
        own = open_clip.get_model_config(model).get("preprocess_cfg", {})
        settings = PreprocessCfg(**merge_preprocess_dict(merge_preprocess_dict(PreprocessCfg(), own), get_pretrained_cfg(model, tag)))
        found.add((settings.interpolation, settings.resize_mode, settings.fill_color))
    return sorted(found)


def test_the_published_models_ways_are_these():
    assert {way[:2] for way in ways_of_published_models()} == {
        (interpolation, mode) for interpolation in ("bicubic", "bilinear") for mode in ("shortest", "squash", "longest")
    }


@pytest.mark.parametrize("way", ways_of_published_models())
@pytest.mark.parametrize("size", [(750, 500), (61, 100), (224, 224), (30, 400), (225, 224)])
def test_evaluation_transform_has_the_pixels_of_open_clips(way, size):
    interpolation, mode, fill = way
    image = noise(*size)
    preprocess = image_transform(224, False, (0.0,) * 3, (1.0,) * 3, resize_mode=mode, interpolation=interpolation, fill_color=fill)
    settings = resize_settings({"interpolation": interpolation, "resize_mode": mode, "fill_color": fill})
    assert torch.equal(image_transforms(224, settings).evaluation(image), (preprocess(image) * 255).round().to(torch.uint8))


def test_transforms_of_other_ways_are_told_apart_and_travel_to_other_processes():
    ways = [
        ("bicubic", "shortest", 0),
        ("bilinear", "shortest", 0),
        ("bicubic", "squash", 0),
        ("bicubic", "longest", 0),
        ("bicubic", "longest", 9),
    ]
    keys = ("interpolation", "resize_mode", "fill_color")
    transforms = [image_transforms(32, resize_settings(dict(zip(keys, way, strict=True)))) for way in ways]
    assert len({both.evaluation.name for both in transforms}) == 5
    assert {both.train.name for both in transforms} == {"random-resized-crop", "bilinear-random-resized-crop"}
    image = noise(48, 40)
    for both in transforms:
        assert torch.equal(pickle.loads(pickle.dumps(both)).evaluation(image), both.evaluation(image))
    torch.manual_seed(0)
    bicubic = transforms[0].train(image)
    torch.manual_seed(0)
    assert not torch.equal(transforms[1].train(image), bicubic)


def test_a_way_that_open_clip_has_not_is_refused():
    with pytest.raises(ConfigError, match="resize_mode"):
        resize_settings({"resize_mode": "stretch"})


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
