"""Which pictures may be replayed by how well they show their captions: rules over the scores of a folder. Pure table work.

Of a row no more is kept than a bit a rule, and with `top_share` eight bytes while it is looked at (docs/scale.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gift_shared.errors import ConfigError
from gift_shared.keys import KEY_PATTERN
from gift_shared.parquet_files import RowFile
from gift_shared.schema import SampleStatus
from gift_shared.scores import file_sha256, open_scores, scorer_of
from gift_shared.storage import Folder

Bits = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class ScoreRules:
    """What a picture's scores must be. Each rule looks at all usable pictures; one is kept if every rule keeps it.

    max_rank: the own caption ranks so high or better among the plan's captions; 1: no other caption fits better or as well.
    top_share: it is among this share, fraction, of the pictures of its class by similarity, and there is always one; see `share_kept`.
    scores: by whom; a name of `gift-generate score`, None where the folder has one alone.
    """

    max_rank: int | None = None
    top_share: float | None = None
    scores: str | None = None

    def __post_init__(self) -> None:
        if self.max_rank is not None and self.max_rank < 1:
            raise ConfigError(f"[replay] max_rank must be at least 1, the best, found {self.max_rank}.")
        if self.top_share is not None and not 0 < self.top_share <= 1:
            raise ConfigError(f"[replay] top_share is a fraction from above 0 to 1, found {self.top_share}.")
        if self.scores is not None and not KEY_PATTERN.fullmatch(self.scores):
            raise ConfigError(f"[replay] scores {self.scores!r} must match {KEY_PATTERN.pattern}, as a name of gift-generate score.")
        if self.scores is not None and not self:
            raise ConfigError("[replay] scores goes with max_rank or top_share, which select by them.")

    def __bool__(self) -> bool:
        return self.max_rank is not None or self.top_share is not None


NO_RULES = ScoreRules()


@dataclass(frozen=True)
class Screen:
    """For each rule, by how messages call it, which rows of the index it keeps: [rows]."""

    kept: Mapping[str, Bits] = field(default_factory=dict)

    def left(self, first_row: int, usable: Bits) -> list[Bits]:
        """Of rows from `first_row` on: those that are usable, then those of them that are left after each rule in turn."""
        left = [usable]
        for bits in self.kept.values():
            left.append(left[-1] & bits[first_row : first_row + len(usable)])
        return left


def screen(folder: Folder, index: RowFile, rules: ScoreRules) -> Screen:
    """What the rules keep of an index. Raises ConfigError or ShardError if the folder has no such scores."""
    if not rules:
        return Screen()
    kept: dict[str, Bits] = {}
    with open_scores(folder, rules.scores) as scores:
        if rules.max_rank is not None:
            ranks = [pc.fill_null(pc.less_equal(rows["rank"], rules.max_rank), False).to_numpy() for rows in scores.batches(["rank"])]
            kept[f"max_rank = {rules.max_rank}"] = np.concatenate([np.empty(0, dtype=bool), *ranks])
        if rules.top_share is not None:
            kept[f"top_share = {rules.top_share:g}"] = _top(index, scores, rules.top_share)
    return Screen(kept)


def share_kept(groups: NDArray[np.int32], values: NDArray[np.float32], share: float) -> NDArray[np.int64]:
    """Places of the largest values of each group: ceil(share x its size) of them, so always one; of equal ones those that come first.

    groups, values: [N].
    """
    order = np.lexsort((-values, groups))  # stable: by group, then from the largest value on
    sorted_groups = groups[order]
    first = np.concatenate([[True], sorted_groups[1:] != sorted_groups[:-1]]) if len(groups) else np.empty(0, dtype=bool)
    starts = np.flatnonzero(first)
    sizes = np.diff([*starts, len(groups)])
    nth = np.arange(len(groups)) - np.repeat(starts, sizes)
    most = np.ceil(np.round(share * sizes, 9)).astype(np.int64)  # 0.1 x 30 is 3, whatever floats make of it
    return np.asarray(order[nth < np.repeat(most, sizes)])


def _top(index: RowFile, scores: RowFile, share: float) -> Bits:
    """The best of each class by similarity; of each task's images where they are planned by task. A caption of a file is a class."""
    similarity = np.concatenate([np.empty(0, np.float32), *(rows["similarity"].to_numpy() for rows in scores.batches(["similarity"]))])
    numbers: dict[str, int] = {}
    places, groups = [np.empty(0, dtype=np.uint32)], [np.empty(0, dtype=np.int32)]
    start = 0
    for rows in index.batches(["task", "source", "class_index", "caption", "status"]):
        is_judged = np.isfinite(similarity[start : start + len(rows)])
        usable = np.flatnonzero(pc.equal(rows["status"], SampleStatus.OK).to_numpy() & is_judged)
        classes = _classes(rows.take(pa.array(usable))).dictionary_encode()
        own = np.array([numbers.setdefault(name, len(numbers)) for name in classes.dictionary.to_pylist()], dtype=np.int32)
        places.append((usable + start).astype(np.uint32))
        groups.append(own[classes.indices.to_numpy()])
        start += len(rows)
    usable = np.concatenate(places)
    kept = np.zeros(index.num_rows, dtype=bool)
    kept[usable[share_kept(np.concatenate(groups), similarity[usable], share)]] = True
    return kept


def _classes(rows: pa.Table) -> pa.Array:
    """A text for each row that names its task and class; of a caption without a class, the caption."""
    label = pc.fill_null(pc.cast(rows["class_index"], pa.string()), "")
    caption = pc.if_else(pc.is_null(rows["class_index"]), rows["caption"], "")
    joined = pc.binary_join_element_wise(rows["task"], rows["source"], label, caption, "\n")
    return joined.combine_chunks()


def score_record(folder: Folder, rules: ScoreRules) -> dict[str, str]:
    """What a run records of the scores it selects by. Raises as `open_scores` does."""
    with open_scores(folder, rules.scores) as scores:
        scorer = scorer_of(scores)
        return {"clip": scorer["clip"], "weights": scorer["weights"], "sha256": file_sha256(scores.path)}
