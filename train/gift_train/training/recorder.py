"""What one task's loop calls back: logs a step, saves the state, leaves when the run was told to."""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import NoReturn

from gift_train.records import checkpoint
from gift_train.records.checkpoint import ResumePoint
from gift_train.records.diagnostics.record import StepMeasures
from gift_train.records.run_folder import RunFolder
from gift_train.training.loop import Training
from gift_train.training.preemption import PreemptionCheck


class TaskRecorder:
    """The callbacks of one task from `start` on; `updates_before`: of all tasks before it; `label` names it to people."""

    def __init__(
        self,
        folder: RunFolder,
        preemption: PreemptionCheck,
        start: ResumePoint,
        *,
        measures: StepMeasures | None,
        num_updates: int,
        updates_before: int,
        label: str,
    ) -> None:
        self.folder = folder
        self.preemption = preemption
        self.start = start
        self.measures = measures
        self.num_updates = num_updates
        self.updates_before = updates_before
        self.label = label
        self.started = time.monotonic()

    def log(self, step: int, learning_rate: float, terms: Mapping[str, float]) -> None:
        """One line of metrics.jsonl, to the trackers too; the main rank's alone."""
        if not self.folder.ranks.is_main:
            return
        row = {"task": self.start.task_name, "task_index": self.start.task_index, "step": step, "learning_rate": learning_rate}
        row |= {"terms": dict(terms), "loss": sum(terms.values(), 0.0)}
        if self.measures is not None:
            row |= {"measurements": self.measures()}
        self.folder.log_step(row, self.updates_before + step)

    def save(self, next_step: int, training: Training) -> None:
        """Keep the state in checkpoints/progress, so that `next_step` can be the first after a restart; all ranks have the same."""
        if not self.folder.ranks.is_main:
            return
        started = time.monotonic()
        checkpoint.save_progress(self.folder.checkpoints, self.reached(next_step), training)
        self.event("checkpoint_saved", step=next_step, seconds=round(time.monotonic() - started, 3))

    def must_leave(self, step: int) -> bool:
        """Whether the run was told to leave; the same answer on every rank."""
        return self.preemption.is_due(step)

    def leave(self, next_step: int) -> NoReturn:
        """End the run here. Raises Preempted."""
        self.preemption.leave(f"{self.label}, from step {next_step} of {self.num_updates} on")

    def event(self, name: str, **fields: object) -> None:
        """One line of log.jsonl that names the task."""
        self.folder.event(name, task=self.start.task_name, task_index=self.start.task_index, **fields)

    def reached(self, next_step: int) -> ResumePoint:
        """Where the run is, metrics.jsonl being on disk up to here."""
        seconds = self.start.train_seconds + time.monotonic() - self.started
        return replace(self.start, next_step=next_step, metrics_bytes=self.folder.metrics_size(), train_seconds=seconds)
