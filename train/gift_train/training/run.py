"""The run, top to bottom: check everything, then for each task train, save, evaluate. Run again, it goes on where it stopped."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from gift_shared.manifests import LabelSpace
from gift_shared.preemption import PreemptionNotice
from gift_shared.version import git_commit
from gift_train.data.loader import end_loader_processes
from gift_train.data.replay import ReplayDataset
from gift_train.distributed import init_distributed
from gift_train.evaluation.beside import BesideScores
from gift_train.evaluation.cache import EvaluationCache
from gift_train.evaluation.evaluate import Accuracies, evaluate_spaces
from gift_train.evaluation.label_spaces import LabelSpaces
from gift_train.options import RunOptions
from gift_train.records import checkpoint
from gift_train.records.accuracies import Row, add_row, set_zero_shot
from gift_train.records.beside import add_beside, begin_beside
from gift_train.records.checkpoint import ResumePoint, seed_everything
from gift_train.records.diagnostics.files import ZERO_SHOT, diagnostics_file
from gift_train.records.diagnostics.record import PredictionRecorder, StepMeasures, record_forgotten, record_predictions, record_replay
from gift_train.training.all_tasks import task_setup
from gift_train.training.data_time import warn_if_starved
from gift_train.training.faults import machine_faults
from gift_train.training.loop import Intervals, Schedule, Training, build_optimizer, train_task
from gift_train.training.preemption import PreemptionCheck
from gift_train.training.recorder import TaskRecorder
from gift_train.training.setup import Run, prepare, require_same_run
from gift_train.training.task import ReplayStream, TaskSetup


def train(options: RunOptions, notice: PreemptionNotice) -> dict[str, Any] | None:
    """Train and evaluate an order of tasks. Returns the summary; None if `stop_after` ended it early.

    `notice` is open: whoever owns the process opened it, before the slow imports. Started by `accelerate launch` or `torchrun`, the
    processes of a run share every batch, and the main one writes.
    Raises: GiftError of the kind that fits, before any training, for names, files, counts or folders that do not; Preempted when a
    signal asked for the machine and the state is saved.
    """
    with _loader_processes_ended(), init_distributed(options.device) as ranks:
        run = ranks.all_or_none(lambda: prepare(options, PreemptionCheck(notice, ranks), ranks))
        require_same_run(run)
        with run.folder as folder, machine_faults():
            folder.event("started", command=sys.argv, commit=git_commit(), world_size=ranks.world_size)
            summary = _go_through(run)
            folder.event("ended", is_finished=summary is not None)
            return summary


@contextmanager
def _loader_processes_ended() -> Iterator[None]:
    """However the block ends, so do all processes that load images: an error's traceback would keep them."""
    try:
        yield
    finally:
        end_loader_processes()


def _go_through(run: Run) -> dict[str, Any] | None:
    plan, folder = run.setup.plan, run.folder
    names = plan.order.tasks
    accuracies = folder.accuracies(plan.order, [len(run.setup.tasks[name].test) for name in names], plan.label_spaces)
    # One model stands for all rows where nothing is trained, or all at once: what has been learned by then decides the classes alone.
    numbers = range(len(accuracies["matrix"]) + 1, len(names[: plan.options.stop_after]) + 1)
    untrained = _evaluate(run, "zero-shot", 0, range(len(names) + 1)) if numbers and not run.method.trains else {}
    if accuracies["zero_shot"] is None:
        set_zero_shot(accuracies, untrained[0] if untrained else _evaluate(run, "zero-shot", 0, [0])[0])
        begin_beside(accuracies, _evaluate_beside(run, "zero-shot", 0))
        folder.save_accuracies(accuracies)
    rows = dict(untrained)
    for number in numbers:
        beside = None
        if number not in rows:
            task = task_setup(run.setup, run.method, number - 1)
            _learn(run, task)
            _diagnose(run, number - 1)
            description = f"after task {task.num_learned}/{len(names)}"
            rows |= _evaluate(run, description, task.num_learned, range(number, task.num_learned + 1))
            beside = _evaluate_beside(run, description, task.num_learned)
        done = number if run.method.mixture() is None else len(names)
        folder.track(sum(run.setup.num_updates[:done]), _accuracy_by_name(rows[number], plan.label_spaces, names))
        add_row(accuracies, rows[number])
        add_beside(accuracies, beside)
        folder.save_accuracies(accuracies)
    return folder.finish(accuracies) if len(accuracies["matrix"]) == len(names) else None


