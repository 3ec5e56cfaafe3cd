"""Random access to the images of an output folder, by the byte ranges its index claims. Every read is checked."""

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from gift_shared.errors import ShardError
from gift_shared.schema import SHARD_FOLDER

IMAGE_SUFFIXES = (".jpg", ".png", ".webp")


def shard_tar(out: Path, shard: str) -> Path:
    """Path of a shard's tar."""
    return out / SHARD_FOLDER / f"{shard}.tar"


def shard_rows(out: Path, shard: str) -> Path:
    """Path of a shard's own Parquet rows; the shard counts once this file exists."""
    return out / SHARD_FOLDER / f"{shard}.parquet"


def require_images(out: Path, rows: pa.Table) -> None:
    """Whether the images of these rows (INDEX_SCHEMA, status ok) are all there and unchanged: told at the start of a long run.

    First every tar's presence and length, which takes no time, then every image's digest. Raises ShardError.
    """
    ends = pa.table({"shard": rows["shard"], "end": pc.add(rows["byte_offset"], rows["byte_size"])})
    for row in ends.group_by("shard").aggregate([("end", "max")]).to_pylist():
        path = shard_tar(out, row["shard"])
        if not path.is_file():
            raise _missing(path)
        if path.stat().st_size < row["end_max"]:
            raise _truncated(path, row["end_max"])
    for place in rows.select(["shard", "byte_offset", "byte_size", "sha256"]).to_pylist():
        read_image_bytes(out, **place)


def read_image_bytes(out: Path, shard: str, byte_offset: int, byte_size: int, sha256: str) -> bytes:
    """The encoded bytes of one image. Raises ShardError if the tar is missing, truncated or was edited after indexing."""
    path = shard_tar(out, shard)
    try:
        with path.open("rb") as tar:
            tar.seek(byte_offset)
            content = tar.read(byte_size)
    except FileNotFoundError as error:
        raise _missing(path) from error
    if len(content) != byte_size:
        raise _truncated(path, byte_offset + byte_size)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ShardError(f"{path} was changed after indexing: other sha256 at byte {byte_offset}. Run gift-generate verify.")
    return content


def _missing(path: Path) -> ShardError:
    return ShardError(f"{path} is missing though the index lists it. Copy it back or run gift-generate render again.")


def _truncated(path: Path, end: int) -> ShardError:
    return ShardError(f"{path} is truncated: byte {end} is not there. Run gift-generate render again.")
