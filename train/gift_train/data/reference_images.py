"""Images and sentences that a method looks at beside its tasks: a folder of image files, tars, or pictures of stage 1; a file.

Like in every dataset here, an item is a tuple that begins with the image, [3, H, W] float32.
"""

import hashlib
import logging
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor
from torch.utils.data import Dataset

from gift_shared.caption_files import read_captions
from gift_shared.decoding import FILE_FORMATS, FILE_SUFFIXES, decode_rgb
from gift_shared.errors import ConfigError, DataError
from gift_shared.image_files import PassedOver, find_images, is_stray_member
from gift_shared.manifests import TaskManifest
from gift_shared.parquet_files import open_output_index
from gift_shared.schema import INDEX_FILE, SampleStatus
from gift_shared.storage import Folder, hold_shards
from gift_shared.tar_members import plain_members, read_range
from gift_train.data.places import Place, Places
from gift_train.data.replay import ReplayDataset
from gift_train.data.sources import NoTaskSource, ReplaySource, TextSource
from gift_train.data.transforms import ImageTransform

NO_LABEL = -1
_BESIDE_IMAGES = (".cls", ".txt", ".json")  # labels and captions of a WebDataset: reference images have none

_log = logging.getLogger(__name__)


class ReferenceImages(Dataset[tuple[Tensor, int, str]]):
    """Image files, or members of uncompressed tars, through one transform. Item = (image, NO_LABEL, sample key)."""

    def __init__(self, places: Places, transform: ImageTransform) -> None:
        self.places = places
        self.transform = transform

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Tensor, int, str]:
        """Raises DataError, naming the file, if the image cannot be read or decoded."""
        path, offset, size = self.places[index]
        where = f"{path} (byte {offset})"
        image = decode_rgb(read_range(path, offset, size, where), where, formats=FILE_FORMATS)
        return self.transform(image), *self.about(index)

    def about(self, index: int) -> tuple[int, str]:
        """(NO_LABEL, sample key) of an item; its image is not loaded."""
        path, offset, _ = self.places[index]
        return NO_LABEL, f"{path}:{offset}"

    def digest(self, root: Path) -> str:
        """SHA-256 of the images' names under `root`, places and sizes, in order; their bytes are not read."""
        lines = (f"{path.relative_to(root)}:{offset}:{path.stat().st_size if size < 0 else size}\n" for path, offset, size in self.places)
        digest = hashlib.sha256()
        for line in lines:
            digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


@dataclass(frozen=True)
class ReferenceTexts:
    """Sentences R in their order, and what a run records of where they are from."""

    sentences: Sequence[str]
    record: dict[str, str] | None  # of a file: path and sha256


def reference_texts(source: TextSource, file: Path | None, pretraining: TaskManifest) -> ReferenceTexts | None:
    """The sentences a method distils on; None if they come from the tasks themselves.

    Raises: ConfigError if the file they come from is not given, DataError if it cannot be read.
    """
    if source == TextSource.PRETRAINING_CLASSES:
        return ReferenceTexts(pretraining.first_template_captions, None)
    if source != TextSource.FILE:
        return None
    if file is None:
        raise ConfigError(
            "The recipe distils on the sentences of a file (the paper: Conceptual Captions): give caption files with"
            " --reference-captions, or set method_config.reference.texts=pretraining-classes."
        )
    read = read_captions(file)
    if read.skipped:
        told = ", ".join(f"{count} {reason}" for reason, count in read.skipped.items())
        _log.warning("Reference captions: of %s, %s were left out.", file, told)
    return ReferenceTexts(read.texts.to_pylist(), {"path": str(file), "sha256": read.sha256})


def require_reference_images(source: ReplaySource, reference: Path | None) -> None:
    """Raises ConfigError if images of --reference-images are replayed and they are not given."""
    if reference is None and source == ReplaySource.REFERENCE:
        raise ConfigError(
            "The recipe distils on reference images (the paper: ImageNet): give their folder or tars with --reference-images."
        )


def reference_replay(
    source: ReplaySource, reference: Path | None, num_images: int | None, seed: int, transform: ImageTransform
) -> Dataset[Any] | None:
    """The images that are replayed from --reference-images: all, or `num_images` that `seed` decides. None if others are replayed.

    Raises: ConfigError if the path is not given, DataError if there are fewer images than asked for, or none.
    """
    if source != ReplaySource.REFERENCE:
        return None
    require_reference_images(source, reference)
    assert reference is not None
    images = open_reference_images(reference, transform)
    found = len(images.places)
    if num_images is None:
        return images
    if num_images > found:
        raise DataError(
            f"{reference} holds {found} images, the recipe asks for {num_images}. Give more, or set method_config.reference.num_images."
        )
    chosen = sorted(random.Random(seed).sample(range(found), num_images))
    return ReferenceImages(images.places.take(chosen), transform)


def no_task_images(
    source: NoTaskSource, reference: Path | None, shards: Folder | None, pretraining_source: str, transform: ImageTransform
) -> Dataset[Any] | None:
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


def pretraining_pictures(shards: Folder, pretraining_source: str, transform: ImageTransform) -> ReplayDataset:
    """All usable pictures of a stage 1 output folder whose captions are of the pretraining source, in index order."""
    with open_output_index(shards) as index:
        usable = pa.concat_tables(
            rows.filter(pc.and_(pc.equal(rows["status"], SampleStatus.OK), pc.equal(rows["source"], pretraining_source)))
            for rows in index.batches()
        )
    if not len(usable):
        raise DataError(f"{shards} holds no picture of the pretraining source {pretraining_source!r}. Plan and render some.")
    hold_shards(shards, "no task", usable["shard"].unique().to_pylist())
    return ReplayDataset(shards, usable, transform)


def open_reference_images(path: Path, transform: ImageTransform) -> ReferenceImages:
    """Open a folder of images at any depth, a folder of tars, or one tar. Raises DataError if it holds no image."""
    if path.is_file():
        places, passed_over = _in_tars([path])
    elif path.is_dir():
        if (path / INDEX_FILE).is_file():
            raise ConfigError(
                f"{path} is an output folder of gift-generate; give it with --shards and a recipe that takes synthetic images."
            )
        tars = sorted(path.glob("*.tar"))
        places, passed_over = _in_tars(tars) if tars else _in_folder(path)
    else:
        raise DataError(f"No reference images at {path}: neither a folder nor a tar.")
    if not places:
        raise DataError(f"{path} holds no image ({', '.join(FILE_SUFFIXES)}){f'; {passed_over}' if passed_over else ''}.")
    if passed_over:
        _log.warning("Reference images: %s.", passed_over)
    images = ReferenceImages(places, transform)
    _ = images[0]  # a folder of broken files is told before any work
    return images


def _in_folder(folder: Path) -> tuple[Places, PassedOver]:
    found = find_images(folder)
    return Places.of(Place(path, 0, -1) for path in found.files), found.passed_over


def _in_tars(paths: Sequence[Path]) -> tuple[Places, PassedOver]:
    places, passed_over = [], PassedOver()
    for path in paths:
        for member in plain_members(path):
            if is_stray_member(member.name):
                continue
            if member.name.lower().endswith(FILE_SUFFIXES):
                places.append(Place(path, member.offset_data, member.size))
            elif not member.name.lower().endswith(_BESIDE_IMAGES):
                passed_over.add(os.path.splitext(member.name)[1].lower(), f"{path} ({member.name})")
    return Places.of(places), passed_over
