"""Pairs in WebDataset tars: `<key>.jpg` (or any image suffix) beside `<key>.txt`, a caption a line, or `<key>.json` with captions."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from gift_datasets.webdataset_tars import key_and_suffix
from gift_shared.console import some_of
from gift_shared.decoding import FILE_SUFFIXES
from gift_shared.errors import DataError
from gift_shared.image_files import is_stray_member
from gift_shared.tar_members import plain_members
from gift_train.data.pairs.caption_tables import captions_of
from gift_train.data.places import Place

MOST_TEXT_BYTES = 2**20  # of a member with captions
_Range = tuple[int, int]  # byte offset and size


def read_tar(path: Path) -> Iterator[tuple[str, Place, list[str]]]:
    """(key, place of the image, its captions) of every sample, in the order of the images. A .txt goes before a .json.

    Raises: DataError, naming the keys, for an image without a caption, a caption without an image, an empty one, and a sample of two
    images.
    """
    images: dict[str, _Range] = {}
    texts: dict[str, dict[str, _Range]] = {".txt": {}, ".json": {}}
    for member in plain_members(path):
        key, suffix = key_and_suffix(member.name)
        if is_stray_member(member.name):
            continue
        if suffix in FILE_SUFFIXES:
            if key in images:
                raise DataError(f"{path}: sample {key!r} has two images. Pack it again.")
            images[key] = (member.offset_data, member.size)
        elif suffix in texts:
            texts[suffix][key] = (member.offset_data, member.size)
    captioned = texts[".txt"] | texts[".json"]
    _require_none(path, [key for key in images if key not in captioned], "have no caption (.txt or .json)")
    _require_none(path, [key for key in texts[".txt"] if key not in images], "have no image")
    with path.open("rb") as file:
        read = {key: _captions(path, file, key, texts) for key in images}
    _require_none(path, [key for key, captions in read.items() if not captions], "have an empty caption")
    for key, (offset, size) in images.items():
        yield key, Place(path, offset, size), read[key]


def _captions(path: Path, file: BinaryIO, key: str, texts: dict[str, dict[str, _Range]]) -> list[str]:
    suffix = ".txt" if key in texts[".txt"] else ".json"
    where = f"{path} ({key}{suffix})"
    offset, size = texts[suffix][key]
    if size > MOST_TEXT_BYTES:
        raise DataError(f"{where} has {size} bytes, more than any captions. Pack it again without.")
    file.seek(offset)
    try:
        text = file.read(size).decode("utf-8-sig")
        lines = text.splitlines() if suffix == ".txt" else captions_of(where, _object(where, text))
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 text: {error}. Convert it first.") from error
    captions = [line.strip() for line in lines]
    if suffix == ".json" and not all(captions):
        return []  # a caption of a list is a caption; an empty line of a text is none
    return [caption for caption in captions if caption]


def _object(where: str, text: str) -> dict[str, object]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}. Pack it again.") from error
    if not isinstance(found, dict):
        raise DataError(f"{where}: expected an object with a caption, found {type(found).__name__}. Pack it again.")
    return found


def _require_none(path: Path, keys: list[str], fault: str) -> None:
    if keys:
        raise DataError(f"{path}: {len(keys)} samples {fault}: {some_of(keys)}. Pack them again whole, or without them.")
