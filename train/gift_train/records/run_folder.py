"""A run's folder: what identifies it, what is logged, its accuracy matrix and its summary. Reports read these files.

RUN/run.json              resolved recipe, order, seed, model, shards; versions, hardware, command, times
RUN/metrics.jsonl         one line per logged step; experiment trackers get the same
RUN/log.jsonl             what happened and when, over all starts of the run
RUN/accuracy_matrix.json  percent; one row per finished task, and the zero-shot row; "readings": further matrices by name,
                          where a method's weights can be read in more than one way (MoE-Adapter's two routings);
                          "label_spaces": the same of further label spaces; "also" and "retrieval": see beside.py
RUN/summary.json          when the run is complete
RUN/replay/<task>.parquet the index rows the task replayed
RUN/few_shot/<task>.json  the training images of an order with `shots`
RUN/checkpoints/          see checkpoint.py
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from gift_shared.atomic import TEMPORARY_SUFFIX, write_json
from gift_shared.errors import ConfigError, DataError, Preempted
from gift_shared.event_log import EventLog
from gift_shared.locks import only_writer
from gift_shared.manifests import MTIL, LabelSpace, OrderManifest
from gift_shared.version import git_commit
from gift_train.distributed import SINGLE, Ranks
from gift_train.evaluation.metrics import metrics_of
from gift_train.records.accuracies import begun, further_spaces, own_space
from gift_train.records.beside import beside_summary
from gift_train.records.files import (
    LOG_FILE,
    MATRIX_FILE,
    METRICS_FILE,
    RUN_FILE,
    TIMING_FILE,
    read_accuracies,
    read_record,
    read_timing,
)  # fmt: skip
from gift_train.records.identity import difference
from gift_train.records.provenance import hardware, versions
from gift_train.records.trackers import Trackers, flat_numbers

LOCK = ".lock"


class RunFolder:
    """Opens a new run, or the same run again; refuses the folder of another one (ConfigError).

    One run at a time: another one that opens the same folder is refused (ConfigError) until `close`, or this one's end. Of a run's
    ranks the main one reads and writes; the others, which need not even see the folder, are told what it reads.

    A context manager: the end of its block is noted in log.jsonl (preempted, interrupted or failed) and lets go of folder and trackers.

    Args:
        identity: what makes two runs the same run, see `identity.difference`.
        options: all that this start was told, for the record.
        trackers: names of accelerate's trackers, which are told what metrics.jsonl is.
    """

    def __init__(
        self,
        path: Path,
        identity: Mapping[str, Any],
        ranks: Ranks = SINGLE,
        *,
        options: Mapping[str, Any] | None = None,
        trackers: Sequence[str] = (),
    ) -> None:
        self.identity = identity
        self.ranks = ranks
        self._held = ExitStack()
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.replay = path / "replay"
        self.few_shot = path / "few_shot"
        self._run_file = path / RUN_FILE
        self._matrix_file = path / MATRIX_FILE
        self._timing_file = path / TIMING_FILE
        self.metrics_file = path / METRICS_FILE
        self._events = EventLog(path / LOG_FILE)
        self._trackers: Trackers | None = None
        if ranks.is_main:
            self._open(options or {})
            told = {"recipe": identity["recipe"]["title"], "order": identity["order"], "seed": identity["seed"]}
            self._trackers = Trackers(trackers, path, told)

    def _open(self, options: Mapping[str, Any]) -> None:
        path, identity = self.path, self.identity
        check_place(path, identity)
        path.mkdir(parents=True, exist_ok=True)
        self._held.enter_context(only_writer(path / LOCK, f"Run folder {path}"))
        for stale in path.rglob(f".*{TEMPORARY_SUFFIX}"):
            stale.unlink()  # a killed start left it half-written
        is_new = not self._run_file.is_file()
        if not is_new:
            self.record = read_record(path)
        else:
            self.record = {
                "identity": identity,
                "command": sys.argv,
                "options": options,
                "versions": versions(),
                "commit": git_commit(),
                "hardware": hardware(),
                "started": _now(),
                "ended": None,
            }
            self.record |= identity
        if is_new or self.record.get("processes") != self.ranks.world_size:
            self.record["processes"] = self.ranks.world_size  # of the last start; they change rounding, not the run
            write_json(self._run_file, self.record)

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            event = "preempted" if isinstance(error, Preempted) else "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            with suppress(OSError):  # the disk may be full, which is what the error already says
                self.event(event, error=type(error).__name__, message=" ".join(str(error).split()))
        self.close()

    def close(self) -> None:
        """Let go of the folder, and end the trackers."""
        if self._trackers is not None:
            self._trackers.close()
        self._held.close()

    def event(self, name: str, **fields: Any) -> None:
        """Append one event to log.jsonl, e.g. `event("task_started", task=..., step=0)`."""
        if self.ranks.is_main:
            self._events.write(name, **fields)

    def metrics_size(self) -> int:
        """Bytes of metrics.jsonl, after everything written is on disk; 0 on other ranks than the main one."""
        if not self.ranks.is_main or not self.metrics_file.exists():
            return 0
        with self.metrics_file.open("ab") as file:
            os.fsync(file.fileno())
            return file.tell()

    def cut_metrics(self, size: int) -> None:
        """Forget the steps that were logged after the checkpoint a run resumes from. Raises DataError if earlier ones are gone."""
        if not self.ranks.is_main:
            return
        found = self.metrics_file.stat().st_size if self.metrics_file.exists() else 0
        if found < size:
            raise DataError(f"{self.metrics_file} has {found} bytes, its checkpoint claims {size}: it was cut. Restore it, or start anew.")
        if found > size:
            os.truncate(self.metrics_file, size)

    def log_step(self, row: Mapping[str, Any], step: int) -> None:
        """Append one logged step to metrics.jsonl and tell the trackers; `step` counts over the whole run."""
        if not self.ranks.is_main:
            return
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.track(step, row)

    def track(self, step: int, values: Mapping[str, Any]) -> None:
        """Tell the trackers alone; inner tables become `table/key`."""
        if self._trackers is not None:
            self._trackers.log(step, flat_numbers(values))

    def accuracies(self, order: OrderManifest, test_images: Sequence[int], spaces: Sequence[LabelSpace] = ("known",)) -> dict[str, Any]:
        """The accuracy matrix as far as it is known. test_images: how many each dataset has; spaces: the first is the order's own."""
        found = self.ranks.broadcast_object(lambda: read_accuracies(self.path, order.tasks))
        protocol = {} if order.protocol == MTIL else {"protocol": order.protocol}
        return (found or begun(order.name, order.tasks, spaces)) | {"test_images": list(test_images)} | protocol

    def save_accuracies(self, accuracies: Mapping[str, Any]) -> None:
        """Keep the accuracy matrix."""
        if self.ranks.is_main:
            write_json(self._matrix_file, accuracies)

    def timing(self) -> dict[str, dict[str, float]]:
        """Seconds spent so far, by task: {"train": {...}, "evaluate": {...}}, and "waited", see `add_waiting`."""
        return read_timing(self.path)

    def add_time(self, kind: str, task: str, seconds: float) -> None:
        if not self.ranks.is_main:
            return
        timing = self.timing()
        timing[kind][task] = seconds
        write_json(self._timing_file, timing)

    def add_waiting(self, task: str, share: float) -> None:
        """Note the fraction of a task's training time in which steps waited for their batches; of the last start, if resumed."""
        if not self.ranks.is_main:
            return
        timing = self.timing()
        timing.setdefault("waited", {})[task] = share
        write_json(self._timing_file, timing)

    def finish(self, accuracies: Mapping[str, Any]) -> dict[str, Any]:
        """Write summary.json and close run.json; returns the summary, on all ranks."""
        return self.ranks.broadcast_object(lambda: self._finish(accuracies))

    def _finish(self, accuracies: Mapping[str, Any]) -> dict[str, Any]:
        matrix, datasets = accuracies["matrix"], accuracies["datasets"]
        metrics = metrics_of(accuracies, matrix)
        identity, timing = self.record["identity"], self.timing()
        waited = timing.get("waited", {})
        summary = {
            "method": identity["recipe"]["method"],
            "title": identity["recipe"]["title"],
            "recipe": identity["recipe_name"],
            "order": identity["order"],
            "seed": identity["seed"],
            **({"protocol": accuracies["protocol"]} if "protocol" in accuracies else {}),
            **asdict(metrics),
            "readings": {name: asdict(metrics_of(accuracies, other)) for name, other in accuracies.get("readings", {}).items()},
            "label_space": own_space(accuracies),
            "label_spaces": {space: asdict(metrics_of(accuracies, one["matrix"])) for space, one in further_spaces(accuracies).items()},
            "per_dataset": {
                name: {
                    "zero_shot": accuracies["zero_shot"][column],
                    "transfer": None if metrics.transfer is None or not column else sum(row[column] for row in matrix[:column]) / column,
                    "avg": sum(row[column] for row in matrix) / len(matrix),
                    "learned": matrix[column][column],
                    "last": matrix[-1][column],
                }
                for column, name in enumerate(datasets)
            },
            **beside_summary(accuracies),
            "seconds": {kind: sum(timing[kind].values()) for kind in ("train", "evaluate")},
            "waited": sum(share * timing["train"][task] for task, share in waited.items()) / max(sum(timing["train"].values()), 1e-9),
        }
        write_json(self.path / "summary.json", summary)
        if self.record["ended"] is None:
            self.record["ended"] = _now()
            write_json(self._run_file, self.record)
        return summary


def check_place(path: Path, identity: Mapping[str, Any]) -> None:
    """Whether a folder is free for this run or holds it already; touches nothing. Raises ConfigError naming the first difference."""
    # Asked before run.json, which is written first: another process may begin the same run between the two looks.
    is_free = not path.exists() or (path.is_dir() and all(map(_is_left_by_a_killed_start, path.iterdir())))
    if (path / RUN_FILE).exists():
        found = difference(read_record(path).get("identity", {}), json.loads(json.dumps(identity)))
        if found is not None:
            raise ConfigError(f"--out {path} holds another run: {found}. Choose another folder.")
    elif not is_free:
        raise ConfigError(f"--out {path} exists and is not the folder of a run (no run.json). Choose another folder.")


def _is_left_by_a_killed_start(entry: Path) -> bool:
    """Whether a file is what a start makes before its run.json is whole."""
    return entry.name == LOCK or (entry.name.startswith(f".{RUN_FILE}.") and entry.name.endswith(TEMPORARY_SUFFIX))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
