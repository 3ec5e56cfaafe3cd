"""A run's folder: what identifies it, its log, its accuracy matrix and its summary. Reports read these files.

RUN/run.json              resolved recipe, order, seed, model, shards; versions, hardware, command, times
RUN/metrics.jsonl         one line per logged step
RUN/accuracy_matrix.json  percent; one row per finished task, and the zero-shot row; "readings": further matrices by name,
                          where a method's weights can be read in more than one way (MoE-Adapter's two routings)
RUN/summary.json          when the run is complete
RUN/replay/<task>.parquet the index rows the task replayed
RUN/checkpoints/          see checkpoint.py
"""

import json
import os
import sys
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gift_shared.atomic import TEMPORARY_SUFFIX, write_json
from gift_shared.errors import ConfigError, DataError
from gift_shared.locks import only_writer
from gift_train.metrics import continual_metrics
from gift_train.provenance import git_commit, hardware, versions

LOCK = ".lock"


class RunFolder:
    """Opens a new run, or the same run again; refuses the folder of another one (ConfigError).

    One process at a time: another one that opens the same folder is refused (ConfigError) until `close`, or this one's end.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        check_place(path, identity)
        path.mkdir(parents=True, exist_ok=True)
        self._held = ExitStack()
        self._held.enter_context(only_writer(path / LOCK, f"Run folder {path}"))
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.replay = path / "replay"
        self._run_file = path / "run.json"
        self._matrix_file = path / "accuracy_matrix.json"
        self._timing_file = path / "timing.json"
        self.metrics_file = path / "metrics.jsonl"
        for stale in path.rglob(f".*{TEMPORARY_SUFFIX}"):
            stale.unlink()  # a killed start left it half-written
        if self._run_file.is_file():
            self.record = _read_json(self._run_file)
        else:
            self.record = {
                "identity": identity,
                "command": sys.argv,
                "versions": versions(),
                "commit": git_commit(),
                "hardware": hardware(),
                "started": _now(),
                "ended": None,
            }
            self.record |= identity
            write_json(self._run_file, self.record)

    def close(self) -> None:
        """Let go of the folder."""
        self._held.close()

    def metrics_size(self) -> int:
        """Bytes of metrics.jsonl, after everything written is on disk."""
        if not self.metrics_file.exists():
            return 0
        with self.metrics_file.open("ab") as file:
            os.fsync(file.fileno())
            return file.tell()

    def cut_metrics(self, size: int) -> None:
        """Forget the steps that were logged after the checkpoint a run resumes from. Raises DataError if earlier ones are gone."""
        found = self.metrics_file.stat().st_size if self.metrics_file.exists() else 0
        if found < size:
            raise DataError(f"{self.metrics_file} has {found} bytes, its checkpoint claims {size}: it was cut. Restore it, or start anew.")
        if found > size:
            os.truncate(self.metrics_file, size)

    def log(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows to metrics.jsonl."""
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def accuracies(self, order: str, datasets: Iterable[str]) -> dict[str, Any]:
        """The accuracy matrix as far as it is known."""
        if self._matrix_file.is_file():
            return _read_json(self._matrix_file)
        return {"order": order, "datasets": list(datasets), "zero_shot": None, "matrix": []}

    def save_accuracies(self, accuracies: Mapping[str, Any]) -> None:
        write_json(self._matrix_file, accuracies)

    def timing(self) -> dict[str, dict[str, float]]:
        """Seconds spent so far, by task: {"train": {...}, "evaluate": {...}}."""
        return _read_json(self._timing_file) if self._timing_file.is_file() else {"train": {}, "evaluate": {}}

    def add_time(self, kind: str, task: str, seconds: float) -> None:
        timing = self.timing()
        timing[kind][task] = seconds
        write_json(self._timing_file, timing)

    def finish(self, accuracies: Mapping[str, Any]) -> dict[str, Any]:
        """Write summary.json and close run.json; returns the summary."""
        matrix, datasets = accuracies["matrix"], accuracies["datasets"]
        identity = self.record["identity"]
        summary = {
            "method": identity["recipe"]["method"],
            "title": identity["recipe"]["title"],
            "recipe": identity["recipe_name"],
            "order": identity["order"],
            "seed": identity["seed"],
            **asdict(continual_metrics(matrix)),
            "readings": {name: asdict(continual_metrics(other)) for name, other in accuracies.get("readings", {}).items()},
            "per_dataset": {
                name: {
                    "zero_shot": accuracies["zero_shot"][column],
                    "transfer": sum(row[column] for row in matrix[:column]) / column if column else None,
                    "avg": sum(row[column] for row in matrix) / len(matrix),
                    "learned": matrix[column][column],
                    "last": matrix[-1][column],
                }
                for column, name in enumerate(datasets)
            },
            "seconds": {kind: sum(times.values()) for kind, times in self.timing().items()},
        }
        write_json(self.path / "summary.json", summary)
        if self.record["ended"] is None:
            self.record["ended"] = _now()
            write_json(self._run_file, self.record)
        return summary


def check_place(path: Path, identity: Mapping[str, Any]) -> None:
    """Whether a folder is free for this run or holds it already; touches nothing. Raises ConfigError naming the first difference."""
    run_file = path / "run.json"
    if run_file.is_file():
        _require_same(path, _read_json(run_file).get("identity", {}), json.loads(json.dumps(identity)))
    elif path.exists() and (not path.is_dir() or any(entry.name != LOCK for entry in path.iterdir())):
        raise ConfigError(f"--out {path} exists and is not the folder of a run (no run.json). Choose another folder.")


def _require_same(path: Path, there: Any, here: Any, key: str = "") -> None:
    if isinstance(there, dict) and isinstance(here, dict):
        for name in sorted(there.keys() | here.keys()):
            _require_same(path, there.get(name), here.get(name), f"{key}.{name}" if key else name)
    elif there != here:
        raise ConfigError(f"--out {path} holds another run: {key} is {there!r} there and {here!r} here. Choose another folder.")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, UnicodeDecodeError, ValueError) as error:
        raise DataError(f"{path} is not readable JSON ({error}). Restore it, or choose another folder.") from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
