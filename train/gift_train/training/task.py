"""What one task's training is made of: its context for the method, and the two streams of batches."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import Dataset

from gift_shared.errors import DataError
from gift_shared.keys import hashed_seed
from gift_shared.storage import Folder, hold_shards
from gift_train.clip.model import Backbone
from gift_train.data.batches import (  # fmt: skip
    BatchOrder,
    ImageStream,
    KeyedImages,
    TaskBatch,
    collate_images,
    collate_task,
    place_replay,
    place_task,
    stack_images,
    stream,
)
from gift_train.data.pixel_cache import CACHE_BYTES
from gift_train.data.reference_images import ReferenceTexts
from gift_train.data.replay import ReplayBatch, ReplayCollate, ReplayDataset
from gift_train.data.sources import ReplaySource, TextSource
from gift_train.data.tasks import Task
from gift_train.data.transforms import ImageTransform
from gift_train.distributed import SINGLE, Ranks
from gift_train.methods.base import Method, TaskContext
from gift_train.methods.consolidation import Weights
from gift_train.recipes.recipe import Recipe
from gift_train.training.loop import Batches

NUM_RANDOM_SENTENCES = 1000  # LwF-VR (METHODS 2.5)
RANDOM_SENTENCE_LENGTH = 10


@dataclass(frozen=True, kw_only=True)
class TaskInputs:
    """Everything a task is set up from, but the student and the method."""

    recipe: Recipe
    seed: int
    name: str
    index: int  # zero-based
    tasks: Mapping[str, Task]
    initial_weights: Weights
    shards: Folder | None
    replay_rows: pa.Table | None  # rows of the synthetic images, for methods that replay them
    evaluation_transform: ImageTransform
    num_workers: int
    cache_bytes: int = CACHE_BYTES  # memory for replay images that are decoded once
    no_task_images: Dataset[Any] | None = None
    reference_images: Dataset[Any] | None = None  # (image, NO_LABEL, sample key), for methods that replay them
    reference_texts: ReferenceTexts | None = None
    ranks: Ranks = SINGLE
    may_leave: Callable[[], None] = lambda: None  # asked before every batch a method looks at before its first step; may raise Preempted

    @property
    def task(self) -> Task:
        return self.tasks[self.name]

    @property
    def num_updates(self) -> int:
        return self.recipe.steps + 1

    @property
    def task_seed(self) -> int:
        """Random state the task starts from (A5)."""
        return self.seed if self.recipe.reseed == "each-task" else hashed_seed(self.seed, f"task-{self.index}")


@dataclass(frozen=True, kw_only=True)
class ReplayStream:
    """The replay images of a task and how they are batched."""

    dataset: Dataset[Any]
    order: BatchOrder
    collate: Callable[[Sequence[Any]], ReplayBatch]


def replay_stream(inputs: TaskInputs, method: Method, student: Backbone) -> ReplayStream | None:
    """The stream the method asks for; None if it replays nothing, or its memory is still empty."""
    dataset: Dataset[Any]
    collate: Callable[[Sequence[Any]], ReplayBatch] = collate_images
    source = method.replay_source()
    if source == ReplaySource.SYNTHETIC:
        assert inputs.shards is not None
        assert inputs.replay_rows is not None
        hold_shards(inputs.shards, "task", inputs.replay_rows["shard"].unique().to_pylist(), inputs.may_leave)
        dataset = ReplayDataset(inputs.shards, inputs.replay_rows, inputs.evaluation_transform, inputs.cache_bytes)
        collate = ReplayCollate(student.tokenize)
    elif source == ReplaySource.REFERENCE:
        assert inputs.reference_images is not None
        dataset = inputs.reference_images
    elif source == ReplaySource.TASK:
        dataset = KeyedImages([(inputs.name, inputs.task.train_plain, range(len(inputs.task.train_plain)))])
    elif source == ReplaySource.MEMORY:
        dataset = KeyedImages([(name, inputs.tasks[name].train_plain, kept.tolist()) for name, kept in method.memory().items()])
    else:
        return None
    num_samples = len(dataset)  # type: ignore[arg-type]
    if num_samples == 0:
        return None
    order = BatchOrder(
        num_samples=num_samples,
        batch_size=inputs.recipe.replay_batch_size,
        seed=inputs.task_seed,
        name="replay",
        is_shuffled=source != ReplaySource.MEMORY,
    )
    return ReplayStream(dataset=dataset, order=order, collate=collate)


def task_context(inputs: TaskInputs, method: Method, student: Backbone, replay: ReplayStream | None) -> TaskContext:
    """What the method may know. Draws random sentences from torch's global generator where the method wants them."""
    prompts = inputs.task.manifest.first_template_captions
    class_tokens = student.trim(student.tokenize(prompts))
    reference_tokens, texts = None, method.text_source()
    if texts == TextSource.CLASSES:
        reference_tokens = class_tokens
    elif texts == TextSource.RANDOM:
        reference_tokens = student.trim(random_sentences(student.vocabulary_size, student.context_length))
    elif inputs.reference_texts is not None:
        reference_tokens = student.trim(student.tokenize(list(inputs.reference_texts.sentences)))
    elif texts == TextSource.CAPTIONS:
        if inputs.replay_rows is None:
            raise DataError(f"Method {method.name!r} needs the captions of synthetic images.")
        reference_tokens = student.trim(student.tokenize(list(dict.fromkeys(inputs.replay_rows["caption"].to_pylist()))))
    # Remembering pays only if the task draws at least as many images as there are.
    pays = replay is not None and replay.order.num_samples <= inputs.num_updates * inputs.recipe.replay_batch_size
    return TaskContext(
        task_name=inputs.name,
        task_index=inputs.index,
        num_steps=inputs.num_updates,
        label_smoothing=inputs.recipe.label_smoothing,
        class_tokens=class_tokens,
        reference_tokens=reference_tokens,
        initial_weights=inputs.initial_weights,
        replay_pass=(lambda: _one_pass(inputs, student, replay)) if replay is not None and pays else None,
        task_images=lambda num_images: _first_images(inputs, student, num_images),
        own_images=_image_stream(inputs, student, inputs.task.train, "own"),
        no_task_images=None if inputs.no_task_images is None else _image_stream(inputs, student, inputs.no_task_images, "no-task"),
        ranks=inputs.ranks,
    )


