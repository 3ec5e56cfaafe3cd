"""A dataset's training and test images, listed, checked against its manifest and cut to the classes of a task; none is decoded."""

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from gift_datasets.image_folder import open_image_folder
from gift_datasets.images import FileImages, ImageSource, OfClasses, Selected
from gift_datasets.settings import DataSettings, data_settings
from gift_datasets.webdataset_tars import open_tars
from gift_shared.decoding import FILE_SUFFIXES
from gift_shared.errors import DataError, ManifestError
from gift_shared.image_files import PassedOver, same_folder
from gift_shared.keys import composed
from gift_shared.manifests import TaskManifest

PARTS = ("train", "test")
_log = logging.getLogger(__name__)


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
    from gift_datasets.torchvision_class import open_torchvision

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


def of_task(manifest: TaskManifest, part: str, source: ImageSource) -> ImageSource:
    """The images of the task's own classes, of all that the dataset has in this part."""
    if manifest.part is None:
        return source
    own = OfClasses(source, manifest.part.labels)
    if not len(own):
        raise DataError(f"{manifest.name}: none of its {len(manifest.class_names)} classes has {part} images in {manifest.dataset.name}.")
    return own


def tell_passed_over(manifest: TaskManifest, sources: Iterable[ImageSource]) -> None:
    others = passed_over(sources)
    if others:
        _log.warning("%s: %s. Read are %s.", manifest.name, others, ", ".join(FILE_SUFFIXES))
