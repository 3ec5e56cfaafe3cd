"""Read and write the Parquet files of the contract: schema-checked, versioned, whole or absent, byte-deterministic."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from gift_shared.atomic import atomic_path
from gift_shared.errors import GiftError, PlanError, ShardError
from gift_shared.schema import INDEX_FILE, INDEX_SCHEMA, PLAN_SCHEMA, SCHEMA_VERSION, VERSION_KEY


def write_plan(path: Path, rows: pa.Table, metadata: dict[str, str]) -> None:
    """Write a plan; `metadata` records the arguments it was made from."""
    _write(path, rows, PLAN_SCHEMA, metadata)


def write_index(path: Path, rows: pa.Table, metadata: dict[str, str]) -> None:
    """Write the index of one shard or of a whole output folder."""
    _write(path, rows, INDEX_SCHEMA, metadata)


def read_plan(path: Path) -> tuple[pa.Table, dict[str, str]]:
    """Rows and metadata of a plan. Raises PlanError if it is not a plan of this schema version."""
    return _read(path, PLAN_SCHEMA, PlanError, "plan")


def read_index(path: Path) -> tuple[pa.Table, dict[str, str]]:
    """Rows and metadata of an index file. Raises ShardError if it is not an index of this schema version."""
    return _read(path, INDEX_SCHEMA, ShardError, "index")


def read_output_index(out: Path) -> tuple[pa.Table, dict[str, str]]:
    """The index of a finished output folder. Raises ShardError if the folder is not one, or is not finished."""
    path = out / INDEX_FILE
    if not path.is_file():
        raise ShardError(f"{out} has no {INDEX_FILE}: no output folder, or not finished. `gift-generate status --out {out}` tells.")
    return read_index(path)


def _write(path: Path, rows: pa.Table, schema: pa.Schema, metadata: dict[str, str]) -> None:
    encoded = {key.encode(): value.encode() for key, value in metadata.items()}
    encoded[VERSION_KEY] = str(SCHEMA_VERSION).encode()
    table = rows.select(schema.names).cast(schema).replace_schema_metadata(encoded)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def _read(path: Path, schema: pa.Schema, error_class: type[GiftError], noun: str) -> tuple[pa.Table, dict[str, str]]:
    if not path.is_file():
        raise error_class(f"No {noun} at {path}.")
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise error_class(f"{path} is not a readable Parquet file, so it is no {noun}: {error}") from error
    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items() if not key.startswith(b"ARROW")}
    version = metadata.pop(VERSION_KEY.decode(), None)
    if version != str(SCHEMA_VERSION):
        raise error_class(f"{path} has schema version {version}, this program reads version {SCHEMA_VERSION}. Make the {noun} again.")
    found = {field.name: field.type for field in table.schema}
    for field in schema:
        if found.get(field.name) != field.type:
            wrong = f"column {field.name!r} should be {field.type}, found {found.get(field.name)}"
            raise error_class(f"{path}: {wrong}. Make the {noun} again.")
    return table.select(schema.names), metadata
