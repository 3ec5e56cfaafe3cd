"""A dataset -> WebDataset tars that the trainer reads as it reads the original: same images, labels, order and class names.

OUT/<name>/<part>-<number>.tar   `<key>.jpg|.png|.webp` beside `<key>.cls`; byte-deterministic
OUT/<name>/pack.json             the settings; a second pack with others is refused
OUT/manifests/tasks/<name>.toml  the manifest that reads them; written last, so packing is complete once it exists
"""

import io
import json
import os
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from gift_datasets.images import SUFFIX_OF_FORMAT, ImageSource
from gift_datasets.parts import open_parts, parts_of
from gift_datasets.settings import data_settings
from gift_shared.atomic import atomic_path, write_json, write_text
from gift_shared.documents import read_json_object
from gift_shared.errors import ConfigError, DataError
from gift_shared.manifests import Manifests, TaskManifest
from gift_shared.progress import Progress

SETTINGS_FILE = "pack.json"
MANIFEST_FOLDER = "manifests"


@dataclass(frozen=True, kw_only=True)
class PackSettings:
    """What decides the bytes of the tars. shorter_side: pixels to reduce the shorter side to, None = images as they are."""

    shorter_side: int | None
    images_per_shard: int
    jpeg_quality: int  # of reduced images

    def __post_init__(self) -> None:
        if self.shorter_side is not None and self.shorter_side < 1:
            raise ConfigError(f"--shorter-side must be at least 1 pixel, found {self.shorter_side}.")
        if self.images_per_shard < 1 or not 1 <= self.jpeg_quality <= 100:
            raise ConfigError("--images-per-shard must be at least 1 and --jpeg-quality within 1..100.")


def pack_dataset(manifest: TaskManifest, data_root: Path, out: Path, settings: PackSettings) -> Path:
    """Pack a dataset and return the manifest that reads it. Stopped at any moment, the same call finishes the rest.

    Every image is decoded on the way; one that is already small enough keeps its bytes. Raises DataError or ManifestError
    if the data are not what the manifest says, ConfigError if `out` was packed with other settings.
    """
    manifest_path = out / MANIFEST_FOLDER / "tasks" / f"{manifest.name}.toml"
    folder = out / manifest.name
    _claim(folder, settings)
    sources = open_parts(manifest, data_root, parts_of(data_settings(manifest)))
    patterns = {part: _pack_part(manifest.name, part, source, folder, settings) for part, source in sources.items()}
    write_text(manifest_path, _manifest_text(manifest, patterns, {part: len(source) for part, source in sources.items()}))
    _check_packed(manifest, sources, out, manifest_path)
    return manifest_path


def _claim(folder: Path, settings: PackSettings) -> None:
    path = folder / SETTINGS_FILE
    if path.is_file() and read_json_object(path, {}, ConfigError, f"Remove {folder} and pack again.") != asdict(settings):
        raise ConfigError(f"{folder} was packed with other settings, see {path}. Choose another --out, or remove the folder.")
    write_json(path, asdict(settings))


def _pack_part(name: str, part: str, source: ImageSource, folder: Path, settings: PackSettings) -> str:
    """Write the tars of one split that are not there yet; returns their brace pattern relative to `out`."""
    starts = range(0, len(source), settings.images_per_shard)
    with ThreadPoolExecutor(os.cpu_count()) as workers, Progress(f"{name} {part}", len(source), "image") as progress:
        for number, start in enumerate(starts):
            indices = range(start, min(start + settings.images_per_shard, len(source)))
            path = folder / f"{part}-{number:06d}.tar"
            if not path.is_file():
                contents = list(workers.map(lambda index: _content(source, index, settings), indices))
                _write_tar(path, name, part, indices, contents, source.labels)
            progress.advance(len(indices))
    if len(starts) == 1:
        return f"{name}/{part}-000000.tar"
    return f"{name}/{part}-{{000000..{len(starts) - 1:06d}}}.tar"


def _content(source: ImageSource, index: int, settings: PackSettings) -> tuple[str, bytes]:
    """Suffix and bytes of one image: its own where they may stay, JPEG if it was reduced, else PNG, which loses nothing."""
    image = source.image(index)
    scale = (settings.shorter_side or min(image.size)) / min(image.size)
    buffer = io.BytesIO()
    if scale < 1:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image.resize(size, Image.Resampling.BICUBIC).save(buffer, format="JPEG", quality=settings.jpeg_quality)
        return ".jpg", buffer.getvalue()
    encoded = source.encoded(index)
    if encoded is not None:
        with Image.open(io.BytesIO(encoded)) as original:
            if original.format in SUFFIX_OF_FORMAT:
                return SUFFIX_OF_FORMAT[original.format], encoded
    image.save(buffer, format="PNG")
    return ".png", buffer.getvalue()


def _write_tar(path: Path, name: str, part: str, indices: Sequence[int], contents: Sequence[tuple[str, bytes]], labels: np.ndarray) -> None:
    with atomic_path(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for index, (suffix, content) in zip(indices, contents, strict=True):
            key = f"{name}-{part}-{index:08d}"
            for member, data in ((key + suffix, content), (key + ".cls", str(labels[index]).encode())):
                header = tarfile.TarInfo(member)  # time 0, no owner: the same data give the same bytes
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))


def _check_packed(manifest: TaskManifest, sources: dict[str, ImageSource], out: Path, manifest_path: Path) -> None:
    """Read the tars as the trainer will: class names and, image for image, labels must be the original's."""
    packed_manifest = Manifests().task(str(manifest_path))
    packed = open_parts(packed_manifest, out, list(sources))
    same_labels = all(np.array_equal(packed[part].labels, source.labels) for part, source in sources.items())
    if not same_labels or packed_manifest.class_names != manifest.class_names:
        manifest_path.unlink()
        raise DataError(f"{out / manifest.name} holds tars of other data. Remove the folder and pack again.")


def _manifest_text(manifest: TaskManifest, patterns: dict[str, str], counts: dict[str, int]) -> str:
    def quoted(value: str) -> str:
        return json.dumps(value, ensure_ascii=False)  # a JSON string is a TOML basic string

    def array(values: Sequence[str]) -> list[str]:
        return ["[", *(f"    {quoted(value)}," for value in values), "]"]

    lines = [f"name = {quoted(manifest.name)}", f"display_name = {quoted(manifest.display_name)}", f"about = {quoted(manifest.about)}"]
    if manifest.repeated_class_names:
        lines.append(f"repeated_class_names = [{', '.join(map(quoted, manifest.repeated_class_names))}]")
    for key, values in (("templates", manifest.templates), ("class_names", manifest.class_names)):
        first, *rest = array(values)
        lines += [f"{key} = {first}", *rest]
    lines += ["", "[data]", 'kind = "webdataset"', *(f"{part} = {quoted(pattern)}" for part, pattern in patterns.items())]
    lines += ["", "[counts]", *(f"{part} = {count}" for part, count in counts.items())]
    return "\n".join(lines) + "\n"
