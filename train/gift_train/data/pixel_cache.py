"""Images that are decoded once and kept: in memory that every loader process shares, until its room is used up.

Beyond the room images are read at each use. What is kept is exact, so that neither the room nor the number of processes changes a number.
"""

import mmap
import multiprocessing
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from gift_shared.errors import ConfigError
from gift_train.data.transforms import ImageTransform, Pixels, as_tensor

CACHE_BYTES = 200 * 10**6  # for each set of images: a thousand of 224 pixels, which is what a task replays, take 151 MB
_ABSENT, _BEING_WRITTEN = 0, -1


class PixelCache:
    """Pixels [H, W, 3] by index, in anonymous shared memory: what one loader process decodes, all that are forked later or beside it find.

    Pages count as used memory once they are written. A process that was not forked from this one (a loader started by "spawn") starts
    empty and without room: it reads everything, which is slow and still right.
    """

    def __init__(self, num_images: int, num_bytes: int = CACHE_BYTES) -> None:
        # Rows: byte offset + 1 (or a state), height, width. The last row counts the bytes that are taken.
        self._table: NDArray[np.int64] = np.frombuffer(_shared_memory((num_images + 1) * 24), dtype=np.int64).reshape(-1, 3)
        self._pixels: NDArray[np.uint8] = np.frombuffer(_shared_memory(max(num_bytes, 1)), dtype=np.uint8)
        self._room = num_bytes
        self._lock = multiprocessing.get_context("fork").Lock()

    @property
    def num_bytes(self) -> int:
        """Bytes kept so far, by all processes."""
        return int(self._table[-1, 0])

    def get(self, index: int) -> Pixels | None:
        """A copy of what is kept, or None."""
        place, height, width = self._table[index].tolist()
        if place <= _ABSENT:
            return None
        start = place - 1
        return self._pixels[start : start + height * width * 3].reshape(height, width, 3).copy()

    def offer(self, index: int, pixels: Pixels) -> None:
        """Keep the pixels if there is room. Never waits: while another process takes its place in memory, this image is not kept."""
        if pixels.nbytes > self._room - self.num_bytes or not self._lock.acquire(block=False):
            return
        try:
            start = self.num_bytes
            fits = start + pixels.nbytes <= self._room and self._table[index, 0] == _ABSENT
            if fits:
                self._table[index, 0] = _BEING_WRITTEN
                self._table[-1, 0] = start + pixels.nbytes
        finally:
            self._lock.release()
        if fits:
            self._pixels[start : start + pixels.nbytes] = pixels.reshape(-1)
            self._table[index, 1:] = pixels.shape[:2]
            self._table[index, 0] = start + 1  # last: until now nobody reads it

    def __reduce__(self) -> tuple[Any, ...]:
        return PixelCache, (len(self._table) - 1, 0)


def _shared_memory(num_bytes: int) -> mmap.mmap:
    try:
        return mmap.mmap(-1, num_bytes)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"{num_bytes / 1e9:.3g} GB for decoded images cannot be had here ({error}). Give a smaller --image-cache-gb."
        ) from error


class DecodedImages:
    """Reads images by index and keeps them as they are on disk: for transforms that draw anew each time."""

    def __init__(self, read: Callable[[int], Image.Image], cache: PixelCache) -> None:
        self._read = read
        self._cache = cache

    def __call__(self, index: int) -> Image.Image:
        """The RGB image."""
        pixels = self._cache.get(index)
        if pixels is not None:
            return Image.fromarray(pixels)
        image = self._read(index)
        self._cache.offer(index, np.asarray(image))
        return image


class PreparedImages:
    """Reads images by index through a transform; with a cache, which the transform must be repeatable for, keeps what comes out."""

    def __init__(self, read: Callable[[int], Image.Image], transform: ImageTransform, cache: PixelCache | None = None) -> None:
        self.read = read
        self.transform = transform
        self._cache = cache

    def __call__(self, index: int) -> Tensor:
        """uint8 [3, S, S]."""
        pixels = None if self._cache is None else self._cache.get(index)
        if pixels is None:
            pixels = self.transform.pixels(self.read(index))
            if self._cache is not None:
                self._cache.offer(index, pixels)
        return as_tensor(pixels)


def cached(
    read: Callable[[int], Image.Image], transform: ImageTransform, num_images: int, cache_bytes: int = CACHE_BYTES
) -> PreparedImages:
    """`PreparedImages` that keeps as much as it may: the result of a repeatable transform, the decoded image for a random one."""
    if transform.is_random:
        return PreparedImages(DecodedImages(read, PixelCache(num_images, cache_bytes)), transform)
    most = num_images * 3 * transform.image_size**2
    return PreparedImages(read, transform, PixelCache(num_images, min(cache_bytes, most)))
