"""Random access to the images of an output folder, here or behind a URL, by the byte ranges its index claims. Every read is checked."""

import hashlib
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Collection
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from gift_shared.errors import ShardError
from gift_shared.schema import SHARD_FOLDER
from gift_shared.storage import Folder, MayLeave, RemoteFolder, hold_shards

IMAGE_SUFFIXES = (".jpg", ".png", ".webp")
MOST_OPEN_TARS = 64

_log = logging.getLogger(__name__)


def shard_tar(out: Path, shard: str) -> Path:
    """Path of a shard's tar."""
    return out / SHARD_FOLDER / f"{shard}.tar"


def shard_rows(out: Path, shard: str) -> Path:
    """Path of a shard's own Parquet rows; the shard counts once this file exists."""
    return out / SHARD_FOLDER / f"{shard}.parquet"


def tar_name(folder: Folder, shard: str) -> str:
    """A shard's tar for messages: its path, or its URL."""
    return f"{folder}/{SHARD_FOLDER}/{shard}.tar"


def require_images(folder: Folder, selections: Collection[pa.Table], may_leave: MayLeave = lambda: None) -> None:
    """Whether the images of these rows (INDEX_SCHEMA, status ok) are all there and unchanged: told at the start of a long run.

    First every tar's presence and length, which takes no time, then every image's digest. What is behind a URL is fetched for that;
    if the cache cannot hold all selections at once, only presence and length are seen to, and that it can hold each. All of it may take
    long: `may_leave` is asked all the while and may raise. Raises ShardError.
    """
    needed = [_ends(rows) for rows in selections]
    everything = {shard: max(ends.get(shard, 0) for ends in needed) for shard in sorted(frozenset().union(*needed))}
    sizes = (
        folder.sizes(everything, may_leave) if isinstance(folder, RemoteFolder) else {shard: _size(folder, shard) for shard in everything}
    )
    for shard, end in everything.items():
        if sizes[shard] < end:
            raise _truncated(tar_name(folder, shard), end)
    if isinstance(folder, RemoteFolder) and not _all_fit(folder, sizes, needed):
        return
    hold_shards(folder, "run", everything, may_leave)
    for rows in selections:
        for place in rows.select(["shard", "byte_offset", "byte_size", "sha256"]).to_pylist():
            may_leave()
            read_image_bytes(folder, **place)


def read_image_bytes(folder: Folder, shard: str, byte_offset: int, byte_size: int, sha256: str) -> bytes:
    """The encoded bytes of one image.

    A tar stays open between reads; what does not fit the index is opened again once, and fetched again if it is a copy.
    Raises ShardError if the tar is missing, truncated or was edited after indexing.
    """
    path = folder.tar(shard) if isinstance(folder, RemoteFolder) else shard_tar(folder, shard)
    inode: int | None = None
    for is_last in (False, True):
        try:
            if isinstance(folder, RemoteFolder) and not _open_tars.has(path):
                folder.fetch(shard, other_than=inode)
            content, inode = _open_tars.read(path, byte_offset, byte_size)
        except FileNotFoundError:
            fault = _missing(tar_name(folder, shard))
        else:
            if len(content) != byte_size:
                fault = _truncated(tar_name(folder, shard), byte_offset + byte_size)
            elif hashlib.sha256(content).hexdigest() == sha256:
                return content
            else:
                fault = _changed(tar_name(folder, shard), byte_offset)
        if not is_last:
            _open_tars.close(path)
    raise fault


class _OpenTars(threading.local):
    """The tars read last, each opened once per thread. Reads name their position, so processes may share a handle after a fork."""

    def __init__(self) -> None:
        self._handles: OrderedDict[Path, int] = OrderedDict()

    def has(self, path: Path) -> bool:
        """Whether a tar is open."""
        return path in self._handles

    def read(self, path: Path, offset: int, size: int) -> tuple[bytes, int]:
        """As many of the bytes as there are, which may be none, and the inode of the file they are from."""
        if path in self._handles:
            self._handles.move_to_end(path)
        else:
            self._handles[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if len(self._handles) > MOST_OPEN_TARS:
                os.close(self._handles.popitem(last=False)[1])
        handle = self._handles[path]
        file = os.fstat(handle)
        size = min(size, file.st_size - offset)  # a size that is none would be allocated
        return (os.pread(handle, size, offset) if offset >= 0 and size > 0 else b""), file.st_ino

    def close(self, path: Path) -> None:
        """Forget a tar, so that the next read opens what is there by then."""
        if path in self._handles:
            os.close(self._handles.pop(path))


_open_tars = _OpenTars()


def _ends(rows: pa.Table) -> dict[str, int]:
    """Where in each shard the last of its images ends."""
    table = pa.table({"shard": rows["shard"], "end": pc.add(rows["byte_offset"], rows["byte_size"])})
    ends = table.group_by("shard").aggregate([("end", "max")])
    return dict(zip(ends["shard"].to_pylist(), ends["end_max"].to_pylist(), strict=True))


def _size(folder: Path, shard: str) -> int:
    path = shard_tar(folder, shard)
    if not path.is_file():
        raise _missing(str(path))
    return path.stat().st_size


def _all_fit(folder: RemoteFolder, sizes: dict[str, int], needed: list[dict[str, int]]) -> bool:
    """Whether the cache holds all selections at once. Raises ShardError if it cannot even hold one of them."""
    most = max(sum(sizes[shard] for shard in ends) for ends in needed)
    folder.require_room(most)
    if folder.has_room(sum(sizes.values())):
        return True
    _log.warning("%s: not all shards of this run fit into the shard cache; those of a task are fetched when it begins.", folder)
    return False


def _missing(where: str) -> ShardError:
    return ShardError(f"{where} is missing though the index lists it. Copy it back or run gift-generate render again.")


def _truncated(where: str, end: int) -> ShardError:
    return ShardError(f"{where} is truncated: byte {end} is not there. Run gift-generate render again.")


def _changed(where: str, offset: int) -> ShardError:
    return ShardError(f"{where} was changed after indexing: other sha256 at byte {offset}. Run gift-generate verify.")
