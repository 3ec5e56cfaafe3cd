"""The run, top to bottom: check everything, then for each task train, save, evaluate. Run again, it goes on where it stopped."""

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch.utils.data import Dataset

from gift_shared.console import some_of
from gift_shared.errors import ConfigError, unknown_name
from gift_shared.manifests import Manifests, OrderManifest
from gift_shared.schema import INDEX_FILE
from gift_shared.shards import require_images
from gift_shared.tables import write_index
from gift_train import checkpoint
from gift_train.backbone import Backbone, load_backbone
from gift_train.checkpoint import Place, seed_everything
from gift_train.config import Recipe, load_recipe
from gift_train.consolidation import Weights
from gift_train.diagnostics.files import ZERO_SHOT, diagnostics_file
from gift_train.diagnostics.record import NotingMethod, StepMeasures, record_forgotten, record_predictions, record_replay
from gift_train.evaluate import evaluate_readings
from gift_train.loop import Rhythm, Schedule, Training, build_optimizer, train_task
from gift_train.methods.base import Method, NoTaskSource, ReplaySource, method_class
from gift_train.reference_images import ReferenceTexts, no_task_images, reference_replay, reference_texts, require_reference_images
from gift_train.replay import ReplayDataset
from gift_train.run_folder import RunFolder, check_place
from gift_train.selection import ReplaySelection, select_replay
from gift_train.task_setup import TaskInputs, replay_stream, task_batches, task_context
from gift_train.tasks import Task, load_task
from gift_train.trackers import Trackers, check_trackers, flat_numbers
from gift_train.transforms import ImageTransforms, image_transforms

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """What the command line asks for. `stop_after`: leave after so many tasks of the order; the same command goes on."""

    order: str
    recipe: str
    overrides: Sequence[str]
    model: str
    pretrained: str | None
    shards: Path | None
    data_root: Path
    manifests: Sequence[Path]
    out: Path
    seed: int
    device: str
    num_workers: int
    stop_after: int | None
    reference_images: Path | None = None
    reference_captions: Path | None = None
    trackers: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Run:
    """A request whose every name, file and count has been checked."""

    request: RunRequest
    recipe: Recipe
    order: OrderManifest
    tasks: Mapping[str, Task]
    transforms: ImageTransforms
    replay_rows: Mapping[str, pa.Table]  # by task; empty unless the method replays synthetic images
    method: Method
    student: Backbone
    initial_weights: Weights
    folder: RunFolder
    trackers: Trackers
    no_task_images: Dataset[Any] | None
    reference_images: Dataset[Any] | None  # those replayed, see ReplaySource
    reference_texts: ReferenceTexts | None


def run(request: RunRequest) -> dict[str, Any] | None:
    """Train and evaluate an order of tasks. Returns the summary; None if `stop_after` ended it early.

    Raises: GiftError of the kind that fits, before any training, for names, files, counts or folders that do not.
    """
    this = prepare(request)
    with closing(this.folder), closing(this.trackers):
        return _go_through(this)


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
        this.trackers.log((index + 1) * (this.recipe.steps + 1), flat_numbers({"accuracy": accuracy}))
        accuracies["matrix"].append(rows.pop(""))
        for reading, row in rows.items():
            accuracies.setdefault("readings", {}).setdefault(reading, []).append(row)
        this.folder.save_accuracies(accuracies)
    return this.folder.finish(accuracies) if len(accuracies["matrix"]) == len(this.order.tasks) else None


def prepare(request: RunRequest) -> Run:
    """Check all a run depends on and open its folder; no work is spent yet."""
    manifests = Manifests(tuple(request.manifests))
    order = manifests.order(request.order)
    recipe = load_recipe(request.recipe, order.recipes, request.overrides)
    known = manifests.names("tasks")
    for dataset in recipe.learning_rates:
        if dataset not in known:
            raise ConfigError("[learning_rates] " + unknown_name("dataset", dataset, known))
    if request.stop_after is not None and request.stop_after < 1:
        raise ConfigError(f"--stop-after counts tasks and must be at least 1, found {request.stop_after}.")
    check_trackers(request.trackers)
    method = method_class(recipe.method)(recipe.method_config)
    replay_rows = _select_replay(request, recipe, order, method)
    require_reference_images(method, request.reference_images)
    texts = reference_texts(method.text_source(), request.reference_captions, manifests.task(order.pretraining_source))
    identity = _identity(request, recipe, order, method) | {"reference_captions": None if texts is None else texts.record}
    check_place(request.out, identity)
    seed_everything(request.seed)  # decides the weights of `--pretrained random`, nothing else
    student = load_backbone(request.model, request.pretrained, request.device, recipe.precision)
    transforms = image_transforms(*student.image_settings)
    tasks = {name: load_task(manifests.task(name), request.data_root, transforms) for name in order.tasks}
    _warn_of_long_captions(student, tasks, replay_rows, texts)
    reference = reference_replay(method, request.reference_images, request.seed, transforms.evaluation)
    outside = no_task_images(method.no_task_source(), request.reference_images, request.shards, order.pretraining_source, transforms.train)
    method.prepare(student, len(order.tasks))
    folder = RunFolder(request.out, identity)
    if request.shards is not None:
        for name, rows in replay_rows.items():
            write_index(folder.replay / f"{name}.parquet", rows, {"shards": str(request.shards)})
    return Run(
        request=request,
        recipe=recipe,
        order=order,
        tasks=tasks,
        transforms=transforms,
        replay_rows=replay_rows,
        method=method,
        student=student,
        initial_weights={name: weight.cpu() for name, weight in student.weights_copy().items()},
        folder=folder,
        trackers=Trackers(request.trackers, request.out, {"recipe": recipe.title, "order": order.name, "seed": request.seed}),
        no_task_images=outside,
        reference_images=reference,
        reference_texts=texts,
    )


