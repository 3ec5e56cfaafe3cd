"""Random access to the images of an output folder, by the byte ranges its index claims. Every read is checked."""

import hashlib
from pathlib import Path

from gift_shared.errors import ShardError
from gift_shared.schema import SHARD_FOLDER

IMAGE_SUFFIXES = (".jpg", ".png", ".webp")


def shard_tar(out: Path, shard: str) -> Path:
    """Path of a shard's tar."""
    return out / SHARD_FOLDER / f"{shard}.tar"


def shard_rows(out: Path, shard: str) -> Path:
    """Path of a shard's own Parquet rows; the shard counts once this file exists."""
    return out / SHARD_FOLDER / f"{shard}.parquet"


def read_image_bytes(out: Path, shard: str, byte_offset: int, byte_size: int, sha256: str) -> bytes:
    """The encoded bytes of one image. Raises ShardError if the tar is missing, truncated or was edited after indexing."""
    path = shard_tar(out, shard)
    try:
        with path.open("rb") as tar:
            tar.seek(byte_offset)
            content = tar.read(byte_size)
    except FileNotFoundError as error:
        raise ShardError(f"{path} is missing though the index lists it. Copy it back or run gift-generate render again.") from error
    if len(content) != byte_size:
        raise ShardError(f"{path} is truncated: byte {byte_offset + byte_size} is not there. Run gift-generate render again.")
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ShardError(f"{path} was changed after indexing: other sha256 at byte {byte_offset}. Run gift-generate verify.")
    return content
