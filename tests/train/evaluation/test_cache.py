"""Prepared test images on disk: bit for bit what the loaders give, never a stale file, shared by runs."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from gift_shared.atomic import temporary_for
from gift_shared.manifests import TaskManifest
from gift_shared.processes import this_process
from gift_train.data.loader import Loading
from gift_train.data.tasks import load_test
from gift_train.data.transforms import image_transforms
from gift_train.evaluation.cache import EvaluationCache

CLASSES = ("fox", "wolf")
DATA = {"kind": "image_folder", "test": "animals"}
MANIFEST = TaskManifest(name="animals", display_name="Animals", class_names=CLASSES, templates=("a {}.",), data=DATA, counts={}, about={})


@pytest.fixture
def animals(tmp_path):
    rng = np.random.default_rng(3)
    for name in CLASSES:
        folder = tmp_path / "data/animals" / name
        folder.mkdir(parents=True)
        for number in range(4):
            size = (30 + number, 40, 3)
            Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(folder / f"{number}.jpg")
    return tmp_path


def opened(root, size=16):
    return load_test(MANIFEST, root / "data", image_transforms(size))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_cached_images_equal_the_loaded_ones(animals, num_workers):
    images = opened(animals)
    cached = EvaluationCache(animals / "cache", Loading(num_workers=num_workers)).images(MANIFEST, images)
    assert cached is not images
    assert len(cached) == len(images)
    for index in range(len(images)):
        assert torch.equal(cached[index][0], images[index][0])
        assert cached[index][1] == images[index][1]


def test_a_second_run_reads_the_file_and_no_image(animals):
    EvaluationCache(animals / "cache").images(MANIFEST, opened(animals))
    [path] = (animals / "cache").iterdir()
    written = path.stat().st_mtime_ns
    images = opened(animals)
    expected = [images[index][0] for index in range(len(images))]
    images.source.image = None  # whoever reads fails
    again = EvaluationCache(animals / "cache").images(MANIFEST, images)
    assert path.stat().st_mtime_ns == written
    assert all(torch.equal(again[index][0], image) for index, image in enumerate(expected))


def test_what_changes_the_bytes_changes_the_file(animals):
    cache = EvaluationCache(animals / "cache")
    first = cache.path(MANIFEST, opened(animals))
    assert cache.path(MANIFEST, opened(animals)) == first
    others = {
        cache.path(MANIFEST, opened(animals, size=24)),
        cache.path(replace(MANIFEST, class_names=("wolf", "fox")), opened(animals)),
    }
    picture = animals / "data/animals/fox/0.jpg"
    Image.new("RGB", (50, 50)).save(picture)
    others.add(cache.path(MANIFEST, opened(animals)))
    os.utime(picture, ns=(1, 1))
    others.add(cache.path(MANIFEST, opened(animals)))
    picture.rename(picture.with_name("9.jpg"))
    others.add(cache.path(MANIFEST, opened(animals)))
    assert len(others) == 5
    assert first not in others


@pytest.mark.parametrize("damage", ["empty", "cut", "other shape"])
def test_a_damaged_file_is_made_again(animals, damage):
    images, cache = opened(animals), EvaluationCache(animals / "cache")
    cache.images(MANIFEST, images)
    path = cache.path(MANIFEST, images)
    damages = {"empty": b"", "cut": path.read_bytes()[:-5]}
    if damage in damages:
        path.write_bytes(damages[damage])
    else:
        np.save(path, np.zeros(3))
    cached = cache.images(MANIFEST, images)
    assert torch.equal(cached[5][0], images[5][0])
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_what_a_killed_process_left_half_written_is_removed_and_nothing_else(animals):
    cache = EvaluationCache(animals / "cache")
    cache.folder.mkdir()
    being_written = temporary_for(cache.folder / "birds-0123.npy")
    left = being_written.with_name(f".animals-0123.npy.{replace(this_process(), started=1)}.tmp")  # its number was given again
    strange = cache.folder / ".mine.npy.tmp"
    for path in (being_written, left, strange):
        path.write_bytes(b"half")
    cache.images(MANIFEST, opened(animals))
    assert not left.exists()
    assert being_written.exists()
    assert strange.exists()
