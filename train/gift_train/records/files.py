"""The files of a run folder, read back and checked in one place for resume, watch, report and table. No torch here."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gift_shared.documents import FILE_NAME, Maybe, read_json_lines, read_json_object
from gift_shared.errors import DataError
from gift_shared.manifests import LABEL_SPACES, MTIL, PROTOCOLS
from gift_train.records.accuracies import further_spaces, own_space

RUN_FILE = "run.json"
MATRIX_FILE = "accuracy_matrix.json"
METRICS_FILE = "metrics.jsonl"
LOG_FILE = "log.jsonl"
SUMMARY_FILE = "summary.json"
TIMING_FILE = "timing.json"
ALL_TASKS = "all-tasks"  # in place of a task's name, where all are learned at once

_ADVICE = "Restore it, or choose another folder."
_RECORD = {
    "identity?": {},
    "recipe": {"method": FILE_NAME, "steps": Maybe(int), "title?": str, "method_config?": {}},
    "recipe_name": FILE_NAME,
    "order": FILE_NAME,
    "datasets": [FILE_NAME],
    "seed": int,
    "task_steps?": [int],
    "shards?": Maybe({"path": str}),
    "started?": Maybe(str),
    "ended?": Maybe(str),
    "commit?": Maybe(str),
    "command?": Maybe(object),
    "versions?": Maybe({str: str}),
    "hardware?": Maybe({"accelerators?": Maybe([str])}),
}
_RECALLS = {direction: {"1": float, "5": float, "10": float} for direction in ("image_to_text", "text_to_image")}
_BESIDE = {
    "also?": {"datasets": [FILE_NAME], "zero_shot": [float], "matrix": [[float]]},
    "retrieval?": {str: {"zero_shot": _RECALLS, "after": [_RECALLS]}},
}  # fmt: skip
_SPACE = {"zero_shot": Maybe([float]), "matrix": [[float]], "readings?": {str: [[float]]}}
_MATRIX = {
    "order?": FILE_NAME, "datasets": [FILE_NAME], **_SPACE, "label_space?": str, "label_spaces?": {str: _SPACE},
    "test_images?": [int], "protocol?": str, **_BESIDE,
}  # fmt: skip
_METRICS = {
    "task": FILE_NAME, "task_index": int, "step": int, "learning_rate": float, "terms": {str: float}, "loss": float,
    "measurements?": {str: float},
}  # fmt: skip
_NUMBERS = {"transfer": Maybe(float), "avg": float, "last": float, "forgetting": Maybe(float)}
_SUMMARY = {
    "method": str, "title?": str, "recipe": FILE_NAME, "order": FILE_NAME, "seed": int, **_NUMBERS,
    "readings?": {str: _NUMBERS}, "label_space?": str, "label_spaces?": {str: _NUMBERS}, "protocol?": str,
    "also?": {str: {"zero_shot": float, "last": float}}, "retrieval?": {str: {"zero_shot": _RECALLS, "last": _RECALLS}},
    "per_dataset?": {str: {str: Maybe(float)}}, "seconds?": {str: float}, "waited?": float,
}  # fmt: skip
_TIMING = {"train": {str: float}, "evaluate": {str: float}, "waited?": {str: float}}


def read_record(run: Path) -> dict[str, Any]:
    """run.json. Raises DataError."""
    path = run / RUN_FILE
    record = read_json_object(path, _RECORD, DataError, _ADVICE)
    if not record["datasets"] or min(steps_of_tasks(record) or [-1]) < 0:
        raise DataError(f"{path} names no dataset, or not the steps of each, from 0 on. {_ADVICE}")
    return record


def steps_of_tasks(record: Mapping[str, Any]) -> list[int]:
    """N of each task's schedule, by run.json: the recipe's, or what its epochs came to."""
    steps, num_tasks = record["recipe"]["steps"], len(record["datasets"])
    found = record.get("task_steps", []) if steps is None else [steps] * num_tasks
    return list(found) if len(found) == num_tasks else []


def read_accuracies(run: Path, datasets: Sequence[str]) -> dict[str, Any] | None:
    """accuracy_matrix.json of a run over these datasets, in percent; None as long as there is none. Raises DataError."""
    path = run / MATRIX_FILE
    if not path.exists():
        return None
    accuracies = read_json_object(path, _MATRIX, DataError, _ADVICE)
    spaces = further_spaces(accuracies)
    if len({own_space(accuracies), *spaces}) != 1 + len(spaces) or not {own_space(accuracies), *spaces} <= set(LABEL_SPACES):
        raise DataError(f"{path} is of label spaces {', '.join([own_space(accuracies), *spaces])}; there are {', '.join(LABEL_SPACES)}.")
    if accuracies["datasets"] != list(datasets) or not all(_are_percentages(one, datasets) for one in (accuracies, *spaces.values())):
        raise DataError(f"{path} is not a matrix of percentages over {', '.join(datasets)}. {_ADVICE}")
    _check_protocol(path, accuracies, datasets)
    if any(one["matrix"] and one["zero_shot"] is None for one in (accuracies, *spaces.values())):
        raise DataError(f"{path} has rows after a task and none before the first. {_ADVICE}")
    if any(len(one["matrix"]) != len(accuracies["matrix"]) for one in spaces.values()):
        raise DataError(f"{path} has other numbers of rows in other label spaces. {_ADVICE}")
    _check_beside(path, accuracies)
    return accuracies


def _are_percentages(space: Mapping[str, Any], datasets: Sequence[str]) -> bool:
    """Whether the rows of a label space have a value from 0 to 100 for each dataset, and are not more than there are tasks."""
    matrices = [space["matrix"], *space.get("readings", {}).values()]
    rows = [row for matrix in matrices for row in matrix] + ([] if space["zero_shot"] is None else [space["zero_shot"]])
    is_whole = all(len(row) == len(datasets) for row in rows) and all(len(matrix) <= len(datasets) for matrix in matrices)
    return is_whole and all(0 <= value <= 100 for row in rows for value in row)


def _check_protocol(path: Path, accuracies: Mapping[str, Any], datasets: Sequence[str]) -> None:
    protocol, sizes = accuracies.get("protocol", MTIL), accuracies.get("test_images")
    if protocol not in PROTOCOLS or (sizes is not None and (len(sizes) != len(datasets) or min(sizes) < 1)):
        raise DataError(f"{path}: its protocol is none of {', '.join(PROTOCOLS)}, or test_images no number for each dataset. {_ADVICE}")
    if protocol != MTIL and sizes is None:
        raise DataError(f"{path} has no test_images, by which its protocol weighs the steps. {_ADVICE}")


def flat_recalls(recalls: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Recalls under one name each, `image_to_text@1` ..., in one order."""
    return {f"{direction}@{k}": recalls[direction][k] for direction, by_k in _RECALLS.items() for k in by_k}