def _learn(this: Run, index: int, name: str) -> None:
    """Train one task, or take what an earlier start of this run trained. Leaves its result in the student."""
    checkpoints, method, student = this.folder.checkpoints, this.method, this.student
    if checkpoint.task_file(checkpoints, index, name).is_file():
        place, state = checkpoint.load_task(checkpoints, index, name, student)
        method.load_state_dict(state)
        this.folder.cut_metrics(place.metrics_bytes)
        return
    _load_start(this, index)
    inputs = _inputs(this, index, name)
    seed_everything(inputs.task_seed)
    replay = replay_stream(inputs, method, student)
    measures = StepMeasures.at_task_start(method, student) if this.recipe.diagnostics else None
    method.begin_task(task_context(inputs, method, student, replay), student)
    parameters = method.trainable(student)
    training = Training(
        method=method,
        student=student,
        parameters=parameters,
        optimizer=build_optimizer(parameters, this.recipe.optimizer),
        schedule=Schedule(peak=this.recipe.peak_rate(name), warmup_steps=this.recipe.warmup_steps, total_steps=this.recipe.steps),
    )
    place = checkpoint.load_progress(checkpoints, index, training) or _first_place(this, index, name)
    this.folder.cut_metrics(place.metrics_bytes)
    journal = _Journal(this, place, measures)
    label = f"{this.recipe.method} {index + 1}/{len(this.order.tasks)} {name}"
    rhythm = Rhythm(log_every=this.recipe.log_every, checkpoint_every=this.recipe.checkpoint_every)
    train_task(training, task_batches(inputs, student, replay, place.next_step), place.next_step, rhythm, journal, label)
    method.end_task(student)
    done = journal.place_now(inputs.num_updates)
    this.folder.add_time("train", name, done.train_seconds)
    checkpoint.save_task(checkpoints, done, student, method.state_dict())
    checkpoint.clear_progress(checkpoints)


def _load_start(this: Run, index: int) -> None:
    """The weights and the method's state that the task before handed on; the initial ones for the first task."""
    if index == 0:
        this.student.load_weights(this.initial_weights)
        return
    _, state = checkpoint.load_task(this.folder.checkpoints, index - 1, this.order.tasks[index - 1], this.student)
    this.method.load_state_dict(state)


def _first_place(this: Run, index: int, name: str) -> Place:
    size = 0
    if index > 0:
        size = checkpoint.read_place(checkpoint.task_file(this.folder.checkpoints, index - 1, this.order.tasks[index - 1])).metrics_bytes
    return Place(task_index=index, task_name=name, next_step=0, metrics_bytes=size, train_seconds=0.0)


def _inputs(this: Run, index: int, name: str) -> TaskInputs:
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
        no_task_images=this.no_task_images,
        reference_images=this.reference_images,
        reference_texts=this.reference_texts,
    )


def _diagnose(this: Run, index: int, name: str) -> None:
    """Note how the task changed the fit of the synthetic images it replayed, between the weights it was given and its own."""
    path = diagnostics_file(this.folder.path, "replay", index + 1, name)
    if not this.recipe.diagnostics or name not in this.replay_rows or path.is_file():
        return
    assert this.request.shards is not None
    before = this.student.frozen_copy()
    if index == 0:
        before.load_weights(this.initial_weights)
    else:
        checkpoint.load_task(this.folder.checkpoints, index - 1, this.order.tasks[index - 1], before)
    images = ReplayDataset(this.request.shards, this.replay_rows[name], this.transforms.evaluation)
    record_replay(path, images, before, this.student, this.recipe.evaluation_batch_size)


