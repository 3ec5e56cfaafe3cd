"""Run folders, as the report sees them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gift_shared.errors import ConfigError
from gift_shared.manifests import LabelSpace
from gift_train.records.accuracies import further_spaces, own_space
from gift_train.records.files import (
    ALL_TASKS,
    MATRIX_FILE,
    RUN_FILE,
    SUMMARY_FILE,
    read_accuracies,
    read_metrics,
    read_record,
    read_summary,
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Accuracies:
    """What a run scored in one label space. zero_shot: [T] percent; matrix: [T, T] percent, row = after task, column = dataset."""

    zero_shot: np.ndarray
    matrix: np.ndarray
    numbers: dict[str, float | None]  # Transfer, Avg. ... as summary.json has them


@dataclass(frozen=True)
class Run:
    """One finished run: its summary, accuracy matrix (percent) and logged steps."""

    path: Path
    summary: dict[str, Any]
    accuracy: dict[str, Any]
    record: dict[str, Any]  # run.json

    @property
    def recipe(self) -> str:
        """What was computed, e.g. `gift`; two runs of one recipe and order differ by their seed only."""
        return str(self.summary["recipe"])

    @property
    def order(self) -> str:
        """Name of the order of tasks."""
        return str(self.summary["order"])

    @property
    def datasets(self) -> list[str]:
        """Dataset names in the order they were learned."""
        return list(self.accuracy["datasets"])

    @cached_property
    def matrix(self) -> np.ndarray:
        """[T, T] percent; row = after task, column = dataset."""
        return np.asarray(self.accuracy["matrix"], dtype=float)

    @cached_property
    def zero_shot(self) -> np.ndarray:
        """[T] percent, before the first task."""
        return np.asarray(self.accuracy["zero_shot"], dtype=float)

    @property
    def label_space(self) -> LabelSpace:
        """Who knows the task in `matrix` and `zero_shot`; the order's own."""
        return own_space(self.accuracy)

    @cached_property
    def label_spaces(self) -> dict[LabelSpace, Accuracies]:
        """By label space, the order's own first, then those that were evaluated beside it."""
        numbers = {self.label_space: self.summary, **self.summary.get("label_spaces", {})}
        found = {self.label_space: self.accuracy} | further_spaces(self.accuracy)
        return {
            space: Accuracies(np.asarray(one["zero_shot"], dtype=float), np.asarray(one["matrix"], dtype=float), numbers[space])
            for space, one in found.items()
        }

    @property
    def is_class_incremental(self) -> bool:
        """Whether the tasks are steps of one dataset: then only datasets that were learned count."""
        return self.accuracy.get("protocol") == "class-incremental"

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The logged steps of all tasks, in order; empty for a run that does not train. Raises DataError."""
        return read_metrics(self.path, len(self.datasets))

    @property
    def learns_at_once(self) -> bool:
        """Whether all tasks were one training: steps are then counted through all of it."""
        return any(line["task"] == ALL_TASKS for line in self.metrics)


class UnfinishedRunError(ConfigError):
    """The run in `path` has not ended."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} is not finished ({reason}). Run its `gift-train run` again.")
        self.path = path


def load_runs(folders: Sequence[Path]) -> list[Run]:
    """Read runs from their folders, or from folders of such folders; of the latter, unfinished ones are left out with a warning.

    Raises: ConfigError if there is none, or one that was named itself is unfinished; DataError if a file is damaged.
    """
    runs: list[Run] = []
    for folder in folders:
        if (folder / RUN_FILE).is_file():
            runs.append(load_run(folder))
        else:
            runs += _load_runs_inside(folder)
    return runs


def _load_runs_inside(folder: Path) -> list[Run]:
    paths = sorted(path.parent for path in folder.glob(f"*/{RUN_FILE}"))
    if not paths:
        raise ConfigError(f"{folder} is no run folder and holds none: a run folder has a run.json, written by `gift-train run --out`.")
    runs, unfinished = [], []
    for path in paths:
        try:
            runs.append(load_run(path))
        except UnfinishedRunError as error:
            unfinished.append(error)
    if not runs:
        raise unfinished[0]
    if unfinished:
        _log.warning("Left out, not finished: %s.", ", ".join(str(error.path) for error in unfinished))
    return runs


def load_run(path: Path) -> Run:
    """Read one finished run. Raises UnfinishedRunError, and DataError if a file of it is damaged."""
    for name in (SUMMARY_FILE, MATRIX_FILE, RUN_FILE):
        if not (path / name).exists():
            raise UnfinishedRunError(path, f"{name} is missing")
    record, summary = read_record(path), read_summary(path)
    accuracy = read_accuracies(path, record["datasets"])
    if accuracy is None or len(accuracy["matrix"]) != len(record["datasets"]):
        raise UnfinishedRunError(path, f"{MATRIX_FILE} lacks rows")
    return Run(path, summary, accuracy, record)


def label_spaces(runs: Sequence[Run]) -> list[LabelSpace]:
    """Those that any of the runs was evaluated in, the order's own first."""
    return list(dict.fromkeys([*(run.label_space for run in runs), *(space for run in runs for space in run.label_spaces)]))
