"""Which synthetic pictures a task replays: a rule and a seed decide, from a per-task plan or from a pool. Pure table work."""

import warnings
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gift_shared.errors import ConfigError, DataError, unknown_name
from gift_shared.keys import hashed_seed
from gift_shared.manifests import OrderManifest
from gift_shared.parquet_files import read_output_index
from gift_shared.schema import SampleStatus
from gift_shared.storage import Folder

CAPTION_RULES = ("all", "pretraining-only")
POOL_TASK = "pool"  # the task column of every row of a pool


class ReplayShortage(UserWarning):
    """Fewer pictures than the recipe asks for; training goes on with what there is, as the authors' did (METHODS 3.1)."""


@dataclass(frozen=True, kw_only=True)
class ReplaySelection:
    """How many pictures a task replays and whose captions they may carry.

    captions: "all" = pre-training source and earlier tasks; "pretraining-only" = the pre-training source alone.
    seed: decides the draw from a pool; a per-task plan was drawn when it was planned.
    """

    num_images: int
    captions: str
    seed: int

    def __post_init__(self) -> None:
        if self.num_images < 1:
            raise ConfigError(f"[replay] num_images must be at least 1, found {self.num_images}.")
        if self.captions not in CAPTION_RULES:
            raise ConfigError("[replay] " + unknown_name("captions", self.captions, CAPTION_RULES))


def select_replay(shards: Folder, order: OrderManifest, rule: ReplaySelection) -> dict[str, pa.Table]:
    """For every task of the order the rows it replays, see `select_rows`; the index is read once.

    Raises as select_rows, and ShardError if `shards` is not a finished output folder.
    """
    rows, _ = read_output_index(shards)
    return {name: select_rows(rows, str(shards), order, task_index, rule) for task_index, name in enumerate(order.tasks)}


def select_rows(rows: pa.Table, where: str, order: OrderManifest, task_index: int, rule: ReplaySelection) -> pa.Table:
    """The rows (INDEX_SCHEMA, all with an image) that the task at zero-based `task_index` replays, in the order used.

    rows: the index of an output folder; `where` names it in messages. Warns with ReplayShortage if there are fewer than asked for.
    Raises DataError when none is left.
    """
    task = order.tasks[task_index]
    if len(rows) and rows["task"][0].as_py() == POOL_TASK:
        chosen = _from_pool(rows, where, order, task_index, rule)
    else:
        chosen = _from_task(rows, where, order, task, rule)
    missing = rule.num_images - len(chosen)
    if missing:
        found = f"{where} holds {len(chosen)} usable pictures for task {task!r} (captions: {rule.captions}), {rule.num_images} are wanted"
        if not len(chosen):
            raise DataError(f"{found}: none is left. Render a plan that covers the task, or relax the selection.")
        warnings.warn(f"{found}: {missing} are missing; training goes on with {len(chosen)}.", ReplayShortage, stacklevel=2)
    return rows.take(pa.array(chosen))


def _from_task(rows: pa.Table, where: str, order: OrderManifest, task: str, rule: ReplaySelection) -> NDArray[np.int64]:
    """Per-task plans: the task's first n usable rows by index."""
    of_task = pc.equal(rows["task"], task)
    if not pc.any(of_task).as_py():
        tasks = pc.unique(rows["task"]).to_pylist()
        raise DataError(f"{where} was planned for other tasks: no row for {task!r}, only for {', '.join(sorted(tasks)) or 'none'}.")
    usable = pc.and_(of_task, pc.equal(rows["status"], SampleStatus.OK))
    if rule.captions == "pretraining-only":
        usable = pc.and_(usable, pc.equal(rows["source"], order.pretraining_source))
    places = np.flatnonzero(_numpy(usable))
    by_index = np.argsort(_numpy(rows["index"])[places], kind="stable")
    return places[by_index][: rule.num_images]


