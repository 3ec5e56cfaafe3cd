"""Images that are decoded once: shared by loader processes, bounded in memory, and the same bytes as read anew."""

import multiprocessing
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from gift_train.data.batches import BatchOrder, collate_task, stream
from gift_train.data.loader import Loading
from gift_train.data.pixel_cache import CACHE_BYTES, DecodedImages, PixelCache, PreparedImages, cached
from gift_train.data.transforms import image_transforms

SIDE = 16
TRANSFORMS = image_transforms(SIDE)
IMAGE_BYTES = 3 * SIDE**2


class Counting:
    """Pictures of different sizes by index; remembers across processes how often each was read."""

    def __init__(self, num_images):
        self.reads = multiprocessing.get_context("fork").Array("i", num_images)

    def __call__(self, index):
        self.reads[index] += 1
        size = (20 + index % 3, 24, 3)
        return Image.fromarray(np.random.default_rng(index).integers(0, 256, size, dtype=np.uint8))


class Items(torch.utils.data.Dataset):
    def __init__(self, prepared):
        self.prepared = prepared

    def __getitem__(self, index):
        return self.prepared(index), index


def epochs(prepared, num_images, num_workers, num_epochs=3):
    order = BatchOrder(num_samples=num_images, batch_size=4, seed=1, name="task")
    positions = range(num_epochs * order.batches_per_epoch)
    return [batch.images for batch in stream(Items(prepared), order, collate_task, positions, Loading(num_workers=num_workers))]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("transform", [TRANSFORMS.train, TRANSFORMS.evaluation], ids=lambda transform: transform.name)
def test_an_image_is_decoded_once_for_all_processes_and_changes_no_batch(num_workers, transform):
    read = Counting(10)
    kept = epochs(cached(read, transform, 10), 10, num_workers)
    # Two processes may meet an image for the first time at once, and one that finds the memory busy goes on without it.
    assert sum(read.reads) == 10 if num_workers == 0 else sum(read.reads) < 20
    anew = epochs(PreparedImages(Counting(10), transform), 10, 0)
    assert all(torch.equal(one, other) for one, other in zip(kept, anew, strict=True))


def test_a_second_stream_finds_what_the_first_ones_workers_decoded():
    read = Counting(10)
    prepared = cached(read, TRANSFORMS.evaluation, 10)
    for _ in range(3):
        epochs(prepared, 10, 2, num_epochs=1)
    before = list(read.reads)
    epochs(prepared, 10, 2, num_epochs=1)
    assert list(read.reads) == before


@pytest.mark.parametrize("room_images", [0, 3, 10])
def test_memory_stays_within_its_room_and_the_rest_streams(room_images):
    read = Counting(10)
    cache = PixelCache(10, room_images * IMAGE_BYTES + 5)
    prepared = PreparedImages(read, TRANSFORMS.evaluation, cache)
    for _ in range(2):
        for index in range(10):
            assert torch.equal(prepared(index), TRANSFORMS.evaluation(Counting(10)(index)))
    assert cache.num_bytes == room_images * IMAGE_BYTES
    assert sum(read.reads) == 10 + (10 - room_images)


def test_what_is_kept_of_a_random_transform_is_the_decoded_image():
    read = Counting(1)
    images = DecodedImages(read, PixelCache(1))
    first, second = images(0), images(0)
    assert sum(read.reads) == 1
    assert np.array_equal(np.asarray(first), np.asarray(second))


def test_what_a_reader_does_to_its_image_does_not_reach_the_memory():
    cache = PixelCache(1)
    cache.offer(0, np.ones((2, 2, 3), dtype=np.uint8))
    pixels = cache.get(0)
    assert pixels is not None
    pixels[:] = 7
    assert (cache.get(0) == 1).all()


def test_a_process_that_was_not_forked_starts_empty_and_still_reads():
    cache = pickle.loads(pickle.dumps(PixelCache(4)))
    cache.offer(0, np.ones((2, 2, 3), dtype=np.uint8))
    assert cache.get(0) is None


def test_a_held_memory_is_passed_by_instead_of_waited_for():
    cache = PixelCache(1)
    with cache._lock:  # as if its holder had been killed
        cache.offer(0, np.ones((2, 2, 3), dtype=np.uint8))
    assert cache.get(0) is None


def test_the_flag_has_the_room_of_the_code():
    from typer.main import get_command

    from gift_train.cli import app

    flag = next(parameter for parameter in get_command(app).commands["run"].params if parameter.name == "image_cache_gb")
    assert flag.default * 1e9 == CACHE_BYTES
