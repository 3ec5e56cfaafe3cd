"""Any labelled dataset of torchvision.datasets by name, listed in a repeatable order and checked without decoding.

torchvision does the reading of each dataset's own lists. Transforms are not given to it, so both views of a split
can stand on one object, and pictures come back as RGB whatever they are on disk.
"""

import inspect
import pickle
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gift_datasets.images import ImageSource, digest_of, file_bytes, file_listing, files_identity
from gift_datasets.settings import DataSettings
from gift_shared.decoding import FILE_FORMATS, UNDECODABLE, Decoded, as_rgb, decode
from gift_shared.errors import DataError, ManifestError, unknown_name
from gift_shared.image_files import find_strays, is_stray
from gift_shared.manifests import TaskManifest

OUR_ARGUMENTS = ("self", "root", "download", "transform", "transforms", "target_transform", "loader")
# These list their files in the order of the file system. A seeded split needs a repeatable one.
UNSORTED_CLASSES = ("SUN397",)
# What torchvision's classes raise on lists that are missing, cut short or of another version.
_BROKEN = (
    RuntimeError, OSError, KeyError, ValueError, IndexError, TypeError, AttributeError, EOFError, AssertionError,
    pickle.UnpicklingError,
)  # fmt: skip


class TorchvisionImages(ImageSource):
    """A torchvision dataset without transforms, in the given order of its items. Those that are files are read as any file here."""

    def __init__(self, dataset: Any, labels: NDArray[np.int64], paths: list[Path] | None, order: NDArray[np.int64], root: Path) -> None:
        self.dataset = dataset
        self.labels = labels[order]
        self.paths = None if paths is None else [paths[index] for index in order]
        self.order = order
        self.root = root
        classes = getattr(dataset, "classes", None)
        self.class_names_found = tuple(map(str, classes)) if classes is not None else None

    def decoded(self, index: int) -> Decoded:
        if self.paths is not None:  # torchvision would drop transparency and clip 16 bits
            return decode(file_bytes(self.paths[index]), self.where(index), formats=FILE_FORMATS)
        try:
            image: Image.Image = self.dataset[int(self.order[index])][0]
            return as_rgb(image)
        except UNDECODABLE as error:
            raise DataError(f"{self.where(index)} does not decode as an image: {error}. Replace the file.") from error

    def where(self, index: int) -> str:
        return f"item {self.order[index]} of torchvision's {type(self.dataset).__name__}" if self.paths is None else str(self.paths[index])

    def encoded(self, index: int) -> bytes | None:
        return None if self.paths is None else file_bytes(self.paths[index])

    def listing(self, index: int) -> tuple[str, int] | None:
        return None if self.paths is None else file_listing(self.paths[index], self.root)

    def identity(self) -> str | None:
        return files_identity(self.paths) if self.paths is not None else self._values_digest

    def listing_digest(self) -> str:
        if self.paths is not None:
            return super().listing_digest()
        return digest_of((self._values_digest or "").encode(), self.labels.tobytes())

    @cached_property
    def _values_digest(self) -> str | None:
        pixels = getattr(self.dataset, "data", None)  # CIFAR and MNIST hold all images in one array
        return None if pixels is None else digest_of(np.ascontiguousarray(pixels).tobytes(), self.order.tobytes())


def open_torchvision(manifest: TaskManifest, settings: DataSettings, data_root: Path, arguments: dict[str, Any]) -> TorchvisionImages:
    """Open a torchvision dataset under the data root. Nothing is downloaded. Raises ManifestError or DataError."""
    dataset_class = torchvision_class(manifest, settings)
    require_arguments(manifest, dataset_class, arguments)
    root = data_root / settings.root
    if settings.look_for and not (data_root / settings.look_for).exists():
        raise DataError(f"{manifest.name} is not there: no {data_root / settings.look_for}. {how_to_get(manifest, settings)}")
    dataset = _construct(manifest, settings, dataset_class, root, arguments)
    for name in map(str, getattr(dataset, "classes", None) or ()):
        if is_stray(name, is_folder=True) or is_stray(name):
            raise DataError(f"{manifest.name}: torchvision's {settings.torchvision_class} takes {name!r} for a class.{_strays_told(root)}")
    paths = _paths(dataset)
    order = np.arange(len(dataset))
    if paths is not None:
        order = np.array([index for index, path in enumerate(paths) if not is_stray(path.name)], dtype=np.int64)  # ._photo.jpg
        missing = [paths[index] for index in order if not paths[index].is_file()]
        if missing:
            raise DataError(
                f"{manifest.name}: {len(missing)} of the {len(order)} images that {settings.torchvision_class} lists are missing, "
                f"first {missing[0]}. The data are incomplete.{_strays_told(missing[0].parent)}"
            )
    if paths is not None and settings.torchvision_class in UNSORTED_CLASSES:
        names = [path.relative_to(root).as_posix() for path in paths]
        order = np.array(sorted(order, key=names.__getitem__), dtype=np.int64)
    return TorchvisionImages(dataset, _labels(dataset), paths, order, data_root)


