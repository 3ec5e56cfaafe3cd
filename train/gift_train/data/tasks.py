"""Tasks: labelled images on disk joined with their manifest, checked before any work is spent on them."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from gift_shared.decoding import FILE_SUFFIXES
from gift_shared.errors import DataError, ManifestError
from gift_shared.image_files import PassedOver, same_folder
from gift_shared.keys import composed
from gift_shared.manifests import TaskManifest
from gift_train.data.datasets.image_folder import open_image_folder
from gift_train.data.datasets.images import FileImages, ImageSource, OfClasses, Selected, digest_of
from gift_train.data.datasets.settings import DataSettings, data_settings
from gift_train.data.datasets.webdataset_tars import open_tars
from gift_train.data.few_shot import FewShot, few_shot
from gift_train.data.pixel_cache import CACHE_BYTES, DecodedImages, PixelCache, PreparedImages, cached
from gift_train.data.transforms import ImageTransforms

PARTS = ("train", "test")
SMALL_SPLIT_BYTES = 100 * 10**6  # decoded: a second or two
_log = logging.getLogger(__name__)
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
        train, test = (_of_task(manifest, part, sources[part]) for part in PARTS)
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
        source = _of_task(manifest, "test", whole)
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
        _tell_passed_over(dataset, opened[name].values())
    return opened


def _of_task(manifest: TaskManifest, part: str, source: ImageSource) -> ImageSource:
    """The images of the task's own classes, of all that the dataset has in this part."""
    if manifest.part is None:
        return source
    own = OfClasses(source, manifest.part.labels)
    if not len(own):
        raise DataError(f"{manifest.name}: none of its {len(manifest.class_names)} classes has {part} images in {manifest.dataset.name}.")
    return own


def passed_over(sources: Iterable[ImageSource]) -> PassedOver:
    """What lies among the images of a dataset's splits and is not read."""
    counts = {id(source.passed_over): source.passed_over for source in sources}  # both sides of a seeded split have one list
    return sum(counts.values(), PassedOver())


def open_parts(manifest: TaskManifest, data_root: Path, parts: Sequence[str]) -> dict[str, ImageSource]:
    """The images of "train", "test" or both, listed and checked, none decoded. Raises ManifestError or DataError."""
    sources = list_parts(manifest, data_root, parts)
    for part, source in sources.items():
        check_count(manifest, part, source)
    return sources


def list_parts(manifest: TaskManifest, data_root: Path, parts: Sequence[str]) -> dict[str, ImageSource]:
    """As open_parts, without the comparison of image counts."""
    settings = data_settings(manifest)
    _require_two_places(manifest, settings, data_root)
    sources: dict[str, ImageSource] = {}
    if settings.split is not None:
        everything = _open(manifest, settings, data_root, "all")
        _check_classes(manifest, settings, everything)
        indices = _sides(manifest, everything, settings, data_root)
        sources = {part: Selected(everything, indices[part]) for part in parts}
    else:
        for part in parts:
            if part not in settings.parts:
                raise DataError(f"{manifest.name} has no {part} images: its manifest's [data] does not give them.")
            sources[part] = _open(manifest, settings, data_root, part)
            _check_classes(manifest, settings, sources[part])
    return sources


def _require_two_places(manifest: TaskManifest, settings: DataSettings, data_root: Path) -> None:
    """Raises ManifestError if the training images are the test images: by one path, or by a link."""
    train, test = settings.parts.get("train"), settings.parts.get("test")
    if train is None or test is None:
        return
    is_one = train == test
    if settings.kind == "image_folder":
        folders = [data_root / train, data_root / test]
        is_one = all(map(os.path.isdir, folders)) and same_folder(folders) is not None
    if is_one:
        raise ManifestError(
            f"{manifest.name}: [data] train and test are the same images, {train!r} and {test!r}, so that its accuracy would be that of "
            "images it was trained on. Give others, or cut one list in two with all and [data.split]."
        )


def parts_of(settings: DataSettings) -> tuple[str, ...]:
    """The parts a manifest has: "train" and "test", or "test" alone where data serve evaluation only."""
    return PARTS if settings.split is not None else tuple(part for part in PARTS if part in settings.parts)


