"""Files that say which image has which caption, one reader a form: each yields (where it stands, the image's name, the caption).

Tables with a header (.csv, .tsv, .txt), Flickr's `1.jpg#0<tab>caption`, an object a line or a list of them (.jsonl, .json), COCO's
annotations, Karpathy's splits. Nothing is opened but the file.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from gift_shared.caption_columns import CAPTION_NAMES
from gift_shared.decoding import FILE_SUFFIXES
from gift_shared.delimited_rows import Row, csv_rows, open_text, require_columns, tsv_rows
from gift_shared.documents import shape_fault
from gift_shared.errors import DataError

TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".token", ".jsonl", ".json")
IMAGE_NAMES = ("file_name", "filename", "image_name", "image", "image_path", "filepath", "file_path", "path", "file", "img")
_CAPTION_NAMES = (*CAPTION_NAMES, "comment", "raw")
_DELIMITERS = (",", ";", "\t", "|")
_TEST = "test"  # the side of Karpathy's splits that is evaluated
_COCO = {"images": [{"id": object, "file_name": str}], "annotations": [{"image_id": object, "caption": str}]}
_KARPATHY = {"images": [{"filename": str, "filepath?": str, "split?": str, "sentences": [{"raw": str}]}]}
_ADVICE = "Correct it."


class NamedPair(NamedTuple):
    """`where`: for messages, e.g. `line 3`."""

    where: str
    image: str
    caption: str


def read_pairs(path: Path) -> Iterator[NamedPair]:
    """Every pair a file names, in its order. Raises DataError, naming file and line, for what is not understood."""
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        return _of_objects(path, _json_lines(path))
    if suffix == ".json":
        return _of_json(path)
    if suffix in TABLE_SUFFIXES:
        return _of_table(path)
    raise DataError(f"{path}: captions of images are read from {', '.join(TABLE_SUFFIXES)} or .tar. Give one of these, or the folder.")


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"line {number}", _parsed(f"{path}, line {number}", line)


def _parsed(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}. {_ADVICE}") from error


def _of_json(path: Path) -> Iterator[NamedPair]:
    with open_text(path) as file:
        content = _parsed(str(path), file.read())
    if isinstance(content, list):
        return _of_objects(path, ((f"entry {number}", entry) for number, entry in enumerate(content, start=1)))
    for shape, reader in ((_COCO, _of_coco), (_KARPATHY, _of_karpathy)):
        if isinstance(content, dict) and shape.keys() <= content.keys():
            if (fault := shape_fault(content, shape)) is not None:
                raise DataError(f"{path}{fault}. {_ADVICE}")
            return reader(path, content)
    raise DataError(f"{path}: expected a list of objects, COCO's images and annotations, or Karpathy's images with sentences.")


def _of_coco(path: Path, content: dict[str, Any]) -> Iterator[NamedPair]:
    names = {str(image["id"]): image["file_name"] for image in content["images"]}
    of_image: dict[str, list[NamedPair]] = {key: [] for key in names}
    for number, entry in enumerate(content["annotations"], start=1):
        key = str(entry["image_id"])
        if key not in names:
            raise DataError(f"{path}, annotation {number}: no image has the id {entry['image_id']!r}. {_ADVICE}")
        of_image[key].append(NamedPair(f"annotation {number}", names[key], entry["caption"]))
    return chain.from_iterable(of_image.values())


def _of_karpathy(path: Path, content: dict[str, Any]) -> Iterator[NamedPair]:
    images = content["images"]
    if any("split" in image for image in images):
        images = [image for image in images if image.get("split") == _TEST]
        if not images:
            raise DataError(f"{path} has splits, and no image of the split {_TEST!r}. Give a file of the images that are meant.")
    for number, image in enumerate(images, start=1):
        name = f"{image['filepath']}/{image['filename']}" if image.get("filepath") else image["filename"]
        for sentence in image["sentences"]:
            yield NamedPair(f"image {number}", name, sentence["raw"])


def _of_objects(path: Path, entries: Iterable[tuple[str, Any]]) -> Iterator[NamedPair]:
    for where, entry in entries:
        if not isinstance(entry, dict):
            raise DataError(f"{path}, {where}: expected an object with the image's file name and its caption. {_ADVICE}")
        image = entry[_key(path, where, list(entry), IMAGE_NAMES, "image")]
        if not isinstance(image, str):
            raise DataError(f"{path}, {where}: the image's file name must be text, found {image!r}. {_ADVICE}")
        for caption in captions_of(f"{path}, {where}", entry):
            yield NamedPair(where, image, caption)


def captions_of(where: str, entry: dict[str, Any]) -> list[str]:
    """The caption or captions of an object, under the first key that is called like captions are. Raises DataError if there is none."""
    found = entry[_key(None, where, list(entry), _CAPTION_NAMES, "captions")]
    captions = found if isinstance(found, list) else [found]
    if not captions or not all(isinstance(caption, str) for caption in captions):
        raise DataError(f"{where}: expected a caption or a list of captions, found {found!r}. {_ADVICE}")
    return captions


def _of_table(path: Path) -> Iterator[NamedPair]:
    with open_text(path, newline="") as file:
        head = file.readline()
        file.seek(0)
        delimiter = _delimiter(head)
        rows = tsv_rows(file) if delimiter == "\t" else csv_rows(path, file, delimiter)
        yield from _of_rows(path, (row for row in rows if any(cell.strip() for cell in row[1])))


def _of_rows(path: Path, rows: Iterator[Row]) -> Iterator[NamedPair]:
    first = next(rows, None)
    if first is None:
        return
    names = [cell.strip().lower() for cell in first[1]]
    if any(name in IMAGE_NAMES for name in names):
        image, caption = (names.index(_key(path, "its header", names, wanted, what)) for wanted, what in _COLUMNS)
    elif len(names) == 2 and _without_number(names[0]).endswith(FILE_SUFFIXES):
        image, caption, rows = 0, 1, chain([first], rows)
    else:
        raise DataError(
            f"{path}: expected a header that names the columns of image ({', '.join(IMAGE_NAMES[:4])}, ...) and caption "
            f"({', '.join(_CAPTION_NAMES[:3])}, ...), or lines of a file name, a tab and a caption; found {', '.join(names)[:100]!r}."
        )
    for row in rows:
        require_columns(path, row, len(names))
        cells = [cell.strip() for cell in row[1]]
        yield NamedPair(f"line {row[0]}", _without_number(cells[image]), cells[caption])


_COLUMNS = ((IMAGE_NAMES, "image"), (_CAPTION_NAMES, "captions"))


def _delimiter(head: str) -> str:
    """What separates the columns of a table, by its first line: that between which the names of both stand; else a tab if there is one."""
    for delimiter in _DELIMITERS:
        cells = {cell.strip(' \r\n"').lower() for cell in head.split(delimiter)}
        if cells & set(IMAGE_NAMES) and cells & set(_CAPTION_NAMES):
            return delimiter
    return "\t" if "\t" in head else ","


def _key(path: Path | None, where: str, names: Sequence[str], wanted: Sequence[str], what: str) -> str:
    """The name among `names` that is first in `wanted`; upper and lower case are one."""
    bare = {name.strip().lower(): name for name in names}
    for name in wanted:
        if name in bare:
            return bare[name]
    place = where if path is None else f"{path}, {where}"
    raise DataError(
        f"{place}: nothing is called like {what} are ({', '.join(wanted[:5])}, ...); found {', '.join(names)[:100]!r}. {_ADVICE}"
    )


def _without_number(name: str) -> str:
    """Flickr's `1.jpg#0` counts an image's captions."""
    stem, sharp, number = name.rpartition("#")
    return stem if sharp and number.isdecimal() else name
