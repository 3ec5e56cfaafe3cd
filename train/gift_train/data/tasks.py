"""Tasks: labelled images on disk joined with their manifest, checked before any work is spent on them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from gift_datasets.few_shot import FewShot, few_shot
from gift_datasets.images import ImageSource, digest_of
from gift_datasets.parts import PARTS, of_task, open_parts, tell_passed_over
from gift_shared.manifests import TaskManifest
from gift_train.data.pixel_cache import CACHE_BYTES, DecodedImages, PixelCache, PreparedImages, cached
from gift_train.data.transforms import ImageTransforms

SMALL_SPLIT_BYTES = 100 * 10**6  # decoded: a second or two
_PROBES = 16  # images decoded of a split that is too large to be decoded whole when it is opened


class TaskImages(Dataset[tuple[Tensor, int]]):
    """A split through one transform: item = (uint8 [3, S, S], label)."""

    def __init__(self, source: ImageSource, prepared: PreparedImages) -> None:
        self.source = source
        self.prepared = prepared

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.prepared(index), *self.about(index)

    def about(self, index: int) -> tuple[int]:
        """(label,) of an item; its image is not loaded."""
        return (int(self.source.labels[index]),)

    @property
    def labels(self) -> NDArray[np.int64]:
        """All labels, [N], without reading an image."""
        return self.source.labels

    def listing_digest(self) -> str:
        """A digest of what the split is made of, see `ImageSource.listing_digest`."""
        return self.source.listing_digest()


@dataclass(frozen=True)
class Task:
    """One dataset of an order. `train` and `train_plain` are the same images in the same order."""

    manifest: TaskManifest
    train: TaskImages  # training transform
    train_plain: TaskImages  # evaluation transform: what LwF, iCaRL and the like read of the task's images
    test: TaskImages  # evaluation transform

    def listing_digest(self) -> str:
        """A digest of both splits: other images, names, sizes or labels than before are another digest; a copy elsewhere is not."""
        return digest_of(self.train.listing_digest().encode(), self.test.listing_digest().encode())


def load_task(
    manifest: TaskManifest,
    data_root: Path,
    transforms: ImageTransforms,
    cache_bytes: int = CACHE_BYTES,
    shots: FewShot | None = None,
) -> Task:
    """Open one task's images and check them against the manifest, see `load_tasks`."""
    shots_of = {} if shots is None else {manifest.dataset.name: shots}
    return load_tasks([manifest], data_root, transforms, cache_bytes, shots_of)[manifest.name]


def load_tasks(
    manifests: Sequence[TaskManifest],
    data_root: Path,
    transforms: ImageTransforms,
    cache_bytes: int = CACHE_BYTES,
    shots_of: Mapping[str, FewShot] | None = None,
) -> dict[str, Task]:
    """Open the tasks' images and check them against the manifests; a dataset that several tasks are parts of is opened once.

    shots_of: by dataset, which training images are kept, see `few_shot`; all that there are of others.
    cache_bytes: of a dataset, memory for images of the training split, as they are on disk, and for those of the test split, as the
    model sees them; a part of a dataset has its share.
    Raises ManifestError for a faulty manifest, DataError for data that are missing, incomplete or of other counts or
    classes, naming the file. Small splits are decoded whole, of large ones every file must exist and some are decoded;
    `gift-train data check --every-image` decodes them all.
    """
    opened = _opened(manifests, data_root, PARTS)
    tasks = {}
    for manifest in manifests:
        sources = opened[manifest.dataset.name]
        train, test = (of_task(manifest, part, sources[part]) for part in PARTS)
        rooms = {part: cache_bytes * len(images) // len(sources[part]) for part, images in (("train", train), ("test", test))}
        if shots_of and manifest.dataset.name in shots_of:
            train = few_shot(manifest, train, shots_of[manifest.dataset.name])
        decoded = DecodedImages(train.image, PixelCache(len(train), rooms["train"]))
        task = Task(
            manifest=manifest,
            train=TaskImages(train, PreparedImages(decoded, transforms.train)),
            train_plain=TaskImages(train, PreparedImages(decoded, transforms.evaluation)),
            test=TaskImages(test, cached(test.image, transforms.evaluation, len(test), rooms["test"])),
        )
        _probe(task.train_plain, rooms["train"])
        _probe(task.test, rooms["test"])
        tasks[manifest.name] = task
    return tasks


def load_test(manifest: TaskManifest, data_root: Path, transforms: ImageTransforms, cache_bytes: int = CACHE_BYTES) -> TaskImages:
    """The test images of one dataset alone, see `load_tests`."""
    return load_tests([manifest], data_root, transforms, cache_bytes)[manifest.name]


def load_tests(
    manifests: Sequence[TaskManifest], data_root: Path, transforms: ImageTransforms, cache_bytes: int = CACHE_BYTES
) -> dict[str, TaskImages]:
    """The test images alone, for datasets that are only evaluated. Raises as load_tasks."""
    opened = _opened(manifests, data_root, ("test",))
    tests = {}
    for manifest in manifests:
        whole = opened[manifest.dataset.name]["test"]
        source = of_task(manifest, "test", whole)
        room = cache_bytes * len(source) // len(whole)
        images = TaskImages(source, cached(source.image, transforms.evaluation, len(source), room))
        _probe(images, room)
        tests[manifest.name] = images
    return tests


def _opened(manifests: Iterable[TaskManifest], data_root: Path, parts: Sequence[str]) -> dict[str, dict[str, ImageSource]]:
    """The parts of every dataset that the tasks are made of, by its name."""
    datasets = {manifest.dataset.name: manifest.dataset for manifest in manifests}
    opened = {name: open_parts(dataset, data_root, parts) for name, dataset in datasets.items()}
    for name, dataset in datasets.items():
        tell_passed_over(dataset, opened[name].values())
    return opened


def _probe(images: TaskImages, cache_bytes: int) -> None:
    """Decode a small split whole, which is kept from then on, and a few images of a large one."""
    first = images.source.image(0)
    is_small = first.width * first.height * 3 * len(images) <= min(cache_bytes, SMALL_SPLIT_BYTES)
    num_images = len(images) if is_small else min(_PROBES, len(images))
    for index in np.linspace(0, len(images) - 1, num_images, dtype=np.int64):
        _ = images[int(index)]
