"""What one task's training leaves behind while it runs: metrics.jsonl and the trackers, checkpoints/progress, events in log.jsonl."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NoReturn

from gift_train.records import checkpoint
from gift_train.records.checkpoint import ResumePoint
from gift_train.records.diagnostics.record import StepMeasures
from gift_train.records.run_folder import RunFolder
from gift_train.records.run_log import RunLog
from gift_train.records.trackers import Trackers, flat_numbers
from gift_train.training.loop import Training
from gift_train.training.preemption import PreemptionCheck


@dataclass(frozen=True, kw_only=True)
class Record:
    """Where a run writes to, and whether it must leave."""

    folder: RunFolder
    trackers: Trackers
    log: RunLog
    departure: PreemptionCheck


class TaskRecorder:
    """The callbacks of one task's loop, from `place` on; `num_updates` is that of every task, `label` names it to people."""

    def __init__(self, record: Record, place: ResumePoint, measures: StepMeasures | None, num_updates: int, label: str) -> None:
        self.record = record
        self.steps_before = place.task_index * num_updates
        self.num_updates = num_updates
        self.place = place
        self.measures = measures
        self.label = label
        self.started = time.monotonic()

    def log(self, step: int, learning_rate: float, terms: Mapping[str, float]) -> None:
        """One line of metrics.jsonl, to the trackers too; the main rank's alone."""
        if not self.record.folder.ranks.is_main:
            return
        row = {"task": self.place.task_name, "task_index": self.place.task_index, "step": step, "learning_rate": learning_rate}
        row |= {"terms": dict(terms), "loss": sum(terms.values())}
        if self.measures is not None:
            row |= {"measurements": self.measures()}
        self.record.folder.log([row])
        self.record.trackers.log(self.steps_before + step, flat_numbers(row))

    def save(self, next_step: int, training: Training) -> None:
        """Keep the state in checkpoints/progress, so that `next_step` can be the first after a restart; all ranks have the same."""
        if not self.record.folder.ranks.is_main:
            return
        started = time.monotonic()
        checkpoint.save_progress(self.record.folder.checkpoints, self.place_now(next_step), training)
        self.event("checkpoint_saved", step=next_step, seconds=round(time.monotonic() - started, 3))

    def must_leave(self, step: int) -> bool:
        return self.record.departure.is_due(step)

    def leave(self, next_step: int) -> NoReturn:
        self.record.departure.leave(f"{self.label}, from step {next_step} of {self.num_updates} on")

    def event(self, name: str, **fields: object) -> None:
        """One line of log.jsonl that names the task."""
        self.record.log.write(name, task=self.place.task_name, task_index=self.place.task_index, **fields)

    def place_now(self, next_step: int) -> ResumePoint:
        """Where the run is, metrics.jsonl being on disk up to here."""
        seconds = self.place.train_seconds + time.monotonic() - self.started
        return replace(self.place, next_step=next_step, metrics_bytes=self.record.folder.metrics_size(), train_seconds=seconds)
