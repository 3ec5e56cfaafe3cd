"""Which weights of a run are exported, and what its record says of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gift_shared.errors import ConfigError, unknown_name
from gift_train.methods.base import Method
from gift_train.methods.method_files import is_plain_clip
from gift_train.methods.registry import method_class, method_names
from gift_train.records.checkpoint import finished_tasks
from gift_train.records.files import RUN_FILE, read_accuracies, read_record
from gift_train.records.reading import reading_of


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run handed on after one of its tasks. accuracies: accuracy_matrix.json, rows up to the last evaluated task.

    checkpoint: its weights.
    """

    run: Path
    record: Mapping[str, Any]
    accuracies: Mapping[str, Any] | None
    task_index: int
    checkpoint: Path

    @property
    def datasets(self) -> list[str]:
        """Tasks of the run, in order."""
        return list(self.record["datasets"])

    @property
    def task(self) -> str:
        """The task after which it was handed on."""
        return self.datasets[self.task_index]

    @property
    def matrix(self) -> list[list[float]]:
        """Rows of the accuracy matrix up to this task, percent; fewer if it was not evaluated yet."""
        return [] if self.accuracies is None else list(self.accuracies["matrix"][: self.task_index + 1])


def select_result(run: Path, task: str | None) -> RunResult:
    """The run's result after a task, by name or number from 1; after its last finished one if none is named.

    Raises: ConfigError for a folder that is no run, a task that it has not finished, and a method whose weights no plain CLIP holds.
    """
    if not (run / RUN_FILE).is_file():
        raise ConfigError(f"{run} is no run folder: it has no {RUN_FILE}, written by `gift-train run --out`.")
    record = read_record(run)
    method = str(record["recipe"]["method"])
    if method in method_names():
        _require_plain_clip(run, method)
    datasets = list(record["datasets"])
    finished = finished_tasks(run / "checkpoints", datasets)
    if not finished:
        raise ConfigError(f"{run} has finished no task yet, so there is nothing to export.")
    index = max(finished) if task is None else _index_of(task, datasets)
    if index not in finished:
        raise ConfigError(f"{run} has not finished {datasets[index]} yet. Finished: {', '.join(datasets[one] for one in finished)}.")
    accuracies = read_accuracies(run, datasets)
    result = RunResult(run=run, record=record, accuracies=accuracies, task_index=index, checkpoint=finished[index])
    if method not in method_names():
        _require_read_as_clip(result.checkpoint, method)
    return result


def _require_plain_clip(run: Path, method: str) -> None:
    chosen = method_class(method)
    if not chosen.trains:
        raise ConfigError(f"{run}: {method} trains nothing, so what it would export is the model it began with.")
    if not is_plain_clip(chosen):
        adds = "adds parameters of its own to the CLIP, which decide what an image is read by."
        what = adds if chosen.prepare is not Method.prepare else "reads images by more than the weights of the CLIP."
        raise ConfigError(
            f"{run}: {method} {what} No plain CLIP of open_clip or transformers holds them, so there is nothing that others could load;"
            " `gift-train evaluate --checkpoint` reads them."
        )


def _require_read_as_clip(checkpoint: Path, method: str) -> None:
    """Of a method from outside, which is not at hand: the checkpoint says how it is read."""
    reading = reading_of(checkpoint)
    if reading is None or not reading.is_plain_clip:
        raise ConfigError(
            f"{checkpoint}: {method}, which is not one of ours, reads its weights in a way of its own: no plain CLIP holds them."
        )


def _index_of(task: str, datasets: list[str]) -> int:
    if task in datasets:
        return datasets.index(task)
    if task.isdecimal() and 1 <= int(task) <= len(datasets):
        return int(task) - 1
    raise ConfigError(f"--task: {unknown_name('task', task, datasets)} Or a number from 1 to {len(datasets)}.")
