"""Test images as the model sees them, kept on disk as bytes: a run of eleven tasks looks at the same test sets twelve times.

FOLDER/<dataset>-<key>.npy, uint8 [N, S, S, 3] in the order of the test split, memory-mapped when read. The key is a digest of all that
decides the bytes: manifest, files of the data with size and time, transform, image library. Another version of any of them is another
file, so that a stale one is never read, and runs may share a folder. Files can be deleted whenever no run is using them.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import write_array_header_1_0
from PIL import __version__ as pillow_version
from PIL import features
from torch import Tensor
from torch.utils.data import Dataset

from gift_shared.atomic import TEMPORARY_SUFFIX, atomic_path, writer_of
from gift_shared.manifests import TaskManifest
from gift_shared.progress import with_progress
from gift_train.data.batches import BatchOrder, stream
from gift_train.data.loader import HERE, Loading
from gift_train.data.tasks import TaskImages
from gift_train.data.transforms import Pixels, as_tensor

VERSION = 2  # of the files; a change of their layout, or of how images are decoded, is a new one
_BATCH = 64
_log = logging.getLogger(__name__)


class CachedImages(Dataset[tuple[Tensor, int]]):
    """The same items as the split it was made from: (uint8 [3, S, S], label)."""

    def __init__(self, pixels: Pixels, images: TaskImages) -> None:
        self.pixels = pixels
        self.labels = images.labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return as_tensor(np.array(self.pixels[index])), *self.about(index)

    def about(self, index: int) -> tuple[int]:
        """(label,) of an item; its image is not loaded."""
        return (int(self.labels[index]),)


class EvaluationCache:
    """A folder of prepared test images. What is not there yet is made when it is first asked for."""

    def __init__(self, folder: Path, loading: Loading = HERE) -> None:
        self.folder = folder
        self.loading = loading

    def images(self, manifest: TaskManifest, images: TaskImages) -> Dataset[tuple[Tensor, int]]:
        """The prepared test images of a dataset; itself, with a warning, where its data cannot be told from another version of them."""
        path = self.path(manifest, images)
        if path is None:
            _log.warning("%s is not cached: its images have no files that would tell when they change.", manifest.name)
            return images
        pixels = _opened(path, images)
        if pixels is None:
            self._make(path, manifest, images)
            pixels = _opened(path, images)
            assert pixels is not None
        return CachedImages(pixels, images)

    def path(self, manifest: TaskManifest, images: TaskImages) -> Path | None:
        """Where this version of the images is kept; None if the version cannot be told."""
        data = images.source.identity()
        if data is None:
            return None
        transform = images.prepared.transform
        decoders = {name: features.version(name) for name in ("jpg", "libjpeg_turbo", "webp", "avif")}
        told = {
            "version": VERSION,
            "manifest": [manifest.name, manifest.class_names, manifest.data],
            "data": data,
            "transform": [transform.name, transform.image_size],
            "pillow": [pillow_version, decoders],
        }
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        return self.folder / f"{manifest.name}-{digest[:32]}.npy"

    def _make(self, path: Path, manifest: TaskManifest, images: TaskImages) -> None:
        self._sweep()
        order = BatchOrder(num_samples=len(images), batch_size=_BATCH, seed=0, name="cache", is_shuffled=False)
        unkept = _Unkept(images)
        batches = stream(unkept, order, _stacked, range(order.batches_per_epoch), self.loading)
        size = images.prepared.transform.image_size
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(images), size, size, 3)}
        # Written, not mapped: on a full disk a write is an error one can tell, a mapped page is a crash.
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            write_array_header_1_0(file, header)
            for batch in with_progress(batches, f"prepare {manifest.name}", order.batches_per_epoch, "batch", stays=False):
                file.write(np.ascontiguousarray(batch.permute(0, 2, 3, 1).numpy()).data)
            file.flush()

    def _sweep(self) -> None:
        """Remove what killed processes left half-written, up to gigabytes each; other runs may be writing theirs."""
        for temporary in self.folder.glob(f".*.npy.*{TEMPORARY_SUFFIX}"):
            writer = writer_of(temporary)
            if writer is not None and writer.is_gone():
                temporary.unlink(missing_ok=True)


class _Unkept(Dataset[Tensor]):
    """Prepared images that take no room in memory: the file is their memory."""

    def __init__(self, images: TaskImages) -> None:
        self.read = images.source.image
        self.transform = images.prepared.transform

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(self.read(index))


def _stacked(images: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(images))


def _opened(path: Path, images: TaskImages) -> Pixels | None:
    """The array of a whole file of the right shape, else None: it is made again then."""
    size = images.prepared.transform.image_size
    try:
        pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        _log.warning("%s is made again: %s.", path, error)
        return None
    return pixels if pixels.dtype == np.uint8 and pixels.shape == (len(images), size, size, 3) else None
