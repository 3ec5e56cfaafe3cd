"""What rendering relies on in a plan, held against its rows some at a time: a worker has no room for a plan of a hundred million."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from gift_shared.errors import PlanError
from gift_shared.parquet_files import ROWS_AT_ONCE, RowFile, key_fault

LONGEST_KEY = 90  # with the suffix within the 100 bytes of a plain tar name
SIZE_STEP, LONGEST_SIDE = 8, 65_496  # pixels: latents are an eighth of an image or less, a JPEG has no longer side
ShardSlice = tuple[str, int, int]  # shard, first row, number of rows


def check_plan(rows: pa.Table | RowFile, where: Path | str) -> list[ShardSlice]:
    """Safe and unique names, whole shards in a row, keys ascending in each. Raises PlanError.

    Returns: the shards, in plan order.
    """
    if rows.num_rows == 0:
        raise PlanError(f"{where} asks for no image.")
    found, before = _Found(), None
    for batch in _batches(rows):
        _check_values(batch, where)
        found.add(batch, before)
        before = batch.slice(len(batch) - 1)
    if not (found.has_distinct_keys or pc.count_distinct(rows.column("sample_key")).as_py() == rows.num_rows):
        raise PlanError(f"{where}: a sample key stands twice; are two datasets or caption files named alike but for punctuation?")
    if found.longest_key > LONGEST_KEY:
        raise PlanError(f"{where}: a sample key of {found.longest_key} characters does not fit a tar; give the dataset a shorter name.")
    if len({shard for shard, _ in found.runs}) != len(found.runs):
        raise PlanError(f"{where}: the rows of a shard must stand together; are two tasks named alike but for punctuation?")
    if not found.ascends:
        raise PlanError(f"{where}: the sample keys of a shard must ascend. Make the plan again.")
    return _slices(found.runs)


def shard_slices(rows: pa.Table | RowFile) -> list[ShardSlice]:
    """(shard, first row, number of rows) of every shard of a plan that was checked, in plan order."""
    found: list[tuple[str, int]] = []
    for batch in _batches(rows, ["shard"]):
        _extend(found, runs(batch["shard"]))
    return _slices(found)


def value_counts(rows: pa.Table | RowFile, column: str) -> Counter[str]:
    """How many rows have which value of a column that has few, in the order of the plan."""
    counts: Counter[str] = Counter()
    for batch in _batches(rows, [column]):
        counts.update({entry["values"]: entry["counts"] for entry in pc.value_counts(batch[column]).to_pylist()})
    return counts


def runs(column: pa.ChunkedArray) -> list[tuple[str, int]]:
    """(value, how often) of equal values in a row."""
    found: list[tuple[str, int]] = []
    for chunk in column.chunks:
        encoded = pc.run_end_encode(chunk)
        ends = encoded.run_ends.to_pylist()
        _extend(found, [(value, end - start) for value, start, end in zip(encoded.values.to_pylist(), [0, *ends[:-1]], ends, strict=True)])
    return found


@dataclass
class _Found:
    """What is known of all rows so far."""

    runs: list[tuple[str, int]] = field(default_factory=list)  # shards and how many rows they have
    bounds: list[tuple[str, str]] = field(default_factory=list)  # first and last key of each
    ascends: bool = True
    longest_key: int = 0

    def add(self, batch: pa.Table, before: pa.Table | None) -> None:
        """`before`: the row before those of this batch."""
        rows = batch if before is None else pa.concat_tables([before, batch])
        shards, sample_keys = rows["shard"], rows["sample_key"]
        descends = pc.less_equal(sample_keys[1:], sample_keys[:-1])
        self.ascends &= not pc.any(pc.and_(pc.equal(shards[1:], shards[:-1]), descends)).as_py()
        self.longest_key = max(self.longest_key, pc.max(pc.utf8_length(sample_keys)).as_py())
        start = 0
        for shard, length in runs(batch["shard"]):
            first, last = batch["sample_key"][start].as_py(), batch["sample_key"][start + length - 1].as_py()
            if _extend(self.runs, [(shard, length)]):
                self.bounds[-1] = (self.bounds[-1][0], last)
            else:
                self.bounds.append((first, last))
            start += length

    @property
    def has_distinct_keys(self) -> bool:
        """Certain where keys ascend in every shard and no shard reaches into another; otherwise they have to be counted."""
        return self.ascends and all(before[1] < after[0] for before, after in pairwise(sorted(self.bounds)))


def _batches(rows: pa.Table | RowFile, columns: list[str] | None = None) -> Iterator[pa.Table]:
    if isinstance(rows, RowFile):
        yield from rows.batches(columns)
        return
    chosen = rows if columns is None else rows.select(columns)
    for start in range(0, len(chosen), ROWS_AT_ONCE):
        yield chosen.slice(start, ROWS_AT_ONCE)


def _extend(known: list[tuple[str, int]], further: list[tuple[str, int]]) -> bool:
    """Add runs; whether the first of them goes on with the last that was known."""
    goes_on = bool(known and further) and known[-1][0] == further[0][0]
    if goes_on:
        known[-1] = (known[-1][0], known[-1][1] + further[0][1])
    known += further[goes_on:]
    return goes_on


def _slices(found: list[tuple[str, int]]) -> list[ShardSlice]:
    slices, start = [], 0
    for shard, length in found:
        slices.append((shard, start, length))
        start += length
    return slices


def _check_values(rows: pa.Table, where: Path | str) -> None:
    for column in ("sample_key", "shard"):
        if (fault := key_fault(column, rows[column])) is not None:
            raise PlanError(f"{where}: {fault}. Make the plan again.")
    scales = rows["guidance_scale"]
    if pc.min(rows["denoising_steps"]).as_py() < 1 or not pc.all(pc.and_(pc.is_finite(scales), pc.greater_equal(scales, 0))).as_py():
        raise PlanError(f"{where}: denoising steps must be at least 1 and guidance scales at least 0. Make the plan again.")
    _check_sizes(rows, where)


def _check_sizes(rows: pa.Table, where: Path | str) -> None:
    heights, widths = rows["render_height"], rows["render_width"]
    if not heights.is_null().equals(widths.is_null()):
        raise PlanError(f"{where}: render_height and render_width must be given together, or neither.")
    for name, sides in (("render_height", heights.drop_null()), ("render_width", widths.drop_null())):
        possible = pc.and_(pc.greater_equal(sides, SIZE_STEP), pc.less_equal(sides, LONGEST_SIDE))
        wrong = sides.filter(pc.invert(pc.and_(possible, pc.equal(pc.multiply(pc.divide(sides, SIZE_STEP), SIZE_STEP), sides))))
        if len(wrong):
            raise PlanError(f"{where}: {name} must be a multiple of {SIZE_STEP} up to {LONGEST_SIDE} pixels, found {wrong[0].as_py()}.")