def _strays_told(folder: Path) -> str:
    """A sentence on hidden files and those of an operating system under a folder, which torchvision counts as data; empty if none."""
    strays = list(find_strays(folder))
    if not strays:
        return ""
    return f" It may have counted {strays[0]}, which is no part of the data: remove it ({len(strays)} such under {folder})."


def torchvision_class(manifest: TaskManifest, settings: DataSettings) -> type:
    """The class a manifest names. Raises ManifestError naming the nearest."""
    from torchvision import datasets

    known = {name: value for name, value in vars(datasets).items() if isinstance(value, type) and issubclass(value, datasets.VisionDataset)}
    if settings.torchvision_class not in known:
        raise ManifestError(f"{manifest.name} [data]: " + unknown_name("torchvision dataset", settings.torchvision_class, known))
    return known[settings.torchvision_class]


def require_arguments(manifest: TaskManifest, dataset_class: type, arguments: dict[str, Any]) -> None:
    """Refuse arguments that the class does not take, and those that are ours to give. Raises ManifestError."""
    free = [name for name in inspect.signature(dataset_class).parameters if name not in OUR_ARGUMENTS]
    for name in arguments:
        if name not in free:
            raise ManifestError(f"{manifest.name} [data]: " + unknown_name(f"argument of {dataset_class.__name__}", name, free))


def how_to_get(manifest: TaskManifest, settings: DataSettings) -> str:
    """One sentence or two that tell people where the data come from."""
    fetch = f"Run gift-train data fetch {manifest.name}, or put it there: " if settings.download else ""
    return f"{fetch}{settings.get}." if settings.get else f"See torchvision's {settings.torchvision_class}."


def _construct(manifest: TaskManifest, settings: DataSettings, dataset_class: type, root: Path, arguments: dict[str, Any]) -> Any:
    from scipy.io.matlab import MatReadError

    try:
        return dataset_class(root=str(root), **arguments)
    except (*_BROKEN, MatReadError) as error:
        reason = str(error).removesuffix("You can use download=True to download it").strip() or type(error).__name__
        if isinstance(error, KeyError):
            reason = f"unexpected name {error}"
        raise DataError(
            f"{manifest.name}: torchvision's {settings.torchvision_class} cannot read what is under {root}: {reason.rstrip('.')}. "
            f"Incomplete or another version?{_strays_told(root)} {how_to_get(manifest, settings)}"
        ) from error


def _paths(dataset: Any) -> list[Path] | None:
    """The file of each item, where the class keeps a list of files."""
    if type(dataset).__name__ == "Caltech101":
        folder = Path(dataset.root) / "101_ObjectCategories"
        items = zip(dataset.y, dataset.index, strict=True)
        return [folder / dataset.categories[label] / f"image_{number:04d}.jpg" for label, number in items]
    for name in ("_image_files", "_images", "image_files"):
        files = getattr(dataset, name, None)
        if files is not None:
            return [Path(file) for file in files]
    for name in ("samples", "_samples"):
        samples = getattr(dataset, name, None)
        if samples and isinstance(samples[0][0], str | Path):
            return [Path(file) for file, _ in samples]
    return None


def _labels(dataset: Any) -> NDArray[np.int64]:
    """All labels [N], from the list that the class keeps; read item by item from classes that keep none."""
    for name in ("_labels", "targets", "labels", "y"):
        labels = getattr(dataset, name, None)
        if labels is not None and len(labels) == len(dataset):
            return np.asarray(labels, dtype=np.int64)
    for name in ("samples", "_samples"):
        samples = getattr(dataset, name, None)
        if samples:
            return np.array([int(label) for _, label in samples], dtype=np.int64)
    return np.array([int(dataset[index][1]) for index in range(len(dataset))], dtype=np.int64)