def _check_beside(path: Path, accuracies: Mapping[str, Any]) -> None:
    """What was evaluated beside the tasks has as many rows as they, all of them percentages."""
    num_rows = len(accuracies["matrix"])
    also = accuracies.get("also", {"datasets": [], "zero_shot": [], "matrix": [[]] * num_rows})
    retrieval = accuracies.get("retrieval", {}).values()
    rows = [also["zero_shot"], *also["matrix"]]
    values = [value for row in rows for value in row]
    values += [value for one in retrieval for recalls in (one["zero_shot"], *one["after"]) for value in flat_recalls(recalls).values()]
    lengths = {len(also["matrix"]), *(len(one["after"]) for one in retrieval)}
    is_whole = lengths == {num_rows} and all(len(row) == len(also["datasets"]) for row in rows)
    if not is_whole or not all(0 <= value <= 100 for value in values):
        raise DataError(f"{path}: what it holds of datasets and pairs beside the tasks is no percentage for each task. {_ADVICE}")


def read_metrics(run: Path, num_tasks: int) -> list[dict[str, Any]]:
    """The logged steps of all tasks, in order; a line that is being written is left out. Raises DataError."""
    path = run / METRICS_FILE
    rows = read_json_lines(path, _METRICS, DataError, _ADVICE)
    for number, row in enumerate(rows, start=1):
        if not 0 <= row["task_index"] < num_tasks or not 0 <= row["step"] < 2**31:
            raise DataError(f"{path}, line {number}: there is no step {row['step']} of task {row['task_index']}. {_ADVICE}")
    return rows


def read_summary(run: Path) -> dict[str, Any]:
    """summary.json of a finished run. Raises DataError."""
    return read_json_object(run / SUMMARY_FILE, _SUMMARY, DataError, _ADVICE)


def read_timing(run: Path) -> dict[str, dict[str, float]]:
    """timing.json: seconds spent so far by task, {"train": {...}, "evaluate": {...}}. Raises DataError."""
    path = run / TIMING_FILE
    return read_json_object(path, _TIMING, DataError, _ADVICE) if path.exists() else {"train": {}, "evaluate": {}}
