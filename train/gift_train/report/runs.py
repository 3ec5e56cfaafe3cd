"""Run folders, as the report sees them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gift_shared.errors import ConfigError


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
        """The logged steps of all tasks, in order; empty for a run that does not train."""
        path = self.path / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


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
    """Read one finished run. Raises ConfigError if it is unfinished or unreadable."""
    try:
        summary, accuracy, record = (json.loads((path / name).read_text()) for name in ("summary.json", "accuracy_matrix.json", "run.json"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} is not finished ({Path(error.filename).name} is missing). Run its `gift-train run` again.") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} holds a JSON file that cannot be read: {error}.") from error
    return Run(path, summary, accuracy, record)
