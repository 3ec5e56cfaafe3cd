"""What a task may replay of an output folder, and which of it: per-task plans in their order, pools by a seeded draw. Pure table work.

An index may have more rows than a process has room for, and every process of a run selects: so the columns that decide are gone through
once, and of a row no more is kept than a few bytes (docs/scale.md).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gift_shared.errors import DataError
from gift_shared.keys import hashed_seed
from gift_shared.manifests import OrderManifest
from gift_shared.parquet_files import RowFile
from gift_shared.schema import SampleStatus
from gift_train.data.replay_rule import ReplaySelection
from gift_train.data.score_rules import Bits, Screen

POOL_TASK = "pool"  # the task column of every row of a pool
FIRST_LOOK = 65_536  # places of a random order of millions that are sorted first: what a task replays is most often among them


def candidates(index: RowFile, where: str, order: OrderManifest, rule: ReplaySelection, scores: Screen) -> "Candidates":
    """Of a per-task plan or of a pool, whichever the index is of; `where` names it in messages."""
    is_pool = next((batch["task"][0].as_py() == POOL_TASK for batch in index.batches(["task"]) if len(batch)), False)
    return (_Pool if is_pool else _PerTask)(index, where, order, rule, scores)


class Candidates(ABC):
    """What is kept of the rows of an index, to choose from."""

    @abstractmethod
    def __init__(self, index: RowFile, where: str, order: OrderManifest, rule: ReplaySelection, scores: Screen) -> None: ...

    @abstractmethod
    def places(self, task: str) -> NDArray[np.int64]:
        """Numbers of the rows that a task replays, in the order used."""

    @abstractmethod
    def left(self, task: str) -> list[int]:
        """How many pictures the task could replay, and how many of them each rule over scores leaves."""


class _PerTask(Candidates):
    """Per-task plans: the task's first n usable rows by index. No more than these are kept of any task."""

    def __init__(self, index: RowFile, where: str, order: OrderManifest, rule: ReplaySelection, scores: Screen) -> None:
        self._where = where
        none = np.empty(0, dtype=np.int64)
        self._first: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}  # by task: index and number of rows
        self._left: dict[str, NDArray[np.int64]] = {}
        start = 0
        for rows in index.batches(["task", "index", "source", "status"]):
            usable = pc.equal(rows["status"], SampleStatus.OK)
            if rule.captions == "pretraining-only":
                usable = pc.and_(usable, pc.equal(rows["source"], order.pretraining_source))
            left = scores.left(start, _bits(usable))
            for task in pc.unique(rows["task"]).to_pylist():
                own = _bits(pc.equal(rows["task"], task))
                counts = [np.count_nonzero(own & bits) for bits in left]
                self._left[task] = self._left.get(task, 0) + np.array(counts, dtype=np.int64)
                found = np.flatnonzero(own & left[-1])
                indices, places = self._first.get(task, (none, none))
                indices = np.concatenate([indices, _numpy(rows["index"])[found]])
                places = np.concatenate([places, found + start])
                by_index = np.argsort(indices, kind="stable")[: rule.num_images]
                self._first[task] = indices[by_index], places[by_index]
            start += len(rows)

    def places(self, task: str) -> NDArray[np.int64]:
        """Raises DataError if the plan was made for other tasks."""
        if task not in self._first:
            raise DataError(
                f"{self._where} was planned for other tasks: no row for {task!r}, only for {', '.join(sorted(self._first)) or 'none'}."
            )
        return self._first[task][1]

    def left(self, task: str) -> list[int]:
        """See Candidates."""
        counts: list[int] = self._left[task].tolist()
        return counts


