"""Tables that other programs or people wrote, in whatever format, read column by column into the types that are needed."""

from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from gift_shared.errors import PlanError, unknown_name

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
KINDS = (".parquet", ".csv", ".tsv", ".jsonl")


def read_table(path: Path) -> pa.Table:
    """All columns of a .parquet, .csv, .tsv or .jsonl; an empty value is null. Raises PlanError."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    kind = suffixes[-1] if suffixes else ""
    if kind not in KINDS:
        raise PlanError(f"{path}: " + unknown_name("kind of table", kind, KINDS))
    if not path.is_file():
        raise PlanError(f"No table at {path}.")
    try:
        table = _read(path, kind)
    except (pa.ArrowException, OSError, UnicodeError) as error:
        if isinstance(error, OSError) and not isinstance(error, pa.ArrowException) and error.errno is not None:
            raise
        raise PlanError(f"{path} is not a readable {kind} table: {' '.join(str(error).split())[:300]}") from error
    if len(set(table.column_names)) != len(table.column_names):
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
    parsing = pa.csv.ParseOptions(delimiter=_DELIMITERS[kind], newlines_in_values=True)
    with pa.csv.open_csv(path, parse_options=parsing) as file:
        names = file.schema.names
    types = dict.fromkeys(names, pa.string())
    conversion = pa.csv.ConvertOptions(column_types=types, null_values=[""], strings_can_be_null=True)
    return pa.csv.read_csv(path, parse_options=parsing, convert_options=conversion)