def _from_pool(rows: pa.Table, where: str, order: OrderManifest, task_index: int, rule: ReplaySelection) -> NDArray[np.int64]:
    """Draw class names uniformly with replacement, then for each draw a picture of that class that is not used yet.

    A class name is one entry of the pool of captions (METHODS 3.1), whatever its number of pictures. A class that has none
    left is drawn again, so the asked number is reached as long as any class has one. Repeatable from (seed, task name).
    """
    seen = order.seen(task_index) if rule.captions == "all" else {}
    sources = (order.pretraining_source, *seen)
    source_of_row = pc.index_in(rows["source"], value_set=pa.array(sources))
    labels = pc.fill_null(rows["class_index"], -1)
    eligible = pc.and_(pc.is_valid(source_of_row), pc.greater_equal(labels, 0))
    for number, known in enumerate(seen.values(), start=1):
        if known is not None:  # some classes of a dataset
            is_unknown = pc.invert(pc.is_in(labels, value_set=pa.array(known, labels.type)))
            eligible = pc.and_not(eligible, pc.and_(pc.fill_null(pc.equal(source_of_row, number), False), is_unknown))
    absent = [name for number, name in enumerate(sources) if not pc.any(pc.and_(eligible, pc.equal(source_of_row, number))).as_py()]
    if absent:
        task = order.tasks[task_index]
        raise DataError(f"{where} is a pool without pictures of {', '.join(absent)}, which task {task!r} replays. Plan and render them.")
    places = np.flatnonzero(_numpy(eligible))
    entry_codes = (_numpy(pc.fill_null(source_of_row, 0))[places].astype(np.int64) << 32) | _numpy(labels)[places]
    num_entries, entries = _dense(entry_codes)
    usable = _numpy(pc.equal(rows["status"], SampleStatus.OK))[places]
    generator = np.random.default_rng(hashed_seed(rule.seed, f"replay/{order.tasks[task_index]}"))
    return _draw(places[usable], entries[usable], num_entries, rule.num_images, generator)


def _draw(
    places: NDArray[np.int64], entries: NDArray[np.int64], num_entries: int, num_images: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """places, entries: [N], row number and pool entry of each usable picture. Returns at most num_images row numbers."""
    shuffled = generator.permutation(len(places))
    codes = entries.astype(np.uint16) if num_entries <= 2**16 else entries  # numpy sorts 16 bits ten times as fast
    by_entry = shuffled[np.argsort(codes[shuffled], kind="stable")]  # grouped by entry, each group in random order
    counts = np.bincount(entries, minlength=num_entries)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    wanted = min(num_images, len(places))
    drawn = np.empty(0, dtype=np.int64)
    while True:
        nth = _occurrence(drawn)
        kept = np.flatnonzero(nth < counts[drawn]) if len(drawn) else drawn
        if len(kept) >= wanted:
            kept = kept[:wanted]
            return places[by_entry[starts[drawn[kept]] + nth[kept]]]
        left = np.flatnonzero(np.bincount(drawn, minlength=num_entries) < counts)  # drawing a spent entry again changes nothing
        drawn = np.concatenate([drawn, generator.choice(left, size=wanted - len(kept))])


def _occurrence(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each value how many equal ones stand before it: [3, 5, 3] -> [0, 0, 1]."""
    order = np.argsort(values, kind="stable")
    first = np.concatenate([[True], values[order][1:] != values[order][:-1]]) if len(values) else np.empty(0, dtype=bool)
    positions = np.arange(len(values))
    nth = np.empty(len(values), dtype=np.int64)
    nth[order] = positions - np.maximum.accumulate(np.where(first, positions, 0))
    return nth


def _dense(codes: NDArray[np.int64]) -> tuple[int, NDArray[np.int64]]:
    """Number of distinct codes, and each code's rank among them. Rows come grouped, so few places need sorting."""
    if not len(codes):
        return 0, codes
    borders = np.flatnonzero(np.diff(codes)) + 1
    runs = codes[np.concatenate([[0], borders])]
    distinct, ranks = np.unique(runs, return_inverse=True)
    return len(distinct), np.repeat(ranks, np.diff(np.concatenate([[0], borders, [len(codes)]])))


def _numpy(column: pa.ChunkedArray) -> NDArray[np.int64]:
    values: NDArray[np.int64] = column.to_numpy()
    return values