def _learn(run: Run, task: TaskSetup) -> None:
    """Train one task, or take what an earlier start of this run trained. Leaves its result in the student."""
    folder, method, student, ranks = run.folder, run.method, run.student, run.setup.ranks
    result = checkpoint.task_file(folder.checkpoints, task.index, task.name)
    if ranks.broadcast_object(result.is_file):
        point = checkpoint.load_task(result, student, method, ranks)
        folder.cut_metrics(point.metrics_bytes)
        return
    run.setup.preemption.check(f"{task.label}, from its start on")
    _load_start(run, task.index)
    seed_everything(task.seed)
    replay = task.replay_stream(method, student)
    is_measured = task.recipe.diagnostics and ranks.is_main and method.trains_weights
    measures = StepMeasures.at_task_start(method, student) if is_measured else None
    method.begin_task(task.context(method, student, replay), student)
    training = _training(run, task)
    start = checkpoint.load_progress(folder.checkpoints, task.index, training) or _first_point(run, task)
    ranks.synchronize_rng()
    folder.cut_metrics(start.metrics_bytes)
    recorder = TaskRecorder(
        folder,
        run.setup.preemption,
        start,
        measures=measures,
        num_updates=task.num_updates,
        updates_before=sum(run.setup.num_updates[: task.index]),
        label=task.label,
    )
    recorder.event("resumed" if start.next_step else "task_started", step=start.next_step)
    waited = _train_task(training, task, replay, recorder)
    method.end_task(student)
    _hand_on(run, task, recorder, waited)


def _training(run: Run, task: TaskSetup) -> Training:
    recipe, parameters = task.recipe, run.method.trainable(run.student)
    peak = task.peak_rate if run.method.trains_weights else 0.0
    return Training(
        method=run.method,
        student=run.student,
        parameters=parameters,
        optimizer=build_optimizer(parameters, recipe.optimizer),
        schedule=Schedule(peak=peak, warmup_steps=recipe.warmup_steps, total_steps=task.num_updates - 1),
        ranks=run.setup.ranks,
        compiled=run.compiled,
    )


def _train_task(training: Training, task: TaskSetup, replay: ReplayStream | None, recorder: TaskRecorder) -> float:
    """All steps from the recorder's start on. Returns the share of the time that they waited for their batches, fraction."""
    intervals = Intervals(
        log_every=task.recipe.log_every,
        checkpoint_every=task.recipe.checkpoint_every,
        checkpoint_minutes=task.recipe.checkpoint_minutes,
    )
    first_step = recorder.start.next_step
    return train_task(training, task.batches(training.student, replay, first_step), first_step, intervals, recorder, task.label)


def _hand_on(run: Run, task: TaskSetup, recorder: TaskRecorder, waited: float) -> None:
    """Save what the task hands on; from then on it is done."""
    folder, done = run.folder, recorder.reached(task.num_updates)
    folder.add_time("train", task.name, done.train_seconds)
    folder.add_waiting(task.name, waited)
    warn_if_starved(task.label, waited, task.run.loading.num_workers)
    if run.setup.ranks.is_main:
        checkpoint.save_task(folder.checkpoints, done, run.student, run.method.state_dict(), run.setup.reading(run.student))
        checkpoint.clear_progress(folder.checkpoints)
    recorder.event("task_ended", seconds=round(done.train_seconds, 3), waited=round(waited, 4))


def _load_start(run: Run, index: int) -> None:
    """The weights and the method's state that the task before handed on; the initial ones for the first task."""
    if index == 0:
        run.student.load_weights(run.setup.initial_weights)
        return
    checkpoint.load_task(_result_before(run, index), run.student, run.method, run.setup.ranks)


def _result_before(run: Run, index: int) -> Path:
    return checkpoint.task_file(run.folder.checkpoints, index - 1, run.setup.plan.order.tasks[index - 1])


def _first_point(run: Run, task: TaskSetup) -> ResumePoint:
    is_told = task.index > 0 and run.setup.ranks.is_main
    size = checkpoint.read_resume_point(_result_before(run, task.index)).metrics_bytes if is_told else 0
    return ResumePoint(task_index=task.index, task_name=task.name, next_step=0, metrics_bytes=size, train_seconds=0.0)


