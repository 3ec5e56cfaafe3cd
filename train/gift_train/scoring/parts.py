"""What is scored already: a file for each shard until all are there, then one in the order of the index.

OUT/spool/score-<name>/<shard>.parquet   scores of one shard; gone once all are joined
OUT/scores/<name>.parquet                scores of the folder

Workers need no claims: each goes through its own shards and then through the others' that nobody has scored. Two who meet at one write the
same, and whoever finds all parts there joins them.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gift_shared.atomic import TEMPORARY_SUFFIX, writer_of
from gift_shared.errors import ConfigError, ShardError
from gift_shared.parquet_files import RowFile, write_rows
from gift_shared.schema import SCORES_SCHEMA, SPOOL_FOLDER, SampleStatus
from gift_shared.scores import INDEX_SHA256, SCORER, score_file
from gift_shared.storage import NO_PARQUET

MADE_FOR = "made_for"  # a digest of all that scores follow from


@dataclass(frozen=True)
class ShardPlace:
    """Rows of the index that are a shard's, and how many of them have an image."""

    name: str
    first_row: int
    num_rows: int
    num_images: int


def shard_places(index: RowFile) -> list[ShardPlace]:
    """All shards of an index, in its order. Raises ShardError if the rows of one do not follow each other."""
    places: list[ShardPlace] = []
    row = 0
    for rows in index.batches(["shard", "status"]):
        names, usable = rows["shard"].combine_chunks(), pc.equal(rows["status"], SampleStatus.OK).to_numpy()
        for name, start, end in _runs(names):
            num_images = int(np.count_nonzero(usable[start:end]))
            if places and places[-1].name == name:  # goes on from the batch before
                last = places.pop()
                places.append(ShardPlace(name, last.first_row, last.num_rows + end - start, last.num_images + num_images))
            else:
                places.append(ShardPlace(name, row + start, end - start, num_images))
        row += len(rows)
    if len({place.name for place in places}) < len(places):
        raise ShardError(f"{index.path} lists rows of one shard apart from each other. Make the index again with gift-generate render.")
    return places


def _runs(names: pa.Array) -> Iterator[tuple[str, int, int]]:
    """Equal names that follow each other: name, first place, end."""
    encoded = names.dictionary_encode()
    codes = encoded.indices.to_numpy()
    starts = np.concatenate([[0], 1 + np.flatnonzero(codes[1:] != codes[:-1])]) if len(codes) else np.empty(0, dtype=np.int64)
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(codes)], strict=False):
        yield encoded.dictionary[int(codes[start])].as_py(), start, end


@dataclass(frozen=True)
class ScoreParts:
    """The files of one scorer at one folder. `record`: the scorer's, see `Scorer`."""

    out: Path
    name: str
    record: Mapping[str, Any]
    index_sha256: str

    @property
    def whole(self) -> Path:
        """The scores of the folder."""
        return self.out / score_file(self.name)

    def _part(self, shard: str) -> Path:
        return self.out / SPOOL_FOLDER / f"score-{self.name}" / f"{shard}.parquet"

    @property
    def _made_for(self) -> str:
        return hashlib.sha256(json.dumps([dict(self.record), self.index_sha256], sort_keys=True).encode()).hexdigest()

    def is_whole(self) -> bool:
        """Whether the folder's scores are there, by this scorer and of this index. Raises ConfigError for another scorer's."""
        return self._is_ours(self.whole)

    def has(self, shard: str) -> bool:
        """Whether a shard's scores are there. Raises as `is_whole`."""
        return self._is_ours(self._part(shard))

    def write(self, shard: str, rows: pa.Table) -> None:
        """Keep a shard's scores (SCORES_SCHEMA)."""
        try:
            write_rows(self._part(shard), [rows], SCORES_SCHEMA, {MADE_FOR: self._made_for, SCORER: json.dumps(dict(self.record))})
        except FileNotFoundError:  # the folder of parts went away just now: another worker is through
            if not self.is_whole():
                raise

    def join(self, shards: Sequence[ShardPlace], num_captions: int) -> None:
        """Put the parts of all shards together; nothing to do if another worker just did. Raises FileNotFoundError if a part is missing."""
        told = dict(self.record) | {"num_captions": num_captions}
        metadata = {MADE_FOR: self._made_for, SCORER: json.dumps(told), INDEX_SHA256: self.index_sha256}
        try:
            write_rows(self.whole, (pq.read_table(self._part(shard.name)) for shard in shards), SCORES_SCHEMA, metadata)
        except FileNotFoundError:
            if not self.is_whole():
                raise
        self.clear()

    def clear(self) -> None:
        """Remove the parts, and what killed workers left half-written."""
        folder = self._part("").parent
        for path in folder.glob("*.parquet"):
            path.unlink(missing_ok=True)
        for path in (*folder.glob(f".*{TEMPORARY_SUFFIX}"), *self.whole.parent.glob(f".*{TEMPORARY_SUFFIX}")):
            writer = writer_of(path)
            if writer is not None and writer.is_gone():
                path.unlink(missing_ok=True)
        for empty in (folder, folder.parent):
            with suppress(OSError):  # not there, or something else's too
                empty.rmdir()

    def _is_ours(self, path: Path) -> bool:
        try:
            told = pq.read_schema(path).metadata or {}
        except FileNotFoundError:
            return False
        except NO_PARQUET:  # damaged: made again
            return False
        if told.get(MADE_FOR.encode(), b"").decode() == self._made_for:
            return True
        try:
            other = json.loads(told.get(SCORER.encode(), b"{}"))
        except ValueError:
            other = {}
        if any(other.get(key) != self.record[key] for key in ("weights", "precision")):
            raise ConfigError(
                f"{path} holds scores by another CLIP ({other.get('clip')}, {other.get('precision')}). Give these another --name,"
                " or remove it."
            )
        return False  # of another index
