"""Text files that people or programs wrote, gzipped or not, and the rows of their tables. Nothing of what is in them is known here."""

import csv
import gzip
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from gift_shared.errors import DataError

Row = tuple[int, list[str]]  # the line it begins in, and its cells; none of a blank line
_QUOTED = re.compile(r'"(?:[^"]|"")*"')


def is_gzipped(path: Path) -> bool:
    """Whether a file is compressed, by its name."""
    return path.name.lower().endswith(".gz")


def without_gz(path: Path) -> str:
    """The file's name without a last `.gz`."""
    return path.name[:-3] if is_gzipped(path) else path.name


def open_text(path: Path, newline: str | None = None) -> TextIO:
    """A text file, gzipped or not; a byte order mark is passed over."""
    if is_gzipped(path):
        return gzip.open(path, "rt", encoding="utf-8-sig", newline=newline)
    return path.open(encoding="utf-8-sig", newline=newline)


def csv_rows(path: Path, file: TextIO, delimiter: str) -> Iterator[Row]:
    """The rows of a file opened with `newline=""`, each with the line it begins in. Raises DataError, naming the line."""
    rows = csv.reader(file, delimiter=delimiter, strict=True)
    line = 1
    try:
        for cells in rows:
            yield line, cells
            line = rows.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}, line {line}: no CSV: {error}. Is a quote missing, or not doubled?") from error


def tsv_rows(lines: Iterable[str]) -> Iterator[Row]:
    """The rows between tabs, a line each. Quotes are text, unless they enclose a value and are doubled in it, as programs write them."""
    for number, line in enumerate(lines, start=1):
        content = line.rstrip("\n")
        yield number, [_unquoted(cell) for cell in content.split("\t")] if content.strip(" ") else []


def _unquoted(cell: str) -> str:
    return cell[1:-1].replace('""', '"') if cell.startswith('"') and _QUOTED.fullmatch(cell) else cell


def require_columns(path: Path, row: Row, num_columns: int) -> None:
    """Raises DataError if a row that is not blank has another number of cells."""
    line, cells = row
    if cells and len(cells) != num_columns:
        raise DataError(
            f"{path}, line {line}: expected {num_columns} columns as in the first line, found {len(cells)}. Correct the line; "
            "values with separators or line breaks belong in the quotes of a .csv, or in a .jsonl."
        )
