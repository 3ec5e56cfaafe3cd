"""Read and write the Parquet files of the contract: schema-checked, versioned, whole or absent, byte-deterministic.

What may hold millions of rows is read and written some at a time (`RowFile`, `write_index_parts`): docs/scale.md.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gift_shared.atomic import atomic_path
from gift_shared.errors import GiftError, PlanError, ShardError
from gift_shared.keys import KEY_PATTERN
from gift_shared.schema import (
    INDEX_FILE,
    INDEX_SCHEMA,
    PLAN_SCHEMA,
    READABLE_VERSIONS,
    SCHEMA_VERSION,
    SINCE_VERSION_2,
    VERSION_KEY,
    SampleStatus,
)
from gift_shared.storage import NO_PARQUET, Folder, index_file

MOST_ROWS = 1_000_000_000  # a few bytes of Parquet can claim any number
MOST_ROWS_OF_A_GROUP = 2**26  # what is read at once; Arrow itself writes no more
ROWS_AT_ONCE = 65_536  # of a row group, which is what is read at once for a single row: 20 MB of an index
MOST_BYTES = 2**48  # of a tar
IMAGE_COLUMNS = ("image_name", "byte_offset", "byte_size", "sha256", "width", "height")  # known of every image that is ok
IMAGE_NAME = rf"^{KEY_PATTERN.pattern}\.(jpg|png|webp)$"


class RowFile:
    """Rows of a plan, an index or scores in a file, read some at a time: the memory it takes does not grow with the file.

    Rows are checked as they are read. `columns`, wherever it may be given, are names of those that are wanted, all if None.
    The file stays open and so stays what it was, should another take its name. Threads may share it. Close it, or use it as a context.

    Raises the error class it was opened with for a file that is damaged, of another version, or claims what cannot be.
    """

    def __init__(
        self,
        path: Path,
        schema: pa.Schema,
        error_class: type[GiftError],
        noun: str,
        fault_of: Callable[[pa.Table], str | None],
        maker: str = "gift-generate render",
    ) -> None:
        self.path = path
        self.schema = schema
        self._error_class, self._noun, self._fault_of, self._maker = error_class, noun, fault_of, maker
        self._reading = threading.Lock()
        self._kept: tuple[int, pa.Table] | None = None  # the group read last: shards that follow each other lie in one
        if not path.is_file():
            raise error_class(f"No {noun} at {path}.")
        try:
            self._file = pq.ParquetFile(path, page_checksum_verification=True)
        except NO_PARQUET as error:
            raise self._unreadable(error) from error
        self.metadata = _metadata(self._file.schema_arrow)
        version = self.metadata.pop(VERSION_KEY.decode(), None)
        self._written = [field for field in schema if version != "1" or field.name not in SINCE_VERSION_2]
        fault = _version_fault(version) or _columns_fault(self._file, self._written)
        if fault is not None:
            self.close()
            raise error_class(f"{path} {fault}. Make the {noun} again.")
        groups = [self._file.metadata.row_group(number).num_rows for number in range(self._file.num_row_groups)]
        self._starts = np.cumsum([0, *groups])  # first row of each group, and the end

    def __enter__(self) -> "RowFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Nothing can be read any more."""
        self._file.close(force=True)

    @property
    def num_rows(self) -> int:
        """Of the whole file."""
        return int(self._starts[-1])

    def __len__(self) -> int:
        return self.num_rows

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """All rows in order, at most ROWS_AT_ONCE at a time."""
        for number in range(len(self._starts) - 1):
            group = self._group(number, columns)
            for start in range(0, len(group), ROWS_AT_ONCE):
                yield group.slice(start, ROWS_AT_ONCE)

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows at once."""
        return pa.concat_tables([self._empty(columns), *self.batches(columns)])

    def column(self, name: str) -> pa.ChunkedArray:
        """One column of all rows."""
        return self.read([name])[name]

    def slice(self, first_row: int, num_rows: int) -> pa.Table:
        """Rows that follow each other."""
        end = min(first_row + num_rows, self.num_rows)
        if end <= first_row:
            return self._empty(None)
        first, last = self._group_of(first_row), self._group_of(end - 1)
        parts = [self._empty(None)]
        for number in range(first, last + 1):
            start = int(self._starts[number])
            begin = max(first_row - start, 0)
            parts.append(self._kept_group(number).slice(begin, end - start - begin))
        return pa.concat_tables(parts).combine_chunks()

    def take(self, places: Sequence[int]) -> pa.Table:
        """Rows by their numbers, in the order given. Of the file only the groups are read in which there are any."""
        wanted = np.asarray(places, dtype=np.int64)
        distinct, ranks = np.unique(wanted, return_inverse=True)
        groups = np.searchsorted(self._starts, distinct, side="right") - 1
        parts = [self._empty(None)]
        for number in np.unique(groups).tolist():
            parts.append(self._group(number, None, distinct[groups == number] - self._starts[number]))
        return pa.concat_tables(parts).take(pa.array(ranks))

    def _group_of(self, row: int) -> int:
        return int(np.searchsorted(self._starts, row, side="right")) - 1

    def _kept_group(self, number: int) -> pa.Table:
        kept = self._kept
        if kept is None or kept[0] != number:
            self._kept = kept = (number, self._group(number, None))
        return kept[1]

    def _group(self, number: int, columns: Sequence[str] | None, within: NDArray[np.int64] | None = None) -> pa.Table:
        """A row group, or some rows of it, checked; columns that the file's version lacks are null."""
        fields = [self.schema.field(name) for name in (self.schema.names if columns is None else columns)]
        names = [field.name for field in fields if field in self._written]
        try:
            with self._reading:
                table = self._file.read_row_group(number, columns=names)
            if len(table) != self._starts[number + 1] - self._starts[number]:
                raise self._unreadable(f"row group {number} has other than the rows that it claims")
            if within is not None:
                table = table.take(pa.array(within))
            table.validate(full=True)  # text is UTF-8
        except NO_PARQUET as error:
            raise self._unreadable(error) from error
        for field in fields:
            if field not in self._written:
                table = table.append_column(field, pa.nulls(len(table), field.type))
            elif not field.nullable and table[field.name].null_count:
                raise self._error_class(f"{self.path}: column {field.name!r} lacks values. Make the {self._noun} again.")
        fault = self._fault_of(table)
        if fault is not None:
            raise self._error_class(f"{self.path}: {fault}. Make the {self._noun} again with {self._maker}.")
        return table.select([field.name for field in fields]).cast(pa.schema(fields))

    def _empty(self, columns: Sequence[str] | None) -> pa.Table:
        return pa.schema([self.schema.field(name) for name in (self.schema.names if columns is None else columns)]).empty_table()

    def _unreadable(self, error: BaseException | str) -> GiftError:
        return self._error_class(f"{self.path} is not a readable Parquet file, so it is no {self._noun}: {error}")