class _Pool(Candidates):
    """Draw class names uniformly with replacement, then for each draw a picture of that class that is not used yet.

    A class name is one entry of the pool of captions (METHODS 3.1), whatever its number of pictures. A class that has none
    left is drawn again, so the asked number is reached as long as any class has one. Repeatable from (seed, task name).

    Kept of a row: its number and its entry, if it has a class name of the order and a picture that the scores let through.
    """

    def __init__(self, index: RowFile, where: str, order: OrderManifest, rule: ReplaySelection, scores: Screen) -> None:
        self._where, self._order, self._rule = where, order, rule
        self._known = (order.pretraining_source, *order.seen(len(order.tasks)))
        entries, places = np.empty(index.num_rows, dtype=np.int32), np.empty(index.num_rows, dtype=np.uint32)
        numbers: dict[int, int] = {}  # of each entry, by its code: source and label
        num_left = np.zeros((1 + len(scores.kept), 0), dtype=np.int64)  # usable, and after each rule; of each entry
        start = count = 0
        for rows in index.batches(["source", "class_index", "status"]):
            source = pc.index_in(rows["source"], value_set=pa.array(self._known))
            labels = pc.fill_null(rows["class_index"], -1)
            eligible = np.flatnonzero(_numpy(pc.and_(pc.is_valid(source), pc.greater_equal(labels, 0))))
            codes = (_numpy(pc.fill_null(source, 0))[eligible].astype(np.int64) << 32) | _numpy(labels)[eligible]
            distinct, ranks = np.unique(codes, return_inverse=True)
            own = np.array([numbers.setdefault(code, len(numbers)) for code in distinct.tolist()], dtype=np.int32)
            left = [bits[eligible] for bits in scores.left(start, _bits(pc.equal(rows["status"], SampleStatus.OK)))]
            num_left = np.pad(num_left, ((0, 0), (0, len(numbers) - num_left.shape[1])))
            num_left += [np.bincount(own[ranks[bits]], minlength=len(numbers)) for bits in left]
            end = count + int(np.count_nonzero(left[-1]))
            entries[count:end], places[count:end] = own[ranks[left[-1]]], eligible[left[-1]] + start
            count = end
            start += len(rows)
        self._codes = np.fromiter(numbers, dtype=np.int64, count=len(numbers))
        self._entries, self._places, self._num_left = entries[:count], places[:count], num_left

    def left(self, task: str) -> list[int]:
        """See Candidates."""
        counts: list[int] = self._num_left[:, self._taken(task)].sum(axis=1).tolist()
        return counts

    def places(self, task: str) -> NDArray[np.int64]:
        """Raises DataError if there is no picture of a source whose captions the task may replay."""
        return self._drawn(task, self._taken(task))

    def _taken(self, task: str) -> Bits:
        """Which entries the task may replay."""
        seen = self._order.seen(self._order.tasks.index(task)) if self._rule.captions == "all" else {}
        taken = {name: self._of_source(name, labels) for name, labels in ({self._order.pretraining_source: None} | seen).items()}
        absent = [name for name, entries in taken.items() if not entries.any()]
        if absent:
            raise DataError(
                f"{self._where} is a pool without pictures of {', '.join(absent)}, which task {task!r} replays. Plan and render them."
            )
        allowed: Bits = np.logical_or.reduce(list(taken.values()))
        return allowed

    def _of_source(self, name: str, labels: Sequence[int] | None) -> Bits:
        """Which entries are of a source, and of these labels unless None."""
        of_source: Bits = self._codes >> 32 == self._known.index(name)
        return of_source if labels is None else of_source & np.isin(self._codes & 0xFFFFFFFF, labels)

    def _drawn(self, task: str, taken: Bits) -> NDArray[np.int64]:
        """Row numbers, of these entries alone."""
        ranks = np.full(len(self._codes), -1, dtype=np.int32)
        ranks[np.flatnonzero(taken)[np.argsort(self._codes[taken])]] = np.arange(np.count_nonzero(taken), dtype=np.int32)
        of_row = ranks[self._entries]
        eligible = np.flatnonzero(of_row >= 0).astype(np.uint32)
        generator = np.random.default_rng(hashed_seed(self._rule.seed, f"replay/{task}"))
        drawn = _draw(of_row[eligible], int(np.count_nonzero(taken)), self._rule.num_images, generator)
        return self._places[eligible[drawn]].astype(np.int64)


def _draw(entries: NDArray[np.int32], num_entries: int, num_images: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """entries: [N], the pool entry of each usable picture. Returns at most num_images positions in it."""
    shuffled = generator.permutation(len(entries))
    counts = np.bincount(entries, minlength=num_entries)
    wanted = min(num_images, len(entries))
    drawn = np.empty(0, dtype=np.int64)
    while True:
        nth = _occurrence(drawn)
        kept = np.flatnonzero(nth < counts[drawn]) if len(drawn) else drawn
        if len(kept) >= wanted:
            kept = kept[:wanted]
            return _nth_of_entry(shuffled, entries, num_entries, drawn[kept], nth[kept])
        left = np.flatnonzero(np.bincount(drawn, minlength=num_entries) < counts)  # drawing a spent entry again changes nothing
        drawn = np.concatenate([drawn, generator.choice(left, size=wanted - len(kept))])


def _nth_of_entry(
    shuffled: NDArray[np.int64], entries: NDArray[np.int32], num_entries: int, wanted: NDArray[np.int64], nth: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Which position comes as the nth of its entry in the shuffled order, for each wanted entry. All of them must be there.

    So few are wanted of a large pool that they stand near its front: no more is sorted than it takes.
    """
    length = FIRST_LOOK
    while True:
        front = shuffled[:length]
        entries_in_front = entries[front]
        counts = np.bincount(entries_in_front, minlength=num_entries)
        if np.all(nth < counts[wanted]):
            by_entry = front[np.argsort(entries_in_front, kind="stable")]  # grouped by entry, each group in random order
            starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
            return by_entry[starts[wanted] + nth]
        length *= 4


def _occurrence(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each value how many equal ones stand before it: [3, 5, 3] -> [0, 0, 1]."""
    order = np.argsort(values, kind="stable")
    first = np.concatenate([[True], values[order][1:] != values[order][:-1]]) if len(values) else np.empty(0, dtype=bool)
    positions = np.arange(len(values))
    nth = np.empty(len(values), dtype=np.int64)
    nth[order] = positions - np.maximum.accumulate(np.where(first, positions, 0))
    return nth


def _numpy(column: pa.ChunkedArray) -> NDArray[np.int64]:
    values: NDArray[np.int64] = column.to_numpy()
    return values


def _bits(column: pa.ChunkedArray) -> Bits:
    values: Bits = column.to_numpy()
    return values
