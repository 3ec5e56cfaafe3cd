"""One folder per class, one file per image, as `ROOT/<class folder>/.../<image file>`."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gift_shared.errors import DataError, ManifestError
from gift_shared.keys import slug
from gift_shared.manifests import TaskManifest
from gift_train.data.datasets.images import FileImages
from gift_train.data.datasets.settings import DataSettings

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".tif", ".tiff")


def open_image_folder(manifest: TaskManifest, folder: Path, settings: DataSettings) -> FileImages:
    """List a folder of class folders in label order, files by name. Hidden files and files that are no images are skipped.

    Folders are matched to class names by their slug ("Red Fox" = red_fox), or by the manifest's class_folders.
    Raises DataError for a missing, extra, ambiguous or empty class folder.
    """
    if not folder.is_dir():
        num_classes = len(manifest.class_names)
        how_to_get = f"{settings.get.rstrip('.')}." if settings.get else ""
        raise DataError(f"{manifest.name}: no image folder at {folder}, expected there: {num_classes} class folders. {how_to_get}".rstrip())
    found = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    folders = _match(manifest, folder, found, settings.class_folders)
    paths: list[Path] = []
    labels: list[int] = []
    for label, class_folder in enumerate(folders):
        files = _image_files(folder / class_folder)
        if not files:
            raise DataError(f"{manifest.name}: class folder {folder / class_folder} holds no image ({', '.join(SUFFIXES)}).")
        paths.extend(files)
        labels.extend([label] * len(files))
    return FileImages(paths, np.array(labels, dtype=np.int64))


def _match(manifest: TaskManifest, folder: Path, found: list[str], class_folders: Sequence[str] | None) -> list[str]:
    names = manifest.class_names
    if class_folders is None:
        wanted = [slug(name) for name in names]
        by_name = _unique(folder, found)
        repeated = next((name for name, word in zip(names, wanted, strict=True) if not word or wanted.count(word) > 1), None)
        if repeated is not None:
            raise ManifestError(
                f"{manifest.name}: class name {repeated!r} has no folder name of its own (letters and digits in lower case); "
                "give [data] class_folders in label order."
            )
    else:
        wanted = list(class_folders)
        by_name = {name: name for name in found}
        if len(set(wanted)) != len(wanted) or len(wanted) != len(names):
            raise ManifestError(f"{manifest.name}: [data] class_folders must name {len(names)} different folders, one per class name.")
    count = f"{folder} holds {len(found)} class folders, the manifest names {len(names)} classes"
    extra = sorted(set(by_name) - set(wanted))
    missing = [index for index, word in enumerate(wanted) if word not in by_name]
    if missing:
        first = missing[0]
        hint = f"; {by_name[extra[0]]!r} fits no class" if extra else ""
        raise DataError(
            f"{manifest.name}: no folder for class {names[first]!r} (expected {wanted[first]!r}){hint}. "
            f"{count}; {len(missing)} are missing."
        )
    if extra:
        raise DataError(f"{manifest.name}: folder {by_name[extra[0]]!r} fits no class name. {count}. Remove it or add the class.")
    return [by_name[word] for word in wanted]


def _unique(folder: Path, found: list[str]) -> dict[str, str]:
    by_slug: dict[str, str] = {}
    for name in found:
        other = by_slug.setdefault(slug(name), name)
        if other != name:
            raise DataError(f"{folder}: class folders {other!r} and {name!r} read alike; give [data] class_folders in the manifest.")
    return by_slug


def _image_files(folder: Path) -> list[Path]:
    files: list[Path] = []
    for parent, _, names in os.walk(folder, followlinks=True):
        files.extend(Path(parent, name) for name in names if name.lower().endswith(SUFFIXES) and not name.startswith("."))
    return sorted(files)