def task_batches(inputs: TaskInputs, student: Backbone, replay: ReplayStream | None, first_step: int) -> Batches:
    """(task batch, replay batch or None) for every step from `first_step` to the last; placed on the student's device."""
    positions = range(first_step, inputs.num_updates)
    dataset = inputs.task.train
    order = BatchOrder(num_samples=len(dataset), batch_size=inputs.recipe.batch_size, seed=inputs.task_seed, name="task")
    task_stream = stream(dataset, order, collate_task, positions, inputs.num_workers, inputs.ranks)
    if replay is None:
        for task_batch in task_stream:
            yield place_task(task_batch, student), None
        return
    replay_batches = stream(replay.dataset, replay.order, replay.collate, positions, inputs.num_workers, inputs.ranks)
    for task_batch, replay_batch in zip(task_stream, replay_batches, strict=True):
        yield place_task(task_batch, student), place_replay(replay_batch, student)


def random_sentences(vocabulary_size: int, context_length: int, num_sentences: int = NUM_RANDOM_SENTENCES) -> Tensor:
    """Token rows [N, L]: start, ten ids uniform over the whole vocabulary (B5), end, zeros. From torch's global generator."""
    length = min(RANDOM_SENTENCE_LENGTH, context_length - 2)
    tokens = torch.zeros(num_sentences, context_length, dtype=torch.long)
    tokens[:, 0] = vocabulary_size - 2
    tokens[:, 1 : length + 1] = torch.randint(vocabulary_size, (num_sentences, length))
    tokens[:, length + 1] = vocabulary_size - 1
    return tokens


def _one_pass(inputs: TaskInputs, student: Backbone, replay: ReplayStream) -> Iterator[ReplayBatch]:
    order = BatchOrder(
        num_samples=replay.order.num_samples,
        batch_size=inputs.recipe.evaluation_batch_size,
        seed=inputs.task_seed,
        name="pass",
        is_shuffled=False,
    )
    for batch in stream(replay.dataset, order, replay.collate, range(order.batches_per_epoch), inputs.num_workers, inputs.ranks):
        inputs.may_leave()
        yield place_replay(batch, student)


def _image_stream(inputs: TaskInputs, student: Backbone, dataset: Dataset[Any], name: str) -> ImageStream:
    num_samples = len(dataset)  # type: ignore[arg-type]
    order = BatchOrder(num_samples=num_samples, batch_size=inputs.recipe.batch_size, seed=inputs.task_seed, name=name)

    def take(num_batches: int) -> Iterator[Tensor]:
        for images in stream(dataset, order, stack_images, range(num_batches), inputs.num_workers):
            inputs.may_leave()
            yield student.place_images(images)

    return ImageStream(batches_per_epoch=order.batches_per_epoch, take=take)


def _first_images(inputs: TaskInputs, student: Backbone, num_images: int) -> Iterator[TaskBatch]:
    dataset = inputs.task.train_plain
    order = BatchOrder(
        num_samples=min(num_images, len(dataset)),
        batch_size=inputs.recipe.evaluation_batch_size,
        seed=inputs.task_seed,
        name="pass",
        is_shuffled=False,
    )
    for batch in stream(dataset, order, collate_task, range(order.batches_per_epoch), inputs.num_workers, inputs.ranks):
        yield place_task(batch, student)
