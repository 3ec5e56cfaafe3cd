"""Images without labels that a method looks at beside its tasks: a folder of image files, tars, or pictures of stage 1.

Like every dataset here, an item is a tuple that begins with the image, [3, H, W] float32.
"""

import os
import tarfile
from pathlib import Path

import pyarrow.compute as pc
from torch import Tensor
from torch.utils.data import Dataset

from gift_shared.errors import ConfigError, DataError
from gift_shared.schema import INDEX_FILE, Status
from gift_shared.shards import IMAGE_SUFFIXES
from gift_shared.tables import read_output_index
from gift_train.datasets.image_folder import SUFFIXES
from gift_train.datasets.images import FILE_FORMATS, decode_rgb
from gift_train.methods.base import NoTaskSource
from gift_train.replay import ReplayDataset
from gift_train.transforms import ImageTransform

_Place = tuple[Path, int, int]  # file, byte offset, byte size


class ReferenceImages(Dataset[tuple[Tensor]]):
    """Image files, or members of uncompressed tars, through one transform."""

    def __init__(self, places: list[_Place], transform: ImageTransform) -> None:
        self.places = places
        self.transform = transform

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Tensor]:
        """Raises DataError, naming the file, if the image cannot be read or decoded."""
        path, offset, size = self.places[index]
        try:
            with path.open("rb") as file:
                file.seek(offset)
                content = file.read(size)
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}). Put the file back.") from error
        return (self.transform(decode_rgb(content, f"{path} (byte {offset})", formats=FILE_FORMATS)),)


def no_task_images(
    source: NoTaskSource, reference: Path | None, shards: Path | None, pretraining_source: str, transform: ImageTransform
) -> Dataset[tuple[Tensor, ...]] | None:
    """The images that stand for "no task", None if the method wants none.

    Raises: ConfigError if the path they come from is not given, DataError or ShardError if there is no image there.
    """
    if source == NoTaskSource.NONE:
        return None
    if source == NoTaskSource.SYNTHETIC:
        if shards is None:
            raise ConfigError("The selector learns 'no task' from synthetic images: give their output folder with --shards.")
        return pretraining_pictures(shards, pretraining_source, transform)
    if reference is None:
        raise ConfigError(
            "The selector learns 'no task' from reference images (the paper: TinyImageNet): give their folder or tars with"
            " --reference-images, or set method_config.selector.no_task_images=synthetic."
        )
    return open_reference_images(reference, transform)


def pretraining_pictures(shards: Path, pretraining_source: str, transform: ImageTransform) -> ReplayDataset:
    """All usable pictures of a stage 1 output folder whose captions are of the pretraining source, in index order."""
    rows, _ = read_output_index(shards)
    usable = rows.filter(pc.and_(pc.equal(rows["status"], Status.OK), pc.equal(rows["source"], pretraining_source)))
    if not len(usable):
        raise DataError(f"{shards} holds no picture of the pretraining source {pretraining_source!r}. Plan and render some.")
    return ReplayDataset(shards, usable, transform)


def open_reference_images(path: Path, transform: ImageTransform) -> Dataset[tuple[Tensor, ...]]:
    """Open a folder of images at any depth, a folder of tars, or one tar. Raises DataError if it holds no image."""
    if path.is_file():
        places = _in_tar(path)
    elif path.is_dir():
        if (path / INDEX_FILE).is_file():
            raise ConfigError(f"{path} is an output folder of gift-generate; give it with --shards and no_task_images=synthetic.")
        tars = sorted(path.glob("*.tar"))
        places = [place for tar in tars for place in _in_tar(tar)] if tars else _in_folder(path)
    else:
        raise DataError(f"No reference images at {path}: neither a folder nor a tar.")
    if not places:
        raise DataError(f"{path} holds no image ({', '.join(SUFFIXES)}).")
    images = ReferenceImages(places, transform)
    _ = images[0]  # a folder of broken files is told before any work
    return images


def _in_folder(folder: Path) -> list[_Place]:
    found = []
    for parent, _, names in os.walk(folder, followlinks=True):
        found += [Path(parent, name) for name in names if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
    return [(path, 0, -1) for path in sorted(found)]


def _in_tar(path: Path) -> list[_Place]:
    try:
        with tarfile.open(path, "r:") as tar:
            members = [member for member in tar if member.isreg() and member.name.lower().endswith((*IMAGE_SUFFIXES, ".jpeg"))]
            return [(path, member.offset_data, member.size) for member in members]
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{path} is not a readable, uncompressed tar: {error}.") from error
