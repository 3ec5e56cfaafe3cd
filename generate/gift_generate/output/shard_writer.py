"""One shard: a WebDataset tar and its Parquet rows, byte for byte decided by its content. The Parquet is renamed last."""

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from gift_generate.images.image_source import Picture, PlanRow
from gift_shared.atomic import atomic_path
from gift_shared.parquet_files import write_index
from gift_shared.schema import INDEX_SCHEMA, TAR_BYTES, TAR_SHA256, SampleStatus
from gift_shared.shards import shard_rows, shard_tar

_PLACE = ("image_name", "byte_offset", "byte_size")  # where the image lies is the index's matter, not the sample's
IN_JSON = tuple(name for name in INDEX_SCHEMA.names if name not in _PLACE)


def write_shard(out: Path, shard: str, rows: Sequence[PlanRow], pictures: Sequence[Picture], metadata: dict[str, str]) -> None:
    """Write the tar, then the rows. Killed at any point, it leaves either a whole shard or one that does not count.

    Rows that are there go first: they never stand beside another tar than theirs, which may have the very size they claim.
    """
    with atomic_path(shard_tar(out, shard)) as temporary:
        with temporary.open("wb") as file:
            index_rows = _write_tar(file, rows, pictures)
        with temporary.open("rb") as file:
            tar_sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        tar_bytes = temporary.stat().st_size
        shard_rows(out, shard).unlink(missing_ok=True)
    table = pa.Table.from_pylist(index_rows, schema=INDEX_SCHEMA)
    write_index(shard_rows(out, shard), table, metadata | {TAR_BYTES: str(tar_bytes), TAR_SHA256: tar_sha256})


def _write_tar(file: BinaryIO, rows: Sequence[PlanRow], pictures: Sequence[Picture]) -> list[dict[str, Any]]:
    index_rows = []
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for row, picture in zip(rows, pictures, strict=True):
            index_row = _index_row(row, picture)
            if picture.status is SampleStatus.OK:
                assert picture.content is not None
                index_row["image_name"] = f"{row['sample_key']}{picture.suffix}"
                index_row["byte_offset"] = _add(tar, index_row["image_name"], picture.content)
                _add(tar, f"{row['sample_key']}.txt", row["caption"].encode())
                _add(tar, f"{row['sample_key']}.json", sample_json(index_row))
            index_rows.append(index_row)
    return index_rows


def _index_row(row: PlanRow, picture: Picture) -> dict[str, Any]:
    content = picture.content
    return {
        **row,
        "status": str(picture.status),
        "message": picture.message,
        "attempts": picture.attempts,
        "used_seed": picture.used_seed,
        "width": picture.width,
        "height": picture.height,
        "image_name": None,
        "byte_offset": None,
        "byte_size": None if content is None else len(content),
        "sha256": None if content is None else hashlib.sha256(content).hexdigest(),
    }


def sample_json(index_row: dict[str, Any]) -> bytes:
    """The .json member of a sample: its index row, without where in the tar the image lies.

    What is null is left out: readers that infer types from the first samples take a null for a type of its own and fail on the first value.
    """
    row = {name: index_row[name] for name in IN_JSON if index_row[name] is not None}
    return json.dumps(row, ensure_ascii=False).encode()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Add a member whose header says nothing of when, where or by whom; returns the offset of its content."""
    member = tarfile.TarInfo(name)  # time 0, mode 0644, owner 0 without a name: tarfile's defaults, pinned by a test
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
    return tar.offset - _padded(len(content))


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
