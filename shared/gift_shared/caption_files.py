"""Captions that people bring: one file, several by a pattern, or a folder of them, read one after another and kept compactly.

Pure text, no images. Which kinds of files there are is in `caption_formats`, which column is taken in `caption_columns`.
"""

import glob
import hashlib
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from gift_shared.caption_columns import ColumnWish
from gift_shared.caption_formats import READERS, kind_of
from gift_shared.delimited_rows import is_gzipped, without_gz
from gift_shared.errors import DataError, unknown_name

EMPTY = "empty"  # null, nothing, or nothing but blanks: one reason in every kind of file
ANY_COLUMN = ColumnWish()
_WILDCARDS = "*?[]"
_INVISIBLE = r"[\x{200B}-\x{200D}\x{2060}\x{FEFF}]+"
_LINE_BREAKS = r"[\x00-\x1F\x7F\x{85}\x{2028}\x{2029}]+"


@dataclass(frozen=True)
class CaptionTexts:
    """The captions of a source in its order, repeats included (millions are fine), and how many were left out, by reason."""

    sha256: str  # of the whole file; of several, of their digests
    texts: pa.LargeStringArray
    skipped: Counter[str] = field(default_factory=Counter)


def read_captions(path: Path, wish: ColumnWish = ANY_COLUMN) -> CaptionTexts:
    """Read every caption of a file, of a folder's caption files, or of all files that match a pattern. Raises DataError.

    Line breaks, tabs and control characters inside a caption become single blanks, characters without width go; captions that are then
    empty are left out and counted.
    """
    chunks, skipped = [pa.array([], pa.large_string())], Counter[str]()
    files = find_caption_files(path)
    for file in files:
        for some in _read(file, wish):
            chunks.append(some.filter(pc.not_equal(some, "")))
            skipped[EMPTY] += len(some) - len(chunks[-1])
    texts = pa.concat_arrays(chunks)
    if not len(texts):
        raise DataError(f"{path} holds no caption.")
    return CaptionTexts(captions_sha256(path), texts, +skipped)


def find_caption_files(path: Path) -> list[Path]:
    """The files that a path, a folder or a pattern stands for, sorted. Raises DataError if there is none, or of several kinds."""
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if kind_of(file) and file.is_file() and not file.name.startswith(".")]
    elif path.exists() or not is_pattern(path):
        files = [path]
    else:
        files = [Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if Path(name).is_file()]
    if not files:
        raise DataError(f"{path} holds no caption file ({', '.join(READERS)}, also with .gz).")
    for file in files:
        _require_kind(file)
        if not file.is_file():
            raise DataError(f"No caption file at {file}.")
    kinds = sorted({str(kind_of(file)) for file in files})
    if len(kinds) > 1:
        raise DataError(f"{path} holds files of several kinds ({', '.join(kinds)}): name those that are meant, as '{path}/*{kinds[0]}'.")
    return files


def is_pattern(path: Path) -> bool:
    """Whether a path has wildcards in it."""
    return any(character in str(path) for character in _WILDCARDS)


def captions_sha256(path: Path) -> str:
    """What identifies a source: the sha256 of its file, or of the digests of its files in order."""
    digests = []
    for name in find_caption_files(path):
        with name.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def has_columns(path: Path) -> bool:
    """Whether a source is of a kind that has columns to choose from."""
    return kind_of(find_caption_files(path)[0]) != ".txt"


def source_stem(path: Path) -> str:
    """A source's short name: the file's without its suffix, the folder's, or what a pattern says besides its wildcards."""
    stem = path.name if path.is_dir() else Path(without_gz(path)).stem
    for wildcard in _WILDCARDS if not path.exists() else "":
        stem = stem.replace(wildcard, "")
    return stem.strip("-_. ") or path.resolve().parent.name or "captions"


def clean(texts: pa.Array) -> pa.LargeStringArray:
    """Captions as they are painted: on one line, without what cannot be seen, without blanks around them; null becomes empty."""
    texts = pc.replace_substring_regex(texts.cast(pa.large_string()), pattern=_INVISIBLE, replacement="")
    texts = pc.replace_substring_regex(texts, pattern=_LINE_BREAKS, replacement=" ")
    return pc.fill_null(pc.utf8_trim_whitespace(texts), "")


def _require_kind(path: Path) -> None:
    if kind_of(path) is not None:
        return
    suffix = Path(without_gz(path)).suffix
    if suffix.lower() == ".parquet":
        raise DataError(f"{path}: Parquet is compressed inside; unpack the file with gunzip.")
    raise DataError(f"{path}: " + unknown_name("kind of caption file", suffix, READERS))


def _read(path: Path, wish: ColumnWish) -> list[pa.LargeStringArray]:
    kind = kind_of(path)
    assert kind is not None
    cleaned = []
    try:
        for values in READERS[kind](path, wish):
            cleaned.append(clean(pa.array(values, pa.large_string())))
    except UnicodeError as error:  # JSON can write half a character, which no text file can
        raise DataError(f"{path} is not UTF-8 text: {error}. Convert it first.") from error
    except (EOFError, zlib.error, OSError) as error:
        if not is_gzipped(path) or (isinstance(error, OSError) and error.errno is not None):
            raise
        raise DataError(f"{path} is not a readable gzip file: {error}. Is it cut short?") from error
    return cleaned