def _sides(manifest: TaskManifest, everything: ImageSource, settings: DataSettings, data_root: Path) -> dict[str, NDArray[np.int64]]:
    rule = settings.split
    assert rule is not None
    if not rule.test_files:
        return split_indices(len(everything), rule.train_fraction, rule.seed)
    assert isinstance(everything, FileImages)
    folder = data_root / settings.parts["all"]
    names = [composed(path.relative_to(folder).as_posix()) for path in everything.paths]
    for name in sorted(set(rule.test_files) - set(names))[:1]:
        raise DataError(f"{manifest.name}: {folder / name}, which [data.split] test_files names, is not there. The data are incomplete.")
    is_test = np.isin(names, rule.test_files)
    return {"train": np.flatnonzero(~is_test), "test": np.flatnonzero(is_test)}


def split_indices(num_images: int, train_fraction: float, seed: int) -> dict[str, NDArray[np.int64]]:
    """Cut a shuffled list in two: what torch's random_split with a generator of that seed gives (DATA_NOTES 3)."""
    order = torch.randperm(num_images, generator=torch.Generator().manual_seed(seed)).numpy()
    num_train = int(train_fraction * num_images)
    return {"train": order[:num_train], "test": order[num_train:]}


def check_count(manifest: TaskManifest, part: str, source: ImageSource) -> None:
    """Compare the number of images with the manifest's [counts]. Raises DataError if it differs or is zero."""
    expected = manifest.counts.get(part)
    if expected is not None and expected != len(source):
        first = f", the first {source.where(0)}" if len(source) else ""
        raise DataError(
            f"{manifest.name}: found {len(source)} {part} images{first}; the manifest's [counts] says {expected}. "
            "Complete the data, or correct [counts]."
        )
    if not len(source):
        raise DataError(f"{manifest.name}: the {part} split is empty.")


def _open(manifest: TaskManifest, settings: DataSettings, data_root: Path, part: str) -> ImageSource:
    place = settings.parts[part]
    if settings.kind == "image_folder":
        return open_image_folder(manifest, data_root, place, settings)
    if settings.kind == "webdataset":
        return open_tars(manifest, data_root, place)
    from gift_train.data.datasets.torchvision_class import open_torchvision

    return open_torchvision(manifest, settings, data_root, place)


def _check_classes(manifest: TaskManifest, settings: DataSettings, source: ImageSource) -> None:
    """Labels within range, every class seen, and the data's own class names, where they tell any, those of the manifest."""
    num_classes = len(manifest.class_names)
    for index in np.flatnonzero((source.labels < 0) | (source.labels >= num_classes))[:1]:
        raise DataError(
            f"{manifest.name}: label {source.labels[index]} of {source.where(int(index))} is outside 0..{num_classes - 1}, "
            f"the {num_classes} classes of the manifest. The data are of another version, or the manifest lacks classes."
        )
    found = source.class_names_found
    if found is not None and settings.check_names:
        if settings.class_folders is None:
            found = tuple(name.replace("_", " ") for name in found)  # the rule by which the reference forms class names
        wanted = settings.class_folders or manifest.class_names
        if len(found) != len(wanted):
            raise DataError(f"{manifest.name}: the data has {len(found)} classes, the manifest {len(wanted)}. Another version?")
        for label, (name, expected) in enumerate(zip(found, wanted, strict=True)):
            if composed(name) != expected:
                raise DataError(f"{manifest.name}: class {label} is {name!r} in the data, {expected!r} in the manifest. Another version?")
    # Tars may hold one side of a seeded split, where a rare class can be absent: there the counts prove completeness.
    is_proven_by_counts = settings.kind == "webdataset" and bool(manifest.counts)
    absent = np.flatnonzero(np.bincount(source.labels, minlength=num_classes) == 0)
    if len(absent) and not is_proven_by_counts:
        raise DataError(
            f"{manifest.name}: no image of class {manifest.class_names[absent[0]]!r} (label {absent[0]}); "
            f"{len(absent)} of {num_classes} classes have none. The data are incomplete."
        )


def _tell_passed_over(manifest: TaskManifest, sources: Iterable[ImageSource]) -> None:
    others = passed_over(sources)
    if others:
        _log.warning("%s: %s. Read are %s.", manifest.name, others, ", ".join(FILE_SUFFIXES))


def _probe(images: TaskImages, cache_bytes: int) -> None:
    """Decode a small split whole, which is kept from then on, and a few images of a large one."""
    first = images.source.image(0)
    is_small = first.width * first.height * 3 * len(images) <= min(cache_bytes, SMALL_SPLIT_BYTES)
    num_images = len(images) if is_small else min(_PROBES, len(images))
    for index in np.linspace(0, len(images) - 1, num_images, dtype=np.int64):
        _ = images[int(index)]