def _diagnose(run: Run, index: int) -> None:
    """Note how the task changed the fit of the synthetic images it replayed, between the weights it was given and its own."""
    setup, name = run.setup, run.setup.plan.order.tasks[index]
    if not setup.ranks.is_main:
        return
    path = diagnostics_file(run.folder.path, "replay", index + 1, name)
    if not setup.plan.recipe.diagnostics or name not in setup.replay_rows or path.is_file():
        return
    assert setup.plan.shards is not None
    before = run.student.frozen_copy()
    if index == 0:
        before.load_weights(setup.initial_weights)
    else:
        checkpoint.load_task(_result_before(run, index), before)
    images = ReplayDataset(setup.plan.shards, setup.replay_rows[name], setup.transforms.evaluation)
    record_replay(path, images, before, run.student, setup.plan.recipe.evaluation_batch_size)


def _accuracy_by_name(row: Row, spaces: Sequence[LabelSpace], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """For trackers: "accuracy" in the order's own label space, "accuracy_<space>" in others."""
    keys = {space: f"accuracy_{space.replace('-', '_')}" if number else "accuracy" for number, space in enumerate(spaces)}
    return {key: dict(zip(names, row[space][""], strict=True)) for space, key in keys.items()}


def _evaluate(run: Run, description: str, number: int, learned: Sequence[int]) -> dict[int, Row]:
    """Accuracy of the student as it is on every dataset of the order: a row for each number of tasks that count as learned.

    `number` counts evaluations: 0 is the zero-shot one, t the one after the t-th task.
    """
    setup, options, recipe = run.setup, run.setup.plan.options, run.setup.plan.recipe
    names = setup.plan.order.tasks
    name = names[number - 1] if number else ZERO_SHOT
    predictions, cache = PredictionRecorder(), options.evaluation_cache
    spaces = LabelSpaces(setup.plan.label_spaces, {name: task.manifest for name, task in setup.tasks.items()}, tuple(learned))
    what_is_left = f"evaluation, {description}"
    started = time.monotonic()
    found = evaluate_spaces(
        run.method,
        run.student,
        {name: (task.manifest, task.test) for name, task in setup.tasks.items()},
        spaces,
        batch_size=recipe.evaluation_batch_size,
        note=predictions.note if recipe.diagnostics else None,
        loading=setup.loading,
        cache=None if cache is None else EvaluationCache(cache, setup.loading),
        ranks=setup.ranks,
        description=description,
        before_dataset=partial(setup.preemption.check, what_is_left),
        before_batch=partial(setup.preemption.check_alone, what_is_left),
    )
    seconds = time.monotonic() - started
    run.folder.add_time("evaluate", name, seconds)
    own, *others = found
    told = {space: found[space][learned[0]][""] for space in (own, *others)}
    run.folder.event(
        "evaluated", after=name, seconds=round(seconds, 3), accuracy=told.pop(own), **({"label_spaces": told} if others else {})
    )
    if recipe.diagnostics:
        predictions.share(setup.tasks, setup.ranks)
    if recipe.diagnostics and setup.ranks.is_main:
        record_predictions(run.folder.path, number, name, setup.tasks, predictions)
        if number:
            record_forgotten(run.folder.path, number, names, setup.tasks)
    return {one: _row(found, one, names) for one in learned}


def _row(found: Accuracies, num_learned: int, names: Sequence[str]) -> Row:
    return {
        space: {reading: [accuracies[name] for name in names] for reading, accuracies in by_number[num_learned].items()}
        for space, by_number in found.items()
    }


def _evaluate_beside(run: Run, description: str, number: int) -> BesideScores:
    """What stands beside the order, with the student as it is; arguments as of `_evaluate`."""
    setup, cache = run.setup, run.setup.plan.options.evaluation_cache
    if not setup.beside:
        return BesideScores(also={}, retrieval={})
    what_is_left = f"evaluation beside the order, {description}"
    started = time.monotonic()
    found = setup.beside.evaluate(
        run.method,
        run.student,
        batch_size=setup.plan.recipe.evaluation_batch_size,
        loading=setup.loading,
        cache=None if cache is None else EvaluationCache(cache, setup.loading),
        ranks=setup.ranks,
        description=description,
        before_dataset=partial(setup.preemption.check, what_is_left),
        before_batch=partial(setup.preemption.check_alone, what_is_left),
    )
    after = setup.plan.order.tasks[number - 1] if number else ZERO_SHOT
    told = {"seconds": round(time.monotonic() - started, 3), "accuracy": found.also, "retrieval": found.retrieval}
    run.folder.event("evaluated_beside", after=after, **told)
    return found
