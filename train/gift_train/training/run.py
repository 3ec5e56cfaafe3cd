"""The run, top to bottom: check everything, then for each task train, save, evaluate. Run again, it goes on where it stopped."""

import sys
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from gift_shared.preemption import PreemptionNotice
from gift_train.data.replay import ReplayDataset
from gift_train.distributed import init_distributed
from gift_train.evaluation.cache import EvaluationCache
from gift_train.evaluation.evaluate import evaluate_readings
from gift_train.records import checkpoint
from gift_train.records.checkpoint import ResumePoint, seed_everything
from gift_train.records.diagnostics.files import ZERO_SHOT, diagnostics_file
from gift_train.records.diagnostics.record import PredictionRecorder, StepMeasures, record_forgotten, record_predictions, record_replay
from gift_train.records.provenance import git_commit
from gift_train.records.trackers import flat_numbers
from gift_train.training.data_time import warn_if_starved
from gift_train.training.loop import Intervals, Schedule, Training, build_optimizer, train_task
from gift_train.training.preemption import PreemptionCheck
from gift_train.training.recorder import TaskRecorder
from gift_train.training.setup import Run, RunRequest, prepare, require_same_run
from gift_train.training.task import TaskInputs, replay_stream, task_batches, task_context


def run(request: RunRequest, notice: PreemptionNotice) -> dict[str, Any] | None:
    """Train and evaluate an order of tasks. Returns the summary; None if `stop_after` ended it early.

    `notice` is open: whoever owns the process opened it, before the slow imports. Started by `accelerate launch` or `torchrun`, the
    processes of a run share every batch, and the main one writes.
    Raises: GiftError of the kind that fits, before any training, for names, files, counts or folders that do not; Preempted when a
    signal asked for the machine and the state is saved.
    """
    with init_distributed(request.device) as ranks:
        departure = PreemptionCheck(notice, None if ranks.world_size == 1 else ranks.any_rank)
        this = ranks.all_or_none(lambda: prepare(request, departure, ranks))
        require_same_run(this)
        with closing(this.folder), closing(this.record.trackers), this.record.log as log:
            log.write("started", command=sys.argv, commit=git_commit(), world_size=ranks.world_size)
            summary = _go_through(this)
            log.write("ended", is_finished=summary is not None)
            return summary


def _go_through(this: Run) -> dict[str, Any] | None:
    accuracies = this.folder.accuracies(this.order.name, this.order.tasks)
    if accuracies["zero_shot"] is None:
        accuracies["zero_shot"] = _evaluate(this, "zero-shot", 0)[""]
        this.folder.save_accuracies(accuracies)
    for index, name in enumerate(this.order.tasks[: this.request.stop_after]):
        if len(accuracies["matrix"]) > index:
            continue
        if this.method.trains:
            _learn(this, index, name)
            _diagnose(this, index, name)
            rows = _evaluate(this, f"after task {index + 1}/{len(this.order.tasks)}", index + 1)
        else:
            rows = {"": accuracies["zero_shot"]}
        accuracy = dict(zip(this.order.tasks, rows[""], strict=True))
        this.record.trackers.log((index + 1) * (this.recipe.steps + 1), flat_numbers({"accuracy": accuracy}))
        accuracies["matrix"].append(rows.pop(""))
        for reading, row in rows.items():
            accuracies.setdefault("readings", {}).setdefault(reading, []).append(row)
        this.folder.save_accuracies(accuracies)
    return this.folder.finish(accuracies) if len(accuracies["matrix"]) == len(this.order.tasks) else None


def _learn(this: Run, index: int, name: str) -> None:
    """Train one task, or take what an earlier start of this run trained. Leaves its result in the student."""
    checkpoints, method, student, ranks = this.folder.checkpoints, this.method, this.student, this.ranks
    result = checkpoint.task_file(checkpoints, index, name)
    if ranks.broadcast_object(result.is_file):
        place = checkpoint.load_task(result, student, method, ranks)
        this.folder.cut_metrics(place.metrics_bytes)
        return
    label = f"{this.recipe.method} {index + 1}/{len(this.order.tasks)} {name}"
    from_its_start = f"{label}, from its start on"
    this.record.departure.check(from_its_start)
    _load_start(this, index)
    inputs = _inputs(this, index, name, from_its_start)
    seed_everything(inputs.task_seed)
    replay = replay_stream(inputs, method, student)
    measures = StepMeasures.at_task_start(method, student) if this.recipe.diagnostics and ranks.is_main else None
    method.begin_task(task_context(inputs, method, student, replay), student)
    parameters = method.trainable(student)
    training = Training(
        method=method,
        student=student,
        parameters=parameters,
        optimizer=build_optimizer(parameters, this.recipe.optimizer),
        schedule=Schedule(peak=this.recipe.peak_rate(name), warmup_steps=this.recipe.warmup_steps, total_steps=this.recipe.steps),
        ranks=ranks,
    )
    place = checkpoint.load_progress(checkpoints, index, training) or _first_place(this, index, name)
    ranks.synchronize_rng()
    this.folder.cut_metrics(place.metrics_bytes)
    callbacks = TaskRecorder(this.record, place, measures, inputs.num_updates, label)
    callbacks.event("resumed" if place.next_step else "task_started", step=place.next_step)
    intervals = Intervals(
        log_every=this.recipe.log_every,
        checkpoint_every=this.recipe.checkpoint_every,
        checkpoint_minutes=this.recipe.checkpoint_minutes,
    )
    waited = train_task(training, task_batches(inputs, student, replay, place.next_step), place.next_step, intervals, callbacks, label)
    method.end_task(student)
    done = callbacks.place_now(inputs.num_updates)
    this.folder.add_time("train", name, done.train_seconds)
    this.folder.add_waiting(name, waited)
    warn_if_starved(label, waited, this.request.num_workers)
    if ranks.is_main:
        checkpoint.save_task(checkpoints, done, student, method.state_dict())
        checkpoint.clear_progress(checkpoints)
    callbacks.event("task_ended", seconds=round(done.train_seconds, 3), waited=round(waited, 4))


