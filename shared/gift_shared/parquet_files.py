"""Read and write the Parquet files of the contract: schema-checked, versioned, whole or absent, byte-deterministic."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

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

MOST_ROWS = 100_000_000  # a few bytes of Parquet can claim more rows than any memory holds
MOST_BYTES = 2**48  # of a tar
IMAGE_COLUMNS = ("image_name", "byte_offset", "byte_size", "sha256", "width", "height")  # known of every image that is ok
IMAGE_NAME = rf"^{KEY_PATTERN.pattern}\.(jpg|png|webp)$"


def write_plan(path: Path, rows: pa.Table, metadata: dict[str, str]) -> None:
    """Write a plan; `metadata` records the arguments it was made from."""
    _write(path, rows, PLAN_SCHEMA, metadata)


def write_index(path: Path, rows: pa.Table, metadata: dict[str, str]) -> None:
    """Write the index of one shard or of a whole output folder."""
    _write(path, rows, INDEX_SCHEMA, metadata)


def read_plan(path: Path) -> tuple[pa.Table, dict[str, str]]:
    """Rows and metadata of a plan. Raises PlanError if it is not a plan of a schema version that is read here."""
    return _read(path, PLAN_SCHEMA, PlanError, "plan")


def read_index(path: Path) -> tuple[pa.Table, dict[str, str]]:
    """Rows and metadata of an index file. Raises ShardError if it is none of a schema version that is read, or claims what cannot be."""
    rows, metadata = _read(path, INDEX_SCHEMA, ShardError, "index")
    fault = _index_fault(rows)
    if fault is not None:
        raise ShardError(f"{path}: {fault}. Make the index again with gift-generate render.")
    return rows, metadata


def read_output_index(folder: Folder) -> tuple[pa.Table, dict[str, str]]:
    """The index of a finished output folder. Raises ShardError if the folder is not one, or is not finished."""
    path = index_file(folder)
    if not path.is_file():
        raise ShardError(f"{folder} has no {INDEX_FILE}: no output folder, or not finished. `gift-generate status --out {folder}` tells.")
    return read_index(path)


def key_fault(column: str, names: pa.Array | pa.ChunkedArray) -> str | None:
    """Which of these names is no key, as the end of a sentence; None if all are. Keys are names of files, here and in tars."""
    unsafe = names.filter(pc.invert(pc.match_substring_regex(names, f"^{KEY_PATTERN.pattern}$")))
    return f"{column} {unsafe[0].as_py()!r} must match {KEY_PATTERN.pattern}" if len(unsafe) else None


def _write(path: Path, rows: pa.Table, schema: pa.Schema, metadata: dict[str, str]) -> None:
    encoded = {key.encode(): value.encode() for key, value in metadata.items()}
    encoded[VERSION_KEY] = str(SCHEMA_VERSION).encode()
    table = rows.select(schema.names).cast(schema).replace_schema_metadata(encoded)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


def _read(path: Path, schema: pa.Schema, error_class: type[GiftError], noun: str) -> tuple[pa.Table, dict[str, str]]:
    if not path.is_file():
        raise error_class(f"No {noun} at {path}.")
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            metadata = _metadata(file.schema_arrow)
            version = metadata.pop(VERSION_KEY.decode(), None)
            written = [field for field in schema if version != "1" or field.name not in SINCE_VERSION_2]
            fault = _version_fault(version) or _columns_fault(file, written)
            if fault is not None:
                raise error_class(f"{path} {fault}. Make the {noun} again.")
            table = file.read(columns=[field.name for field in written])
        table.validate(full=True)  # text is UTF-8
    except NO_PARQUET as error:
        raise error_class(f"{path} is not a readable Parquet file, so it is no {noun}: {error}") from error
    for field in written:
        if not field.nullable and table[field.name].null_count:
            raise error_class(f"{path}: column {field.name!r} lacks values. Make the {noun} again.")
    for field in schema:
        if field not in written:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    return table.select(schema.names), metadata


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
    if file.metadata.num_rows > MOST_ROWS:
        return f"claims {file.metadata.num_rows} rows, at most {MOST_ROWS} are read"
    wrong = [field for field in fields if found.get(field.name) != field.type]
    return f"is wrong: column {wrong[0].name!r} should be {wrong[0].type}, found {found.get(wrong[0].name)}" if wrong else None


def _index_fault(rows: pa.Table) -> str | None:
    """What an index may not claim: names that lead out of the folder, an image without its place in the tar."""
    for column, names in (("shard", pc.unique(rows["shard"])), ("sample_key", rows["sample_key"])):
        if (fault := key_fault(column, names)) is not None:
            return fault
    unknown = pc.unique(rows["status"]).filter(pc.invert(pc.is_in(pc.unique(rows["status"]), pa.array(list(SampleStatus)))))
    if len(unknown):
        return f"there is no status {unknown[0].as_py()!r}"
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
