"""Finished batches of shards that are not finished: what a killed or preempted worker made, for whoever goes on with the shard.

A worker appends to a file of its own for each shard and reads everyone's, so that two who both take a shard for theirs do no harm. No
reader of the folder looks here, and a batch that was torn, or made for another plan, other settings or other rows, counts as not made.
"""

import hashlib
import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gift_generate.images.image_source import BatchStore, Picture
from gift_generate.rendering.reproducible import settings_digest
from gift_shared.documents import Maybe, shape_fault
from gift_shared.schema import SPOOL_FOLDER, SampleStatus

SUFFIX = ".batches"
MARK = b"GIFT-B1\n"  # where a record begins; another format has another mark, and is passed over
HEAD = struct.Struct(">8sIQ32s")  # mark, bytes of JSON, bytes of images, sha256 of both
DESCRIPTION = {
    "made_for": str,
    "attempt": int,
    "positions": [int],
    "pictures": [
        {
            "status": str, "message": str, "attempts": int, "used_seed": int,
            "suffix": Maybe(str), "width": Maybe(int), "height": Maybe(int), "byte_size": Maybe(int),
        }
    ],
}  # fmt: skip


class Spool:
    """The finished batches of the shards of one work: a render, or a retry. `worker` is whose files are written."""

    def __init__(self, out: Path, work: str, worker: str) -> None:
        self._folder = out / SPOOL_FOLDER / work
        self._worker = worker

    def of_shard(self, shard: str, made_for: str, on_reused: Callable[[int], None]) -> "ShardSpool":
        """What is known of a shard. `made_for` names all that its batches follow from, see `purpose`."""
        known: dict[tuple[int, tuple[int, ...]], list[Picture]] = {}
        for path in self._files(shard):
            known |= _read_batches(path, made_for)
        return ShardSpool(self._folder / f"{shard}.{self._worker}{SUFFIX}", made_for, known, on_reused)

    def forget(self, shard: str) -> None:
        """Remove all that is kept of a shard, whoever made it: it is finished, or was not worth keeping."""
        for path in self._files(shard):
            path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove what is kept of any shard, and the folder."""
        self.forget("*")
        for folder in (self._folder, self._folder.parent):
            with suppress(OSError):  # not there, or not empty: of another work, or of a worker that wakes up late
                folder.rmdir()

    def _files(self, shard: str) -> list[Path]:
        return sorted(self._folder.glob(f"{shard}.*{SUFFIX}"))


class ShardSpool(BatchStore):
    """The finished batches of one shard."""

    def __init__(
        self, path: Path, made_for: str, known: dict[tuple[int, tuple[int, ...]], list[Picture]], on_reused: Callable[[int], None]
    ) -> None:
        self._path = path
        self._made_for = made_for
        self._known = known
        self._on_reused = on_reused
        self.num_reused = 0  # rows settled by what was found

    def find(self, attempt: int, positions: Sequence[int]) -> list[Picture] | None:
        """What became of the rows of a batch that somebody finished."""
        return self._known.get((attempt, tuple(positions)))

    def add(self, attempt: int, positions: Sequence[int], pictures: Sequence[Picture]) -> None:
        """Append a batch: one write, without waiting for the disk. A file system that loses it in a crash costs that batch."""
        record = _record(self._made_for, attempt, positions, pictures)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab", buffering=0) as file:
            written = file.write(record)
            while written < len(record):
                written += file.write(memoryview(record)[written:])

    def on_reused(self, count: int) -> None:
        """Count them."""
        self.num_reused += count
        self._on_reused(count)


def purpose(plan_sha256: str, settings: Mapping[str, Any], sample_keys: Sequence[str]) -> str:
    """A name for all that a shard's batches follow from: the plan, the settings, and the rows they are cut from."""
    content = json.dumps([plan_sha256, settings_digest(settings), list(sample_keys)])
    return hashlib.sha256(content.encode()).hexdigest()


def _record(made_for: str, attempt: int, positions: Sequence[int], pictures: Sequence[Picture]) -> bytes:
    described = [
        {
            "status": picture.status, "message": picture.message, "attempts": picture.attempts, "used_seed": picture.used_seed,
            "suffix": picture.suffix, "width": picture.width, "height": picture.height,
            "byte_size": None if picture.content is None else len(picture.content),
        }
        for picture in pictures
    ]  # fmt: skip
    description = json.dumps({"made_for": made_for, "attempt": attempt, "positions": list(positions), "pictures": described}).encode()
    content = b"".join(picture.content or b"" for picture in pictures)
    digest = hashlib.sha256(description + content).digest()
    return HEAD.pack(MARK, len(description), len(content), digest) + description + content


def _read_batches(path: Path, made_for: str) -> dict[tuple[int, tuple[int, ...]], list[Picture]]:
    """The whole batches of a file that were made for this. One that is torn takes none of those before or after it along."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:  # finished meanwhile
        return {}
    batches = {}
    for description, images in _whole_records(content):
        if description["made_for"] == made_for:
            batches[description["attempt"], tuple(description["positions"])] = _pictures(description["pictures"], images)
    return batches


def _whole_records(content: bytes) -> Iterator[tuple[dict[str, Any], bytes]]:
    at = content.find(MARK)
    while at >= 0:
        record = _record_at(content, at)
        if record is None:
            at = content.find(MARK, at + 1)
            continue
        description, images, end = record
        yield description, images
        at = content.find(MARK, end)


def _record_at(content: bytes, at: int) -> tuple[dict[str, Any], bytes, int] | None:
    if at + HEAD.size > len(content):
        return None
    _, json_bytes, image_bytes, digest = HEAD.unpack_from(content, at)
    begin, end = at + HEAD.size, at + HEAD.size + json_bytes + image_bytes
    if end > len(content) or hashlib.sha256(memoryview(content)[begin:end]).digest() != digest:
        return None
    try:
        description = json.loads(content[begin : begin + json_bytes])
    except (ValueError, RecursionError):
        return None
    images = content[begin + json_bytes : end]
    return (description, images, end) if _is_sound(description, images) else None


def _is_sound(description: Any, images: bytes) -> bool:
    if shape_fault(description, DESCRIPTION) is not None or len(description["positions"]) != len(description["pictures"]):
        return False
    pictures = description["pictures"]
    if any(picture["status"] not in set(SampleStatus) for picture in pictures):
        return False
    if any((picture["status"] == SampleStatus.OK) != (picture["byte_size"] is not None) for picture in pictures):
        return False
    sizes = [picture["byte_size"] or 0 for picture in pictures]
    return min(sizes, default=0) >= 0 and sum(sizes) == len(images)


def _pictures(described: Sequence[dict[str, Any]], images: bytes) -> list[Picture]:
    pictures, at = [], 0
    for fields in described:
        size = fields["byte_size"]
        pictures.append(
            Picture(
                status=SampleStatus(fields["status"]),
                message=fields["message"],
                attempts=fields["attempts"],
                used_seed=fields["used_seed"],
                content=None if size is None else images[at : at + size],
                suffix=fields["suffix"],
                width=fields["width"],
                height=fields["height"],
            )
        )
        at += size or 0
    return pictures
