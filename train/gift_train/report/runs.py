"""Run folders, as the report sees them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gift_shared.errors import ConfigError
from gift_train.run_files import MATRIX_FILE, RUN_FILE, SUMMARY_FILE, read_accuracies, read_metrics, read_record, read_summary


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

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The logged steps of all tasks, in order; empty for a run that does not train. Raises DataError."""
        return read_metrics(self.path, len(self.datasets))


def load_runs(folders: Sequence[Path]) -> list[Run]:
    """Read runs from their folders, or from folders of such folders. Raises ConfigError if there is none or one is unfinished."""
    paths: list[Path] = []
    for folder in folders:
        inside = sorted(path.parent for path in folder.glob("*/run.json"))
        if (folder / "run.json").is_file():
            paths.append(folder)
        elif inside:
            paths.extend(inside)
        else:
            raise ConfigError(f"{folder} is no run folder and holds none: a run folder has a run.json, written by `gift-train run --out`.")
    return [load_run(path) for path in paths]


def load_run(path: Path) -> Run:
    """Read one finished run. Raises ConfigError if it is unfinished, DataError if a file of it is damaged."""
    for name in (SUMMARY_FILE, MATRIX_FILE, RUN_FILE):
        if not (path / name).exists():
            raise ConfigError(f"{path} is not finished ({name} is missing). Run its `gift-train run` again.")
    record, summary = read_record(path), read_summary(path)
    accuracy = read_accuracies(path, record["datasets"])
    if accuracy is None or len(accuracy["matrix"]) != len(record["datasets"]):
        raise ConfigError(f"{path} is not finished ({MATRIX_FILE} lacks rows). Run its `gift-train run` again.")
    return Run(path, summary, accuracy, record)
