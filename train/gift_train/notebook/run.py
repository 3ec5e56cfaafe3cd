"""A run folder in a notebook. Imports torch only where a model is asked for."""

import operator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gift_shared.errors import ConfigError, unknown_name
from gift_shared.frames import matrix_frame, records_frame
from gift_shared.image_table import ImageTable
from gift_shared.parquet_files import read_index
from gift_shared.storage import open_folder
from gift_train.evaluation.metrics import Metrics, metrics_of
from gift_train.records.accuracies import further_spaces, own_space
from gift_train.records.files import RUN_FILE, flat_recalls, read_accuracies, read_metrics, read_record

if TYPE_CHECKING:
    from gift_shared.frames import DataFrame
    from gift_train.notebook.model import Model
    from gift_train.records.restore import Asked, Restored

ZERO_SHOT = "zero-shot"  # in place of a task's name: before the first one


class Run:
    """One run. What its files say is read when it is asked for; of a run under way that is what is there by then.

    Tasks are named as datasets are, or counted from 1 in the order they were learned; 0 and "zero-shot" stand before the first.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder)
        if not (self.path / RUN_FILE).is_file():
            raise ConfigError(f"{folder} is no run folder: it has no {RUN_FILE}, which `gift-train run --out` writes.")
        self.record = read_record(self.path)  # run.json

    def __repr__(self) -> str:
        return f"<{self.recipe['method']}, {self.order}, seed {self.seed}: {self.num_learned} of {len(self.tasks)} tasks, {self.path}>"

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, which are the datasets, in the order they are learned."""
        return list(self.record["datasets"])

    @property
    def order(self) -> str:
        """Name of the order of tasks."""
        return str(self.record["order"])

    @property
    def seed(self) -> int:
        """Decides data order, crops and the choice from a pool."""
        return int(self.record["seed"])

    @property
    def recipe(self) -> dict[str, Any]:
        """What was computed, resolved: method, steps, learning rates, [method_config] ..."""
        return dict(self.record["recipe"])

    @property
    def num_learned(self) -> int:
        """How many tasks are trained and evaluated."""
        return len(self._accuracies()["matrix"])

    @property
    def accuracy_matrix(self) -> "DataFrame":
        """Percent. Rows: "zero-shot", then after each task that is done; columns: datasets. Raises ConfigError without pandas.

        Of the order's own label space, see `label_space`.
        """
        return self._space(self._accuracies())

    @property
    def label_space(self) -> str:
        """The order's own: known, union-seen or union-all. `metrics` and `readings` are of it too."""
        return own_space(self._accuracies())

    @property
    def label_spaces(self) -> "dict[str, DataFrame]":
        """The accuracy matrix in each label space that the run was asked for, the order's own first."""
        found = self._accuracies()
        return {own_space(found): self._space(found)} | {space: self._space(one) for space, one in further_spaces(found).items()}

    @property
    def readings(self) -> "dict[str, DataFrame]":
        """Further matrices by name, without a zero-shot row, where a method's weights can be read in more than one way (moe_adapter)."""
        return {name: self._frame(matrix, has_zero_shot=False) for name, matrix in self._accuracies().get("readings", {}).items()}

    @property
    def also(self) -> "DataFrame":
        """Accuracy in percent on the datasets of --also-evaluate: rows as of `accuracy_matrix`. Raises ConfigError if there are none."""
        found = self._accuracies().get("also")
        if found is None:
            raise ConfigError(f"{self.path} evaluates no dataset beside its order: give names with --also-evaluate.")
        rows = [found["zero_shot"], *found["matrix"]]
        return matrix_frame(rows, [ZERO_SHOT, *self.tasks][: len(rows)], found["datasets"], "after", "dataset")

    @property
    def retrieval(self) -> "dict[str, DataFrame]":
        """By the name of the pairs of --retrieval: recall in percent, rows as of `accuracy_matrix`, columns `image_to_text@1` ..."""
        frames = {}
        for name, found in self._accuracies().get("retrieval", {}).items():
            recalls = [flat_recalls(one) for one in (found["zero_shot"], *found["after"])]
            rows = [list(one.values()) for one in recalls]
            frames[name] = matrix_frame(rows, [ZERO_SHOT, *self.tasks][: len(rows)], list(recalls[0]), "after", "recall")
        return frames

    @property
    def metrics(self) -> Metrics:
        """`transfer`, `avg` and `last` in percent, `forgetting` in points. Raises ConfigError before all tasks are done."""
        accuracies = self._accuracies()
        matrix = accuracies["matrix"]
        if len(matrix) < len(self.tasks):
            raise ConfigError(f"{self.path} has {len(matrix)} of {len(self.tasks)} tasks; its metrics are known once all are done.")
        return metrics_of(accuracies, matrix)

    @property
    def log(self) -> "DataFrame":
        """A row for each logged step: task, task_index, step, learning_rate, loss, and each term as `terms/<name>`.

        Raises ConfigError without pandas.
        """
        return records_frame(read_metrics(self.path, len(self.tasks)))

    def replayed(self, task: "str | int", shards: str | Path | None = None) -> ImageTable:
        """The synthetic images that a task replayed, as it drew them.

        shards: where the output folder lies, if it has moved since. Raises ConfigError for a task that is none, or replays none.
        """
        name = self.tasks[self._number(task) - 1] if self._number(task) else ZERO_SHOT
        path = self.path / "replay" / f"{name}.parquet"
        if not path.is_file():
            raise ConfigError(f"{self.path} has no replayed images of {name}: {self.recipe['method']} replayed no synthetic ones there.")
        recorded = self.record.get("shards") or {}
        return ImageTable(read_index(path)[0], open_folder(recorded.get("path", "shards") if shards is None else shards))

    def load_model(
        self, task: str | int | None = None, device: str = "auto", model: str | None = None, pretrained: str | None = None
    ) -> "Model":
        """The model after a task; of the last one that is done if none is named, and before the first for 0 or "zero-shot".

        device: as --device. model, pretrained: where the initial model lies, if that is another place than the run was told.
        Raises: ConfigError for a task that is none or has no checkpoint, and as `gift-train evaluate --checkpoint`.
        """
        from gift_train.methods.registry import method_class
        from gift_train.notebook.model import Model
        from gift_train.records.restore import Asked, restore

        number = self.num_learned if task is None else self._number(task)
        asked = Asked(model=model, pretrained=pretrained, device=device)
        if number == 0 or not method_class(self.recipe["method"]).trains:
            return Model(self._initial(asked), f"{self.path}, {ZERO_SHOT}")
        return Model(restore(self._checkpoint(number), asked), f"{self.path} after {self.tasks[number - 1]}")

    def _checkpoint(self, number: int) -> Path:
        from gift_train.records.checkpoint import finished_tasks, task_file

        folder = self.path / "checkpoints"
        finished = finished_tasks(folder, self.tasks)
        if number - 1 not in finished:
            path = task_file(folder, number - 1, self.tasks[number - 1])
            there = ", ".join(one.name for one in finished.values())
            raise ConfigError(f"{path} is not there; found are: {there or 'none'}. Let the run go on, or copy it back.")
        return finished[number - 1]

    def _initial(self, asked: "Asked") -> "Restored":
        """The model that the run began with."""
        import torch

        from gift_train.records.restore import plain_clip

        began = {"model": self.record["model"], "pretrained": self.record.get("pretrained"), "quick_gelu": self.record.get("quick_gelu")}
        given = {} if asked.model is not None else began
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)  # which decides the weights of `--pretrained random`
            return plain_clip(replace(asked, precision=self.recipe.get("precision"), **given))

    def _number(self, task: str | int) -> int:
        """How many tasks are learned after this one; 0 for zero-shot."""
        if not isinstance(task, str):
            number = operator.index(task)  # numpy's too
            if not 0 <= number <= len(self.tasks):
                raise ConfigError(f"{self.path} has tasks 1 to {len(self.tasks)}, found {number}; 0 stands before the first.")
            return number
        if task not in (ZERO_SHOT, *self.tasks):
            raise ConfigError(unknown_name("task", task, [ZERO_SHOT, *self.tasks]))
        return 0 if task == ZERO_SHOT else self.tasks.index(task) + 1

    def _accuracies(self) -> dict[str, Any]:
        return read_accuracies(self.path, self.tasks) or {"zero_shot": None, "matrix": []}

    def _space(self, found: dict[str, Any]) -> "DataFrame":
        return self._frame(([] if found["zero_shot"] is None else [found["zero_shot"]]) + found["matrix"], found["zero_shot"] is not None)

    def _frame(self, rows: list[list[float]], has_zero_shot: bool) -> "DataFrame":
        names = [ZERO_SHOT] * has_zero_shot + self.tasks
        return matrix_frame(rows or None, names[: len(rows)], self.tasks, "after", "dataset")
