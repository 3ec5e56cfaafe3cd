"""Every read by byte range is checked against the index."""

import hashlib
from pathlib import Path

import pyarrow as pa
import pytest

from gift_shared.errors import ShardError
from gift_shared.shards import read_image_bytes, require_images, shard_rows, shard_tar

CONTENT = b"0123456789" * 50
CLAIM = {"byte_offset": 100, "byte_size": 200, "sha256": hashlib.sha256(CONTENT[100:300]).hexdigest()}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    shard_tar(tmp_path, "cats-00000").parent.mkdir()
    shard_tar(tmp_path, "cats-00000").write_bytes(CONTENT)
    return tmp_path


def test_the_claimed_bytes_are_read(out: Path) -> None:
    assert read_image_bytes(out, "cats-00000", **CLAIM) == CONTENT[100:300]


def test_tar_and_rows_lie_beside_each_other(out: Path) -> None:
    assert shard_tar(out, "cats-00000").with_suffix(".parquet") == shard_rows(out, "cats-00000") == out / "shards" / "cats-00000.parquet"


def test_a_missing_shard_is_told(out: Path) -> None:
    with pytest.raises(ShardError, match=r"cats-00001.tar is missing though the index lists it"):
        read_image_bytes(out, "cats-00001", **CLAIM)


def test_a_shard_cut_short_is_told(out: Path) -> None:
    shard_tar(out, "cats-00000").write_bytes(CONTENT[:250])
    with pytest.raises(ShardError, match=r"cats-00000.tar is truncated: byte 300 is not there"):
        read_image_bytes(out, "cats-00000", **CLAIM)


def test_an_edited_shard_is_told(out: Path) -> None:
    shard_tar(out, "cats-00000").write_bytes(CONTENT.replace(b"5", b"6"))
    with pytest.raises(ShardError, match=r"cats-00000.tar was changed after indexing: other sha256 at byte 100"):
        read_image_bytes(out, "cats-00000", **CLAIM)


def test_images_that_are_all_there_pass(out: Path) -> None:
    require_images(out, [pa.Table.from_pylist([CLAIM | {"shard": "cats-00000"}])])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cats-00000.tar is missing though the index lists it"),
        (CONTENT[:299], "cats-00000.tar is truncated: byte 300 is not there"),
        (CONTENT.replace(b"5", b"6"), "cats-00000.tar was changed after indexing"),
    ],
)
def test_a_damaged_shard_is_told_before_its_images_are_needed(out: Path, content: bytes | None, message: str) -> None:
    shard_tar(out, "cats-00000").unlink()
    if content is not None:
        shard_tar(out, "cats-00000").write_bytes(content)
    with pytest.raises(ShardError, match=message):
        require_images(out, [pa.Table.from_pylist([CLAIM | {"shard": "cats-00000"}])])
