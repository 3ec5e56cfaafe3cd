"""Readers of caption files, one a kind: each yields the values of the caption column some at a time, None where there is none."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, dropwhile, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gift_shared.caption_columns import (
    CAPTION_NAMES,
    MOST_LOOKED_AT,
    ColumnWish,
    find_in_rows,
    named_column,
    require_captions,
    shortened_name,
    wished_number,
)
from gift_shared.delimited_rows import Row, csv_rows, is_gzipped, open_text, require_columns, tsv_rows, without_gz
from gift_shared.errors import DataError

Values = Sequence[str | None]
VALUES_AT_ONCE = 65_536
_DELIMITERS = (",", ";", "\t")
_Record = tuple[str, Any]  # where it stands ("line 3"), and what


def read_text(path: Path, wish: ColumnWish) -> Iterator[Values]:
    """A caption a line."""
    with open_text(path) as file:
        yield from _checked(str(path), "", (line.rstrip("\n") for line in file), wish)


def read_csv(path: Path, wish: ColumnWish) -> Iterator[Values]:
    """Values with commas and line breaks in quotes. Another separator, `;` or a tab, is taken where the header says so."""
    with open_text(path, newline="") as file:
        delimiter = _delimiter(file.readline(), wish)
        file.seek(0)
        yield from _table(path, csv_rows(path, file, delimiter), wish)


def read_tsv(path: Path, wish: ColumnWish) -> Iterator[Values]:
    """Values between tabs. Quotes are part of a caption (CC3M), unless they enclose a value as programs write it."""
    with open_text(path) as file:
        yield from _table(path, tsv_rows(file), wish)


def read_json_lines(path: Path, wish: ColumnWish) -> Iterator[Values]:
    """An object a line, or a string a line."""
    with open_text(path) as file:
        yield from _records(path, _json_lines(path, file), wish)


def read_json(path: Path, wish: ColumnWish) -> Iterator[Values]:
    """A list of strings or objects, the annotations of COCO, or (as many a file called .json) an object a line."""
    with open_text(path) as file:
        text = file.read()
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        if not (isinstance(error, json.JSONDecodeError) and error.msg == "Extra data"):
            raise DataError(f"{path} is not JSON: {error}.") from error
        yield from _records(path, _json_lines(path, text.splitlines(keepends=True)), wish)
        return
    if isinstance(content, dict):
        if not isinstance(content.get("annotations"), list):
            raise DataError(f"{path}: expected a list, or an object with a list under annotations (COCO); found other keys.")
        content = content["annotations"]
    if not isinstance(content, list):
        raise DataError(f"{path}: expected a list of captions or of objects, found {type(content).__name__}.")
    yield from _records(path, ((f"entry {number}", record) for number, record in enumerate(content, start=1)), wish)


def read_parquet(path: Path, wish: ColumnWish) -> Iterator[Values]:
    """A column of strings, of UTF-8 bytes, or of lists of them, each of which is a caption."""
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            number = wished_number(str(path), len(names), wish) if wish.column not in names else None
            name = names[number] if number is not None else named_column(str(path), names, wish)
            if names.count(name) > 1:
                raise DataError(f"{path}: two columns are called {name}. Rename one.")
            _require_text(path, name, file.schema_arrow.field(name).type)
            yield from _checked(str(path), f"the values of {shortened_name(name)}", _parquet_values(file, name), wish)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error


READERS: dict[str, Callable[[Path, ColumnWish], Iterator[Values]]] = {
    ".txt": read_text,
    ".tsv": read_tsv,
    ".csv": read_csv,
    ".jsonl": read_json_lines,
    ".json": read_json,
    ".parquet": read_parquet,
}


def kind_of(path: Path) -> str | None:
    """The kind of caption file by its name, a last `.gz` left out (Parquet is compressed inside); None if it is none."""
    suffix = Path(without_gz(path)).suffix.lower()
    return suffix if suffix in READERS and not (suffix == ".parquet" and is_gzipped(path)) else None


def _checked(where: str, column: str, values: Iterator[str | None], wish: ColumnWish) -> Iterator[Values]:
    """All values, some at a time, once the first of them look like captions."""
    head = list(islice(values, MOST_LOOKED_AT))
    require_captions(where, column, head, wish)
    rest = chain(head, values)
    while some := list(islice(rest, VALUES_AT_ONCE)):
        yield some


def _table(path: Path, rows: Iterator[Row], wish: ColumnWish) -> Iterator[Values]:
    rows = dropwhile(lambda row: not row[1], rows)  # blank lines above the header
    head = list(islice(rows, MOST_LOOKED_AT))
    if not head:
        return
    place = find_in_rows(str(path), [cells for _, cells in head if cells], wish)
    num_columns = len(head[0][1])
    rest = chain(head[1:] if place.has_header else head, rows)

    def values() -> Iterator[str | None]:
        for row in rest:
            require_columns(path, row, num_columns)
            cells = row[1]
            yield cells[place.column] if cells else None

    name = f"the values of column {shortened_name(head[0][1][place.column]) if place.has_header else place.column + 1}"
    yield from _checked(str(path), name, values(), wish)


def _delimiter(line: str, wish: ColumnWish) -> str:
    """The separator with which the first line names a caption column; else a comma."""
    wanted = {*CAPTION_NAMES, (wish.column or "").strip().lower()} - {""}
    for delimiter in _DELIMITERS:
        if wanted & {cell.strip(' \r\n"').lower() for cell in line.split(delimiter)}:
            return delimiter
    return ","


def _json_lines(path: Path, lines: Iterable[str]) -> Iterator[_Record]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield f"line {number}", json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number} is not JSON: {error}.") from error


def _records(path: Path, records: Iterator[_Record], wish: ColumnWish) -> Iterator[Values]:
    """The captions of objects under one key, which is chosen once; what lacks it has no caption."""
    head = list(islice(records, MOST_LOOKED_AT))
    names = list(dict.fromkeys(name for _, record in head if isinstance(record, dict) for name in record))
    key = named_column(str(path), names, wish) if any(isinstance(record, dict) for _, record in head) else None

    def values() -> Iterator[str | None]:
        for where, record in chain(head, records):
            if isinstance(record, dict) != (key is not None):
                found = "an object" if isinstance(record, dict) else type(record).__name__
                raise DataError(f"{path}, {where}: expected {'an object' if key is not None else 'a string'} like before, found {found}.")
            value = record.get(key) if isinstance(record, dict) else record
            for one in value if isinstance(value, list) else [value]:
                if one is not None and not isinstance(one, str):
                    raise DataError(f"{path}, {where}: expected text under {key or 'every entry'}, found {type(one).__name__}.")
                yield one

    yield from _checked(str(path), f"the values of {shortened_name(key)}" if key is not None else "", values(), wish)


def _require_text(path: Path, name: str, kind: pa.DataType) -> None:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    inner = kind.value_type if is_list else kind
    if not (_is_string(inner) or _is_bytes(inner) or pa.types.is_null(inner)):
        raise DataError(f"{path}: column {shortened_name(name)} holds {kind}; captions are strings, or lists of strings.")


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _parquet_values(file: pq.ParquetFile, name: str) -> Iterator[str | None]:
    for batch in file.iter_batches(batch_size=VALUES_AT_ONCE, columns=[name]):
        for value in batch.column(0).to_pylist():
            for one in value if isinstance(value, list) else [value]:
                yield one.decode() if isinstance(one, bytes) else one