def write_plan(path: Path, rows: pa.Table, metadata: dict[str, str]) -> None:
    """Write a plan; `metadata` records the arguments it was made from."""
    write_rows(path, [rows], PLAN_SCHEMA, metadata)


def write_index(path: Path, rows: pa.Table, metadata: dict[str, str]) -> None:
    """Write the index of one shard or of a whole output folder."""
    write_rows(path, [rows], INDEX_SCHEMA, metadata)


def write_index_parts(path: Path, parts: Iterable[pa.Table], metadata: dict[str, str]) -> None:
    """`write_index` of rows that come some at a time, and never are in memory together; the file is the same."""
    write_rows(path, parts, INDEX_SCHEMA, metadata)


def open_plan(path: Path) -> RowFile:
    """The rows of a plan. Raises PlanError if it is not a plan of a schema version that is read here."""
    return RowFile(path, PLAN_SCHEMA, PlanError, "plan", lambda _: None)


def open_index(path: Path) -> RowFile:
    """The rows of an index file. Raises ShardError if it is none of a schema version that is read, or claims what cannot be."""
    return RowFile(path, INDEX_SCHEMA, ShardError, "index", _index_fault)


def open_output_index(folder: Folder) -> RowFile:
    """The index of a finished output folder. Raises ShardError if the folder is not one, or is not finished."""
    path = index_file(folder)
    if not path.is_file():
        raise ShardError(f"{folder} has no {INDEX_FILE}: no output folder, or not finished. `gift-generate status --out {folder}` tells.")
    return open_index(path)


def read_plan(path: Path) -> tuple[pa.Table, dict[str, str]]:
    """Rows and metadata of a plan, in memory. Raises as `open_plan` does."""
    with open_plan(path) as file:
        return file.read(), file.metadata


def read_index(path: Path) -> tuple[pa.Table, dict[str, str]]:
    """Rows and metadata of an index file, in memory. Raises as `open_index` does."""
    with open_index(path) as file:
        return file.read(), file.metadata


def read_output_index(folder: Folder) -> tuple[pa.Table, dict[str, str]]:
    """The index of a finished output folder, in memory. Raises as `open_output_index` does."""
    with open_output_index(folder) as file:
        return file.read(), file.metadata


