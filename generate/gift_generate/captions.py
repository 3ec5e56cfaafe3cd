"""Where captions come from: class names through a template, lines of a caption file, or both by weight. Pure text, no images."""

import hashlib
import json
import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from gift_shared.errors import ConfigError, DataError, unknown_name
from gift_shared.manifests import TaskManifest

TEXT_COLUMNS = ("caption", "text", "TEXT")  # of .jsonl and .parquet files, in order of preference
FILE_SUFFIXES = (".txt", ".tsv", ".jsonl", ".parquet")
_LINES_AT_ONCE = 65_536


class Caption(NamedTuple):
    """A caption and where it is from; `class_name` and `class_index` are None for a line of a caption file."""

    text: str
    source: str
    class_name: str | None
    class_index: int | None


def class_captions(manifest: TaskManifest) -> list[Caption]:
    """A dataset's captions in label order, through its first template. Equal class names stay: the draw is over entries."""
    pairs = zip(manifest.first_template_captions, manifest.class_names, strict=True)
    return [Caption(text, manifest.name, class_name, index) for index, (text, class_name) in enumerate(pairs)]


@dataclass(frozen=True)
class CaptionFile:
    """The non-empty lines of a caption file as a sequence of captions, kept compactly (millions of lines are fine)."""

    source: str  # "file:<stem>"
    sha256: str  # of the whole file
    texts: pa.LargeStringArray

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> Caption:
        return Caption(self.texts[index].as_py(), self.source, None, None)


def read_caption_file(path: Path) -> CaptionFile:
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
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}. Convert it first.") from error
    if not chunks:
        raise DataError(f"{path} holds no caption.")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return CaptionFile(f"file:{path.stem}", digest, pa.concat_arrays(chunks))


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
        except json.JSONDecodeError as error:
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
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error


@dataclass(frozen=True)
class WeightedFile:
    """A caption file and its share against the others and against the class names."""

    path: Path
    weight: float


def parse_weighted_file(argument: str) -> WeightedFile:
    """`captions.txt` (weight 1) or `captions.txt=0.5`. Raises ConfigError."""
    path, separator, weight = argument.rpartition("=")
    if not separator:
        return WeightedFile(Path(argument), 1.0)
    try:
        value = float(weight)
    except ValueError:
        value = math.nan
    if not path or not math.isfinite(value) or value <= 0:
        raise ConfigError(f"--caption-file {argument!r}: expected FILE or FILE=WEIGHT with a weight above 0.")
    return WeightedFile(Path(path), value)


class CaptionMixture:
    """Draws captions from one seeded stream: uniformly, with replacement, over the entries of one component.

    With class names alone every draw is exactly one `choice(pool)`, so the published lists come out (DATA_NOTES section 1).
    Only when caption files take part does a weighted draw of the component come before it, from the same stream.
    """

    def __init__(self, seed: int, class_name_weight: float, files: Sequence[tuple[CaptionFile, float]]) -> None:
        if class_name_weight < 0 or (class_name_weight == 0 and not files):
            raise ConfigError(f"The weight of class names is {class_name_weight}: nothing would be left to draw from.")
        self._stream = random.Random(seed)
        self._files = [file for file, _ in files]
        self._weights = [class_name_weight, *(weight for _, weight in files)]

    def draw(self, class_pool: Sequence[Caption]) -> Caption:
        """The next caption of the stream, class names being drawn from `class_pool`."""
        components: list[Sequence[Caption] | CaptionFile] = [class_pool, *self._files]
        if len(components) == 1:
            return self._stream.choice(class_pool)
        component = self._stream.choices(components, self._weights)[0]
        return component[self._stream.randrange(len(component))]