def _evaluate(this: Run, description: str, number: int) -> dict[str, list[float]]:
    """Accuracy of the student as it is on every dataset of the order, in percent, for each reading of its weights.

    `number` counts evaluations: 0 is the zero-shot one, t the one after the t-th task.
    """
    name = this.order.tasks[number - 1] if number else ZERO_SHOT
    noted = NotingMethod(this.method)
    started = time.monotonic()
    found = evaluate_readings(
        noted if this.recipe.diagnostics else this.method,
        this.student,
        {name: (task.manifest, task.test) for name, task in this.tasks.items()},
        batch_size=this.recipe.evaluation_batch_size,
        num_workers=this.request.num_workers,
        description=description,
    )
    this.folder.add_time("evaluate", name, time.monotonic() - started)
    if this.recipe.diagnostics:
        record_predictions(this.folder.path, number, name, this.tasks, noted)
        if number:
            record_forgotten(this.folder.path, number, this.order.tasks, this.tasks)
    return {reading: [accuracies[name] for name in this.order.tasks] for reading, accuracies in found.items()}


class _Journal:
    """Writes a task's steps to metrics.jsonl and the trackers, and its state to checkpoints/progress."""

    def __init__(self, this: Run, place: Place, measures: StepMeasures | None) -> None:
        self.folder = this.folder
        self.trackers = this.trackers
        self.steps_before = place.task_index * (this.recipe.steps + 1)  # a task makes N + 1 updates
        self.place = place
        self.measures = measures
        self.started = time.monotonic()

    def log(self, step: int, learning_rate: float, terms: Mapping[str, float]) -> None:
        row = {"task": self.place.task_name, "task_index": self.place.task_index, "step": step, "learning_rate": learning_rate}
        row |= {"terms": dict(terms), "loss": sum(terms.values())}
        if self.measures is not None:
            row |= {"measurements": self.measures()}
        self.folder.log([row])
        self.trackers.log(self.steps_before + step, flat_numbers(row))

    def save(self, next_step: int, training: Training) -> None:
        checkpoint.save_progress(self.folder.checkpoints, self.place_now(next_step), training)

    def place_now(self, next_step: int) -> Place:
        seconds = self.place.train_seconds + time.monotonic() - self.started
        return replace(self.place, next_step=next_step, metrics_bytes=self.folder.metrics_size(), train_seconds=seconds)


def _select_replay(request: RunRequest, recipe: Recipe, order: OrderManifest, method: Method) -> dict[str, pa.Table]:
    if method.replay_source() != ReplaySource.SYNTHETIC:
        return {}
    if request.shards is None:
        raise ConfigError(f"Method {recipe.method!r} replays synthetic images: give their output folder with --shards.")
    assert recipe.replay is not None
    rule = ReplaySelection(num_images=recipe.replay.num_images, captions=recipe.replay.captions, seed=request.seed)
    rows = {name: select_replay(request.shards, order, index, rule) for index, name in enumerate(order.tasks)}
    for chosen in rows.values():
        require_images(request.shards, chosen)
    return rows


def _warn_of_long_captions(
    student: Backbone, tasks: Mapping[str, Task], replay_rows: Mapping[str, pa.Table], texts: ReferenceTexts | None
) -> None:
    captions = [caption for task in tasks.values() for caption in task.manifest.first_template_captions]
    captions += [caption for rows in replay_rows.values() for caption in rows["caption"].unique().to_pylist()]
    captions += [] if texts is None else texts.sentences
    long = student.too_long(captions)
    if long:
        _log.warning("%d captions are longer than the model's %d tokens and are cut: %s", len(long), student.context_length, some_of(long))


def _identity(request: RunRequest, recipe: Recipe, order: OrderManifest, method: Method) -> dict[str, Any]:
    """What makes two runs the same run; the rest of run.json is circumstance."""
    shards = None
    if request.shards is not None and (recipe.replay is not None or method.no_task_source() == NoTaskSource.SYNTHETIC):
        index = request.shards / INDEX_FILE
        shards = {"path": str(request.shards), "index_sha256": hashlib.sha256(index.read_bytes()).hexdigest()}
    return {
        "recipe_name": Path(request.recipe).name.removesuffix(".toml"),
        "recipe": recipe.as_table(),
        "overrides": list(request.overrides),
        "order": order.name,
        "datasets": list(order.tasks),
        "seed": request.seed,
        "model": request.model,
        "pretrained": request.pretrained,
        "shards": shards,
        "reference_images": None if request.reference_images is None else str(request.reference_images),
    }