def key_fault(column: str, names: pa.Array | pa.ChunkedArray) -> str | None:
    """Which of these names is no key, as the end of a sentence; None if all are. Keys are names of files, here and in tars."""
    unsafe = names.filter(pc.invert(pc.match_substring_regex(names, f"^{KEY_PATTERN.pattern}$")))
    return f"{column} {unsafe[0].as_py()!r} must match {KEY_PATTERN.pattern}" if len(unsafe) else None


def write_rows(path: Path, parts: Iterable[pa.Table], schema: pa.Schema, metadata: dict[str, str]) -> None:
    """Write a file of any of our schemas, its rows some at a time; whole or not at all."""
    encoded = {key.encode(): value.encode() for key, value in metadata.items()}
    encoded[VERSION_KEY] = str(SCHEMA_VERSION).encode()
    versioned = schema.with_metadata(encoded)
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, versioned, compression="zstd", write_page_checksum=True) as writer:
        for group in _groups(part.select(schema.names).cast(schema) for part in parts):
            writer.write_table(group.cast(versioned), row_group_size=ROWS_AT_ONCE)


def _groups(parts: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The rows of all parts, ROWS_AT_ONCE at a time; where rows were put into parts does not matter."""
    waiting: list[pa.Table] = []
    for part in parts:
        waiting.append(part)
        while sum(map(len, waiting)) >= ROWS_AT_ONCE:
            joined = pa.concat_tables(waiting)
            yield joined.slice(0, ROWS_AT_ONCE)
            waiting = [joined.slice(ROWS_AT_ONCE)]
    if waiting:
        yield pa.concat_tables(waiting)


def _metadata(schema: pa.Schema) -> dict[str, str]:
    decoded = {key.decode(errors="replace"): value.decode(errors="replace") for key, value in (schema.metadata or {}).items()}
    return {key: value for key, value in decoded.items() if not key.startswith("ARROW")}


def _version_fault(version: str | None) -> str | None:
    readable = [str(one) for one in READABLE_VERSIONS]
    return None if version in readable else f"has schema version {version}, this program reads versions {' and '.join(readable)}"


def _columns_fault(file: pq.ParquetFile, fields: Sequence[pa.Field]) -> str | None:
    found = {field.name: field.type for field in file.schema_arrow}
    if len(found) != len(file.schema_arrow):
        return "has two columns of one name"
    groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    num_rows = max(file.metadata.num_rows, sum(groups))
    if num_rows > MOST_ROWS:
        return f"claims {num_rows} rows, at most {MOST_ROWS} are read"
    if groups and not 0 <= min(groups) <= max(groups) <= MOST_ROWS_OF_A_GROUP:
        return f"has a row group of {max(groups)} rows, at most {MOST_ROWS_OF_A_GROUP} are read at once"
    wrong = [field for field in fields if found.get(field.name) != field.type]
    return f"is wrong: column {wrong[0].name!r} should be {wrong[0].type}, found {found.get(wrong[0].name)}" if wrong else None


def _index_fault(rows: pa.Table) -> str | None:
    """What an index may not claim, as far as these columns tell: names that lead out of the folder, an image without its place."""
    there = set(rows.column_names)
    for column in [name for name in ("shard", "sample_key") if name in there]:
        if (fault := key_fault(column, rows[column])) is not None:
            return fault
    if "status" not in there:
        return None
    statuses = pc.unique(rows["status"])
    unknown = statuses.filter(pc.invert(pc.is_in(statuses, pa.array(list(SampleStatus)))))
    if len(unknown):
        return f"there is no status {unknown[0].as_py()!r}"
    return _image_fault(rows) if set(IMAGE_COLUMNS) <= there else None


def _image_fault(rows: pa.Table) -> str | None:
    usable = rows.select(IMAGE_COLUMNS).filter(pc.equal(rows["status"], SampleStatus.OK))
    for column in IMAGE_COLUMNS:
        if usable[column].null_count:
            return f"an image that is ok has no {column}"
    sizes = [usable[column] for column in ("width", "height", "byte_size", "byte_offset")]
    if any(pc.any(pc.less(column, least)).as_py() for column, least in zip(sizes, (1, 1, 1, 0), strict=True)):
        return "an image that is ok has a size or an offset below what is possible"
    if any(pc.any(pc.greater_equal(column, MOST_BYTES)).as_py() for column in sizes):
        return f"an image reaches beyond {MOST_BYTES} bytes"
    strange = usable["image_name"].filter(pc.invert(pc.match_substring_regex(usable["image_name"], IMAGE_NAME)))
    return f"image_name {strange[0].as_py()!r} must match {IMAGE_NAME}" if len(strange) else None
