"""Caption files: one sentence after another from .txt, .tsv, .jsonl or .parquet, kept compactly. Pure text, no images."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from gift_shared.errors import DataError, unknown_name

TEXT_COLUMNS = ("caption", "text", "TEXT")  # of .jsonl and .parquet files, in order of preference
FILE_SUFFIXES = (".txt", ".tsv", ".jsonl", ".parquet")
_LINES_AT_ONCE = 65_536


@dataclass(frozen=True)
class CaptionTexts:
    """The non-empty captions of a file in its order, repeats included (millions are fine)."""

    sha256: str  # of the whole file
    texts: pa.LargeStringArray


def read_captions(path: Path) -> CaptionTexts:
    """Read .txt (a caption a line), .tsv (caption, tab, address: CC3M), .jsonl or .parquet (column caption, text or TEXT).

    Line breaks and tabs inside a caption become single spaces; empty captions are left out. Raises DataError.
    """
    readers = {".txt": _text_lines, ".tsv": _tsv_captions, ".jsonl": _jsonl_captions, ".parquet": _parquet_captions}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path}: " + unknown_name("kind of caption file", path.suffix, FILE_SUFFIXES))
    if not path.is_file():
        raise DataError(f"No caption file at {path}.")
    try:
        captions = _clean(readers[path.suffix.lower()](path))
        chunks = []
        while chunk := list(islice(captions, _LINES_AT_ONCE)):
            chunks.append(pa.array(chunk, type=pa.large_string()))
    except UnicodeError as error:  # JSON can write half a character, which no text file can
        raise DataError(f"{path} is not UTF-8 text: {error}. Convert it first.") from error
    if not chunks:
        raise DataError(f"{path} holds no caption.")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return CaptionTexts(digest, pa.concat_arrays(chunks))


def _clean(captions: Iterator[str]) -> Iterator[str]:
    for caption in captions:
        one_line = re.sub(r"[\r\n\t\x00]+", " ", caption).strip()
        if one_line:
            yield one_line


def _text_lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig") as file:
        yield from file


def _tsv_captions(path: Path) -> Iterator[str]:
    for number, line in enumerate(_text_lines(path)):
        cells = line.rstrip("\r\n").split("\t")
        if number == 0 and cells[0].lower() in ("caption", "text", "title") and len(cells) > 1:
            continue  # a header, which CC3M's own files do not have
        yield cells[0]


def _jsonl_captions(path: Path) -> Iterator[str]:
    for number, line in enumerate(_text_lines(path), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number} is not JSON: {error}.") from error
        texts = [record[key] for key in TEXT_COLUMNS if key in record] if isinstance(record, dict) else []
        if not texts or not isinstance(texts[0], str):
            raise DataError(f"{path}, line {number}: expected an object with a string under {' or '.join(TEXT_COLUMNS)}.")
        yield texts[0]


def _parquet_captions(path: Path) -> Iterator[str]:
    try:
        with pq.ParquetFile(path) as file:
            columns = [name for name in TEXT_COLUMNS if name in file.schema_arrow.names]
            if not columns:
                found = ", ".join(file.schema_arrow.names)
                raise DataError(f"{path}: expected a column {' or '.join(TEXT_COLUMNS)}, found {found}.")
            for batch in file.iter_batches(batch_size=_LINES_AT_ONCE, columns=columns[:1]):
                yield from (str(text) for text in batch.column(0).to_pylist() if text is not None)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error
