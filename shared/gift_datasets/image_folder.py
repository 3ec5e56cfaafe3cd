"""One folder per class, one file per image, as `ROOT/<class folder>/.../<image file>`."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from gift_datasets.images import FileImages
from gift_datasets.settings import DataSettings
from gift_shared.decoding import FILE_SUFFIXES
from gift_shared.errors import DataError, ManifestError
from gift_shared.image_files import PassedOver, find_images, folder_id, is_stray, same_folder
from gift_shared.keys import composed, slug
from gift_shared.manifests import TaskManifest


def open_image_folder(manifest: TaskManifest, data_root: Path, place: str, settings: DataSettings) -> FileImages:
    """List a folder of class folders in label order, files by name. Hidden ones are skipped, files that are no images counted.

    Folders are matched to class names by their slug ("Red Fox" = red_fox), or by the manifest's class_folders.
    Raises DataError for a missing, extra, ambiguous or empty class folder, and for two that are one by a link.
    """
    folder = data_root / place
    if not os.path.isdir(folder):  # Path.is_dir raises for names that no file system takes
        num_classes = len(manifest.class_names)
        how_to_get = f"{settings.get.rstrip('.')}." if settings.get else ""
        raise DataError(f"{manifest.name}: no image folder at {folder}, expected there: {num_classes} class folders. {how_to_get}".rstrip())
    found, passed_over = _class_folders(folder)
    folders = [folder / name for name in _match(manifest, folder, found, settings.class_folders)]
    if (same := same_folder(folders)) is not None:
        raise DataError(f"{manifest.name}: class folders {same[0]} and {same[1].name} are one folder by a link. Remove the link.")
    paths: list[Path] = []
    labels: list[int] = []
    ids = {folder_id(class_folder) for class_folder in folders}
    for label, class_folder in enumerate(folders):
        images = find_images(class_folder, others=ids)
        passed_over += images.passed_over
        if not images.files:
            told = f"; {images.passed_over}" if images.passed_over else ""
            raise DataError(f"{manifest.name}: class folder {class_folder} holds no image ({', '.join(FILE_SUFFIXES)}){told}.")
        paths.extend(images.files)
        labels.extend([label] * len(images.files))
    return FileImages(paths, np.array(labels, dtype=np.int64), data_root, passed_over)


def _class_folders(folder: Path) -> tuple[list[str], PassedOver]:
    """Names of the folders in it, sorted, and the files that lie beside them and so in no class."""
    found, beside = [], PassedOver()
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir():
            found += [] if is_stray(entry.name, is_folder=True) else [entry.name]
        elif not is_stray(entry.name):
            beside.add(Path(entry.name).suffix.lower(), entry.path)
    return found, beside


def _match(manifest: TaskManifest, folder: Path, found: list[str], class_folders: Sequence[str] | None) -> list[str]:
    names = manifest.class_names
    if class_folders is None:
        wanted = [slug(name) for name in names]
        by_name = _unique(folder, found, slug)
        repeated = next((name for name, word in zip(names, wanted, strict=True) if not word or wanted.count(word) > 1), None)
        if repeated is not None:
            raise ManifestError(
                f"{manifest.name}: class name {repeated!r} has no folder name of its own (letters and digits in lower case); "
                "give [data] class_folders in label order."
            )
    else:
        wanted = list(class_folders)
        by_name = _unique(folder, found, composed)
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


def _unique(folder: Path, found: list[str], read: Callable[[str], str]) -> dict[str, str]:
    """Folder names by what they read as. Raises DataError if two of them read alike."""
    by_word: dict[str, str] = {}
    for name in found:
        other = by_word.setdefault(read(name), name)
        if other != name:
            raise DataError(f"{folder}: class folders {other!r} and {name!r} read alike; give [data] class_folders in the manifest.")
    return by_word
