"""What is kept beside the order: extra datasets and retrieval, before the first task and after the last, one line a recipe."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gift_train.records.files import flat_recalls
from gift_train.report.grid import Grid
from gift_train.report.runs import Run

_DIRECTIONS = {"image_to_text": "I→T", "text_to_image": "T→I"}


@dataclass(frozen=True)
class Kept:
    """Percent: before the first task and after the last, mean over seeds."""

    zero_shot: float
    last: float

    @property
    def change(self) -> float:
        """Points."""
        return self.last - self.zero_shot


@dataclass(frozen=True)
class BesideTable:
    """One table: all extra datasets, or one set of pairs. `rows`: (recipe, a value by column, None where its runs did not look)."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, Mapping[str, Kept]]]

    def grid(self) -> Grid:
        """As a table of text."""
        return Grid(
            [self.title, *self.columns], [[recipe, *(_cell(kept.get(name)) for name in self.columns)] for recipe, kept in self.rows]
        )


def beside_values(accuracy: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """(before the first task, after the last one that is done) by what it is, for one run as far as it is."""
    found: dict[str, tuple[float, float]] = {}
    if (also := accuracy.get("also")) is not None:
        now = (also["matrix"] or [also["zero_shot"]])[-1]
        found |= {name: (first, last) for name, first, last in zip(also["datasets"], also["zero_shot"], now, strict=True)}
    for name, one in accuracy.get("retrieval", {}).items():
        first, last = (flat_recalls(recalls) for recalls in (one["zero_shot"], (one["after"] or [one["zero_shot"]])[-1]))
        found |= {f"{name} {recall_label(key)}": (first[key], last[key]) for key in first}
    return found


def beside_lines(run: Run) -> list[tuple[str, str, str, float]]:
    """(after, what, quantity, percent) of every evaluation beside the order, for a table of numbers."""
    lines = []
    afters = ["zero_shot", *run.datasets]
    if (also := run.accuracy.get("also")) is not None:
        for after, row in zip(afters, [also["zero_shot"], *also["matrix"]], strict=False):
            lines += [(after, name, "accuracy", value) for name, value in zip(also["datasets"], row, strict=True)]
    for name, one in run.accuracy.get("retrieval", {}).items():
        for after, recalls in zip(afters, [one["zero_shot"], *one["after"]], strict=False):
            lines += [(after, name, key, value) for key, value in flat_recalls(recalls).items()]
    return lines


def beside_tables(runs: Sequence[Run]) -> list[BesideTable]:
    """A table for the extra datasets and one for each set of pairs, over runs of one order; none if no run looked at any."""
    by_recipe: dict[str, list[Run]] = {}
    for run in runs:
        by_recipe.setdefault(run.recipe, []).append(run)
    tables = []
    datasets = dict.fromkeys(name for run in runs for name in run.accuracy.get("also", {"datasets": []})["datasets"])
    if datasets:
        tables.append(BesideTable("datasets", tuple(datasets), _rows(by_recipe, _also)))
    for name in dict.fromkeys(name for run in runs for name in run.accuracy.get("retrieval", {})):
        rows = _rows(by_recipe, lambda run, name=name: _recalls(run, name))
        columns = dict.fromkeys(column for _, kept in rows for column in kept)
        tables.append(BesideTable(f"retrieval, {name}", tuple(columns), rows))
    return tables


def recall_label(key: str) -> str:
    """`image_to_text@1` as people read it: `I→T R@1`."""
    direction, _, k = key.partition("@")
    return f"{_DIRECTIONS[direction]} R@{k}"


def _also(run: Run) -> dict[str, Kept]:
    also = run.accuracy.get("also")
    if also is None:
        return {}
    return {name: Kept(first, last) for name, first, last in zip(also["datasets"], also["zero_shot"], also["matrix"][-1], strict=True)}


def _recalls(run: Run, name: str) -> dict[str, Kept]:
    one = run.accuracy.get("retrieval", {}).get(name)
    if one is None:
        return {}
    first, last = flat_recalls(one["zero_shot"]), flat_recalls(one["after"][-1])
    return {recall_label(key): Kept(first[key], last[key]) for key in first}


def _rows(by_recipe: Mapping[str, Sequence[Run]], read: Any) -> list[tuple[str, dict[str, Kept]]]:
    rows = []
    for recipe, runs in by_recipe.items():
        found = [read(run) for run in runs]
        columns = dict.fromkeys(name for kept in found for name in kept)
        means = {name: _mean([kept[name] for kept in found if name in kept]) for name in columns}
        if means:
            rows.append((recipe, means))
    return rows


def _mean(kept: Sequence[Kept]) -> Kept:
    return Kept(float(np.mean([one.zero_shot for one in kept])), float(np.mean([one.last for one in kept])))


def _cell(kept: Kept | None) -> str:
    return "-" if kept is None else f"{kept.last:.1f} ({kept.change:+.1f})"