def _load_start(this: Run, index: int) -> None:
    """The weights and the method's state that the task before handed on; the initial ones for the first task."""
    if index == 0:
        this.student.load_weights(this.initial_weights)
        return
    checkpoint.load_task(_result_before(this, index), this.student, this.method, this.ranks)


def _result_before(this: Run, index: int) -> Path:
    return checkpoint.task_file(this.folder.checkpoints, index - 1, this.order.tasks[index - 1])


def _first_place(this: Run, index: int, name: str) -> ResumePoint:
    size = checkpoint.read_place(_result_before(this, index)).metrics_bytes if index > 0 and this.ranks.is_main else 0
    return ResumePoint(task_index=index, task_name=name, next_step=0, metrics_bytes=size, train_seconds=0.0)


def _inputs(this: Run, index: int, name: str, what_is_left: str) -> TaskInputs:
    return TaskInputs(
        recipe=this.recipe,
        seed=this.request.seed,
        name=name,
        index=index,
        tasks=this.tasks,
        initial_weights=this.initial_weights,
        shards=this.request.shards,
        replay_rows=this.replay_rows.get(name),
        evaluation_transform=this.transforms.evaluation,
        num_workers=this.request.num_workers,
        cache_bytes=this.request.cache_bytes,
        no_task_images=this.no_task_images,
        reference_images=this.reference_images,
        reference_texts=this.reference_texts,
        ranks=this.ranks,
        # Not by way of `this`: the method keeps what it is given here, and a circle would keep a table's finished runs in memory.
        may_leave=partial(this.record.departure.check_alone, what_is_left),
    )


def _diagnose(this: Run, index: int, name: str) -> None:
    """Note how the task changed the fit of the synthetic images it replayed, between the weights it was given and its own."""
    if not this.ranks.is_main:
        return
    path = diagnostics_file(this.folder.path, "replay", index + 1, name)
    if not this.recipe.diagnostics or name not in this.replay_rows or path.is_file():
        return
    assert this.request.shards is not None
    before = this.student.frozen_copy()
    if index == 0:
        before.load_weights(this.initial_weights)
    else:
        checkpoint.load_task(_result_before(this, index), before)
    images = ReplayDataset(this.request.shards, this.replay_rows[name], this.transforms.evaluation)
    record_replay(path, images, before, this.student, this.recipe.evaluation_batch_size)


def _evaluate(this: Run, description: str, number: int) -> dict[str, list[float]]:
    """Accuracy of the student as it is on every dataset of the order, in percent, for each reading of its weights.

    `number` counts evaluations: 0 is the zero-shot one, t the one after the t-th task.
    """
    name = this.order.tasks[number - 1] if number else ZERO_SHOT
    noted, folder = PredictionRecorder(this.method), this.request.evaluation_cache
    started = time.monotonic()
    found = evaluate_readings(
        this.record.departure.watching(noted if this.recipe.diagnostics else this.method, f"evaluation, {description}"),
        this.student,
        {name: (task.manifest, task.test) for name, task in this.tasks.items()},
        batch_size=this.recipe.evaluation_batch_size,
        num_workers=this.request.num_workers,
        cache=None if folder is None else EvaluationCache(folder, this.request.num_workers),
        ranks=this.ranks,
        description=description,
    )
    seconds = time.monotonic() - started
    this.folder.add_time("evaluate", name, seconds)
    this.record.log.write("evaluated", after=name, seconds=round(seconds, 3), accuracy=found[""])
    noted.share(this.ranks)
    if this.recipe.diagnostics and this.ranks.is_main:
        record_predictions(this.folder.path, number, name, this.tasks, noted)
        if number:
            record_forgotten(this.folder.path, number, this.order.tasks, this.tasks)
    return {reading: [accuracies[name] for name in this.order.tasks] for reading, accuracies in found.items()}
