"""Rows of finished shards that came out unusable, made again under other settings. Who made which rows is recorded with them."""

import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any, BinaryIO

from gift_generate.images.image_source import Picture, PlanRow
from gift_generate.output.folder import OutputFolder, Shard
from gift_generate.output.shard_writer import write_shard
from gift_generate.output.work import MadeShard, Work
from gift_shared.errors import ConfigError, ShardError, unknown_name
from gift_shared.parquet_files import open_index
from gift_shared.schema import SampleStatus
from gift_shared.shards import shard_rows, shard_tar

UNUSABLE = tuple(status for status in SampleStatus if status is not SampleStatus.OK)
MADE_AGAIN = "made by retry {}"  # the message of a row that is ok then
STILL_UNUSABLE = "retry {}: "  # what the message of any other begins with
BY_RETRY = re.compile(r"(?:made by retry (\d+)$|retry (\d+): )")


def parse_statuses(text: str) -> frozenset[SampleStatus]:
    """`failed,flagged` -> the statuses of rows that shall be made again. Raises ConfigError."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in UNUSABLE:
            raise ConfigError(f"--retry: {unknown_name('status', name, UNUSABLE)}")
    return frozenset(map(SampleStatus, names))


class RetriedRows(Work):
    """Rows of finished shards that have one of these statuses and that the retry of this number has not made yet.

    A row is tried with the same seeds as before, from the first on. What comes out is recorded, usable or not; other rows stay as they are.
    """

    def __init__(self, output: OutputFolder, settings: dict[str, Any], number: int, statuses: Collection[SampleStatus]) -> None:
        super().__init__(output, settings)
        self.number = number
        self.name = f"retry-{number}"
        self._statuses = statuses
        self._num_rows: dict[str, int] = {}  # as of the last look at each shard

    def remaining(self, among: Sequence[Shard] | None = None) -> list[Shard]:
        """Finished shards with such rows."""
        return [shard for shard in (self.output.shards if among is None else among) if not self.is_done(shard)]

    def look_again(self, left: Sequence[Shard]) -> list[Shard]:
        """All: to look is to read them, and whoever claims one does."""
        return list(left)

    def still_to_make(self, damaged: Sequence[Shard]) -> list[Shard]:
        """None: to make a shard that is not whole is for a render."""
        return []

    def is_done(self, shard: Shard) -> bool:
        """Whether it has no such row, or is not there: that is for a render."""
        return not self.output.is_complete(shard) or not self._positions(shard)

    def rows(self, shard: Shard) -> list[PlanRow]:
        """The plan rows that are made again."""
        rows = self.output.rows(shard)
        return [rows[position] for position in self._positions(shard)]

    def num_rows(self, shard: Shard) -> int:
        """How many these were when they were last looked for."""
        return self._num_rows.get(shard.name, 0)

    def num_images(self, left: Sequence[Shard]) -> int:
        """The rows of what remained."""
        return sum(map(self.num_rows, left))

    def write(self, made: MadeShard) -> None:
        """Put the pictures in the place of those that are not usable. Raises ShardError if the shard is damaged."""
        if self.is_done(made.shard):
            return
        again = {row["sample_key"]: self._recorded(picture) for row, picture in zip(made.rows, made.pictures, strict=True)}
        with shard_tar(self.output.path, made.shard.name).open("rb") as tar:
            pictures = [again.get(row["sample_key"]) or _as_it_is(tar, row) for row in self._index_rows(made.shard)]
        write_shard(self.output.path, made.shard.name, self.output.rows(made.shard), pictures, self.output.metadata)

    def _positions(self, shard: Shard) -> list[int]:
        try:
            rows = self._index_rows(shard, ["status", "message"])
        except ShardError:
            if shard_rows(self.output.path, shard.name).exists():
                raise
            rows = []  # whoever retries it replaces it at this moment
        positions = [
            position for position, row in enumerate(rows) if row["status"] in self._statuses and _retry_of(row["message"]) != self.number
        ]
        self._num_rows[shard.name] = len(positions)
        return positions

    def _index_rows(self, shard: Shard, columns: list[str] | None = None) -> list[dict[str, Any]]:
        with open_index(shard_rows(self.output.path, shard.name)) as file:
            rows: list[dict[str, Any]] = file.read(columns).to_pylist()
        return rows

    def _recorded(self, picture: Picture) -> Picture:
        if picture.status is SampleStatus.OK:
            return replace(picture, message=MADE_AGAIN.format(self.number))
        return replace(picture, message=STILL_UNUSABLE.format(self.number) + picture.message)


def _as_it_is(tar: BinaryIO, row: dict[str, Any]) -> Picture:
    """The picture of a row that is not made again, from its shard. Raises ShardError if it is not what its row claims."""
    names = ("message", "attempts", "used_seed", "width", "height")
    picture = Picture(status=SampleStatus(row["status"]), **{name: row[name] for name in names})
    if picture.status is not SampleStatus.OK:
        return picture
    tar.seek(row["byte_offset"])
    content = tar.read(row["byte_size"])
    if hashlib.sha256(content).hexdigest() != row["sha256"]:
        raise ShardError(f"{tar.name}: the image {row['image_name']!r} was changed after it was written. Run gift-generate verify.")
    return replace(picture, content=content, suffix=PurePath(row["image_name"]).suffix)


def _retry_of(message: str) -> int | None:
    match = BY_RETRY.match(message)
    return int(match[1] or match[2]) if match else None
