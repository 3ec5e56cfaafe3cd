"""Which synthetic pictures a task replays: a rule, a seed and scores decide, from a per-task plan or from a pool. Pure table work."""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gift_shared.errors import DataError
from gift_shared.manifests import OrderManifest
from gift_shared.parquet_files import RowFile, open_output_index
from gift_shared.storage import Folder
from gift_train.data.candidates import candidates
from gift_train.data.replay_rule import ReplaySelection as ReplaySelection
from gift_train.data.score_rules import Screen, screen

_log = logging.getLogger(__name__)


class ReplayShortage(UserWarning):
    """Fewer pictures than the recipe asks for; training goes on with what there is, as the authors' did (METHODS 3.1)."""


def select_replay(shards: Folder, order: OrderManifest, rule: ReplaySelection) -> dict[str, pa.Table]:
    """For every task of the order the rows (INDEX_SCHEMA, all with an image) that it replays, in the order used.

    Tells how many pictures each rule over scores leaves. Raises as select_places, ShardError if `shards` is not a finished output folder,
    and ConfigError or ShardError if it has not the scores that are selected by.
    """
    with open_output_index(shards) as index:
        chosen = _chosen(index, str(shards), order, rule, order.tasks, screen(shards, index, rule.by_score))
        rows = index.take(np.concatenate([one.places for one in chosen.values()]).tolist())
    if rule.by_score:
        told = "; ".join(f"{task}: {one.left_in_words}" for task, one in chosen.items())
        _log.warning("Pictures that may be replayed, by scores of %s. %s.", shards, told)
    selected, start = {}, 0
    for task, one in chosen.items():
        selected[task] = rows.slice(start, len(one.places))
        start += len(one.places)
    return selected


def count_replay(shards: Folder, order: OrderManifest, rule: ReplaySelection) -> dict[str, int]:
    """How many rows `select_replay` gives for each task. Raises as it does."""
    with open_output_index(shards) as index:
        chosen = _chosen(index, str(shards), order, rule, order.tasks, screen(shards, index, rule.by_score))
        return {task: len(one.places) for task, one in chosen.items()}


def select_places(
    index: RowFile, where: str, order: OrderManifest, rule: ReplaySelection, tasks: Sequence[str]
) -> dict[str, NDArray[np.int64]]:
    """For each of these tasks of the order the numbers of the rows of `index` that it replays, in the order used. Scores are not asked.

    index: of an output folder; `where` names it in messages. Warns with ReplayShortage if there are fewer than asked for.
    Raises DataError when none is left.
    """
    return {task: one.places for task, one in _chosen(index, where, order, rule, tasks, Screen()).items()}


@dataclass(frozen=True)
class _Chosen:
    """Of a task: rows by their numbers; how many were usable, and how many of these each rule over scores left."""

    places: NDArray[np.int64]
    left: dict[str, int]

    @property
    def left_in_words(self) -> str:
        """E.g. `300 usable, max_rank = 1 leaves 212, top_share = 0.5 leaves 120`."""
        usable, *rules = self.left.items()
        return ", ".join([f"{usable[1]} {usable[0]}", *(f"{rule} leaves {count}" for rule, count in rules)])


def _chosen(
    index: RowFile, where: str, order: OrderManifest, rule: ReplaySelection, tasks: Sequence[str], scores: Screen
) -> dict[str, _Chosen]:
    there, steps = candidates(index, where, order, rule, scores), ("usable", *scores.kept)
    chosen = {task: _Chosen(there.places(task), dict(zip(steps, there.left(task), strict=True))) for task in tasks}
    for task, one in chosen.items():
        _require_any(one, where, task, rule)
    return chosen


def _require_any(chosen: _Chosen, where: str, task: str, rule: ReplaySelection) -> None:
    missing = rule.num_images - len(chosen.places)
    if missing:
        of_them = f"; {chosen.left_in_words}" if rule.by_score else ""
        found = (
            f"{where} holds {len(chosen.places)} usable pictures for task {task!r} (captions: {rule.captions}{of_them}),"
            f" {rule.num_images} are wanted"
        )
        if not len(chosen.places):
            raise DataError(f"{found}: none is left. Render a plan that covers the task, or relax the selection.")
        warnings.warn(f"{found}: {missing} are missing; training goes on with {len(chosen.places)}.", ReplayShortage, stacklevel=4)
