"""Tables that other programs or people wrote, in whatever format, read column by column into the types that are needed."""

import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq

from gift_shared.delimited_rows import Row, csv_rows, open_text, require_columns, tsv_rows
from gift_shared.errors import PlanError, unknown_name

_ROWS_AT_ONCE = 65_536
KINDS = (".parquet", ".csv", ".tsv", ".jsonl")


def read_table(path: Path) -> pa.Table:
    """All columns of a .parquet, .csv, .tsv or .jsonl; an empty value is null. Raises PlanError, DataError."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    kind = suffixes[-1] if suffixes else ""
    if kind not in KINDS:
        raise PlanError(f"{path}: " + unknown_name("kind of table", kind, KINDS))
    if not path.is_file():
        raise PlanError(f"No table at {path}.")
    try:
        table = _read(path, kind)
        table.validate(full=True)  # text is UTF-8
        names = table.column_names
    except (pa.ArrowException, OSError, EOFError, zlib.error, UnicodeError) as error:
        if isinstance(error, OSError) and not isinstance(error, pa.ArrowException) and error.errno is not None:
            raise
        raise PlanError(f"{path} is not a readable {kind} table: {' '.join(str(error).split())[:300]}") from error
    if len(set(names)) != len(names):
        raise PlanError(f"{path} has two columns of one name.")
    return table


def typed_column(path: Path, table: pa.Table, name: str, kind: pa.DataType) -> pa.ChunkedArray:
    """A column as the type that is needed, where no value is lost by it. Raises PlanError."""
    column = table[name]
    try:
        if pa.types.is_integer(kind) and pa.types.is_string(column.type):
            try:
                return column.cast(kind)
            except pa.ArrowInvalid:
                column = column.cast(pa.float64())  # 512.0, as programs write a column in which values are missing
        if pa.types.is_string(kind) and not _is_text(column.type):
            raise pa.ArrowInvalid(f"found {column.type}")
        return column.cast(kind)
    except (pa.ArrowException, UnicodeError) as error:
        raise PlanError(f"{path}: column {name!r} should be {kind}: {str(error)[:200]}.") from error


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or pa.types.is_null(kind))


def _read(path: Path, kind: str) -> pa.Table:
    if kind == ".parquet":
        return pq.read_table(path, partitioning=None)
    if kind == ".jsonl":
        return pa.json.read_json(path)
    with open_text(path, newline="" if kind == ".csv" else None) as file:
        rows = csv_rows(path, file, ",") if kind == ".csv" else tsv_rows(file)
        return _table_of_text(path, rows)


def _table_of_text(path: Path, rows: Iterator[Row]) -> pa.Table:
    """Every column as strings; the first row names them."""
    header = next((cells for _, cells in rows if cells), [])
    names = [name.strip() for name in header]
    if not names:
        raise PlanError(f"{path} is empty; expected a first line with the names of the columns.")
    if len(set(names)) != len(names):
        raise PlanError(f"{path} has two columns of one name.")
    batches = []
    while some := list(islice(rows, _ROWS_AT_ONCE)):
        for row in some:
            require_columns(path, row, len(names))
        columns = list(zip(*(cells for _, cells in some if cells), strict=True)) or [()] * len(names)
        arrays = [pa.array([cell or None for cell in column], pa.string()) for column in columns]
        batches.append(pa.record_batch(arrays, names=names))
    return pa.Table.from_batches(batches, pa.schema([(name, pa.string()) for name in names]))
