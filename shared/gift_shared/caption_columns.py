"""Which column of a table holds the captions: by its header, by the name a user gives, or by what its values look like.

Never a guess: where two columns could be meant, or the values look like addresses, file names or numbers, the file is refused.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from gift_shared.console import shortened
from gift_shared.errors import DataError, unknown_name

CAPTION_NAMES = ("caption", "captions", "text", "title", "prompt", "prompts", "sentence", "description", "alt_text")
"""Headers of caption columns in order of preference; upper and lower case are one."""
OTHER_NAMES = ("url", "image", "image_id", "image_path", "id", "key", "file", "filename", "file_name", "filepath", "path", "label", "split")
MOST_LOOKED_AT = 4096  # values that decide what a column looks like

_ADDRESS = re.compile(r"\s*([a-z][a-z0-9+.-]*://|data:image/|www\.)\S*\s*", re.IGNORECASE)
_FILE_SUFFIX = r"\.(jpe?g|png|webp|gif|bmp|tiff?|ppm|heic|avif|npy|npz|pt|mp4|txt|json|tar|parquet)"
_FILE_NAME = re.compile(rf"[^\n]*{_FILE_SUFFIX}(\?\S*)?\s*|\S*[\w-][/\\]\S*", re.IGNORECASE)
_NUMBER = re.compile(r"\s*[-+]?(\d[\d_,.]*|\.\d+)(e[-+]?\d+)?\s*", re.IGNORECASE)
_IDENTIFIER = re.compile(r"\s*(?=\S*\d)[0-9a-fA-F-]{16,}\s*")
_KINDS = {"addresses": _ADDRESS, "file names": _FILE_NAME, "numbers": _NUMBER, "identifiers": _IDENTIFIER}


@dataclass(frozen=True)
class ColumnWish:
    """The column a user names, by header or by number from 1 (None: find it), and the flag it is named by, if there is one."""

    column: str | None = None
    flag: str | None = None

    @property
    def advice(self) -> str:
        """What to do where the column is not found."""
        return f"Name it with {self.flag}." if self.flag else "Call the column of the captions caption."


def looks_like(values: Sequence[str | None]) -> str | None:
    """`addresses`, `file names`, `numbers` or `identifiers` if more than half of the values that are not empty are; else None."""
    filled = [value for value in values if value and not value.isspace()]
    for kind, pattern in _KINDS.items():
        if 2 * sum(pattern.fullmatch(value[:2000]) is not None for value in filled) > len(filled):
            return kind
    return None


def require_captions(where: str, column: str, values: Sequence[str | None], wish: ColumnWish) -> None:
    """Raises DataError if the first values of a column, however it was found, look like anything but captions."""
    kind = looks_like(values[:MOST_LOOKED_AT])
    if kind is not None:
        example = next(value for value in values if value and _KINDS[kind].fullmatch(value[:2000]))
        other = f" Name another column with {wish.flag}." if wish.flag and column else ""
        raise DataError(f"{where}: {column or 'its lines'} look like {kind} and not like captions ({shortened(example)}).{other}")


def named_column(where: str, names: Sequence[str], wish: ColumnWish) -> str:
    """The name among `names` that is wished for, or else the first of CAPTION_NAMES. Raises DataError if there is none, or two."""
    if wish.column is not None:
        found = wish.column if wish.column in names else None
        alike = [name for name in names if _bare(name) == _bare(wish.column)]
        if found is None and len(alike) == 1:
            return alike[0]
        if found is None:
            raise DataError(f"{where}: {wish.flag}: {unknown_name('column', wish.column, map(shortened_name, names))}")
        if list(names).count(found) > 1:
            raise DataError(f"{where}: two columns are called {found!r}. Name one by its number with {wish.flag}.")
        return found
    for wanted in CAPTION_NAMES:
        alike = [name for name in names if _bare(name) == wanted]
        if len(alike) > 1:
            raise DataError(f"{where}: the columns {' and '.join(alike)} could both hold the captions. {wish.advice}")
        if alike:
            return alike[0]
    found_names = ", ".join(map(shortened_name, names)) or "none"
    raise DataError(f"{where}: no column is called {', '.join(CAPTION_NAMES)}; found {found_names}. {wish.advice}")


@dataclass(frozen=True)
class TablePlace:
    """Where the captions of a table stand: column from 0, and whether the first row is a header."""

    column: int
    has_header: bool


def find_in_rows(where: str, rows: Sequence[Sequence[str]], wish: ColumnWish) -> TablePlace:
    """The caption column of a table whose first rows these are. Raises DataError where it cannot be told."""
    first = rows[0]
    number = wished_number(where, len(first), wish) if wish.column not in first else None
    if number is not None:
        return TablePlace(number, any(_bare(cell) in (*CAPTION_NAMES, *OTHER_NAMES) for cell in first))
    if wish.column is not None or any(_bare(cell) in CAPTION_NAMES for cell in first):
        return TablePlace(list(first).index(named_column(where, first, wish)), has_header=True)
    return _place_by_looks(where, rows, wish)


def wished_number(where: str, num_columns: int, wish: ColumnWish) -> int | None:
    """The column from 0 that is wished for by number; None if it is not. Raises DataError if there are fewer columns."""
    if wish.column is None or not wish.column.isascii() or not wish.column.isdigit():
        return None
    number = int(wish.column[:9])
    if not 1 <= number <= num_columns:
        raise DataError(f"{where}: {wish.flag} {shortened_name(wish.column)}: there are {num_columns} columns, counted from 1.")
    return number - 1


def _place_by_looks(where: str, rows: Sequence[Sequence[str]], wish: ColumnWish) -> TablePlace:
    """Without a header that is known: the only column of text, if the first row is one like the others."""
    first = rows[0]
    columns = [[row[number] for row in rows if number < len(row)] for number in range(len(first))]
    kinds = [looks_like(column) for column in columns]
    texts = [number for number, kind in enumerate(kinds) if kind is None]
    shown = ", ".join(map(shortened_name, first))
    is_header = any(kind is not None and looks_like([cell]) != kind for kind, cell in zip(kinds, first, strict=True))
    if len(texts) == 1 and len(first) == 1:
        is_header = _is_word(first[0]) and sum(map(_is_word, columns[0][1:])) * 10 < len(columns[0]) - 1
    if len(texts) != 1 or is_header:
        raise DataError(f"{where}: none of the columns {shown} is called {', '.join(CAPTION_NAMES)}. {wish.advice}")
    return TablePlace(texts[0], has_header=False)


def shortened_name(name: str) -> str:
    """A column's name as it is shown in a message."""
    return name if len(name) <= 40 and name.isprintable() else shortened(name, 40)


def _is_word(cell: str) -> bool:
    return len(cell.split()) == 1


def _bare(name: str) -> str:
    return name.strip().lower()
