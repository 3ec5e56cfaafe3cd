"""What one task's training is made of: its context for the method, and the two streams of batches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from torch import Tensor
from torch.utils.data import Dataset

from gift_shared.errors import DataError
from gift_shared.keys import hashed_seed
from gift_shared.manifests import Classes
from gift_shared.storage import hold_shards
from gift_train.clip.model import Backbone
from gift_train.clip.random_sentences import random_sentences, text_frame
from gift_train.data.batches import (
    BatchOrder,
    ImageStream,
    KeyedImages,
    SampleOrder,
    TaskBatch,
    collate_images,
    collate_task,
    place_replay,
    place_task,
    stack_images,
    stream,
)  # fmt: skip
from gift_train.data.replay import ReplayBatch, ReplayCollate, ReplayDataset
from gift_train.data.sources import ReplaySource, TextSource
from gift_train.data.tasks import Task
from gift_train.methods.base import Method, TaskContext
from gift_train.recipes.recipe import Recipe
from gift_train.training.loop import Batches
from gift_train.training.setup import RunSetup


@dataclass(frozen=True, kw_only=True)
class ReplayStream:
    """The replay images of a task and how they are batched."""

    dataset: Dataset[Any]
    order: BatchOrder
    collate: Callable[[Sequence[Any]], ReplayBatch]  # of the batches that steps see
    collate_pass: Callable[[Sequence[Any]], ReplayBatch]  # of those that are looked at once, before the first step


@dataclass(frozen=True)
class TaskSetup:
    """One task of a run, by its zero-based `index` in the order."""

    run: RunSetup
    index: int

    @property
    def name(self) -> str:
        return self.run.plan.order.tasks[self.index]

    @property
    def label(self) -> str:
        """As told to people, e.g. `gift 2/6 digits`."""
        return f"{self.recipe.method} {self.index + 1}/{len(self.run.plan.order.tasks)} {self.name}"

    @property
    def task(self) -> Task:
        return self.run.tasks[self.name]

    @property
    def recipe(self) -> Recipe:
        return self.run.plan.recipe

    @property
    def peak_rate(self) -> float:
        """Peak learning rate, per optimizer update: that of its dataset, for all steps that it is cut into."""
        return self.recipe.peak_rate(self.task.manifest.dataset.name)

    @property
    def replay_rows(self) -> pa.Table | None:
        """Index rows of the synthetic images the task replays; None for methods that replay none."""
        return self.run.replay_rows.get(self.name)

    @property
    def is_last(self) -> bool:
        """Whether no other task follows."""
        return self.index + 1 == len(self.run.num_updates)

    @property
    def num_updates(self) -> int:
        return self.run.num_updates[self.index]

    @property
    def num_learned(self) -> int:
        """How many tasks of the order are learned once this one is."""
        return self.index + 1

    @property
    def images(self) -> Dataset[Any]:
        """What the task trains on, through the training transform."""
        return self.task.train

    @property
    def plain_images(self) -> Dataset[Any]:
        """The same through the evaluation transform."""
        return self.task.train_plain

    @property
    def class_texts(self) -> Sequence[str]:
        """The sentence of each class, label by label."""
        return self.task.manifest.first_template_captions

    @property
    def classes(self) -> Classes:
        """See `TaskContext.classes`."""
        return self.task.manifest

    def own_classes(self) -> Tensor | None:
        """See `TaskContext.own_classes`."""
        return None

    def order(self) -> SampleOrder:
        """Which of the images each step sees."""
        return BatchOrder(num_samples=_length(self.images), batch_size=self.recipe.batch_size, seed=self.seed, name="task")

    def collate(self, samples: Sequence[Any]) -> TaskBatch:
        """Samples of the images -> TaskBatch."""
        return collate_task(samples)

    @property
    def seed(self) -> int:
        """Random state the task starts from (A5)."""
        seed = self.run.plan.options.seed
        return seed if self.recipe.reseed == "each-task" else hashed_seed(seed, f"task-{self.index}")

    def may_leave(self) -> None:
        """Asked before every batch that a method looks at before its first step or after its last. Raises Preempted."""
        self.run.preemption.check_alone(f"{self.label}, from its start on")

    def replay_stream(self, method: Method, student: Backbone) -> ReplayStream | None:
        """The stream the method asks for; None if it replays nothing, or its memory is still empty."""
        source = method.replay_source()
        collate: Callable[[Sequence[Any]], ReplayBatch] = collate_images
        collate_pass = collate
        dataset = self._replay_dataset(source, method)
        if dataset is None or _length(dataset) == 0:
            return None
        if source == ReplaySource.SYNTHETIC:
            collate_pass = ReplayCollate(student.tokenize)
            trees = student.tree_maker if method.encodes_captions else None
            collate = ReplayCollate(student.tokenize, trees, self.run.ranks)
        order = BatchOrder(
            num_samples=_length(dataset),
            batch_size=self.recipe.replay_batch_size,
            seed=self.seed,
            name="replay",
            is_shuffled=source != ReplaySource.MEMORY,
        )
        return ReplayStream(dataset=dataset, order=order, collate=collate, collate_pass=collate_pass)

    def _replay_dataset(self, source: ReplaySource, method: Method) -> Dataset[Any] | None:
        run = self.run
        if source == ReplaySource.SYNTHETIC:
            shards, rows = run.plan.shards, self.replay_rows
            assert shards is not None
            assert rows is not None
            hold_shards(shards, "task", rows["shard"].unique().to_pylist(), self.may_leave)
            return ReplayDataset(shards, rows, run.transforms.evaluation, run.plan.options.image_cache_bytes)
        if source == ReplaySource.REFERENCE:
            return run.reference_images
        if source == ReplaySource.TASK:
            return KeyedImages([(self.name, self.task.train_plain, range(len(self.task.train_plain)))])
        if source == ReplaySource.MEMORY:
            return KeyedImages([(name, run.tasks[name].train_plain, kept.tolist()) for name, kept in method.memory().items()])
        return None

    def context(self, method: Method, student: Backbone, replay: ReplayStream | None) -> TaskContext:
        """What the method may know. Draws random sentences from torch's global generator where the method wants them."""
        class_tokens = student.trim(student.tokenize(self.class_texts))
        own_classes = self.own_classes()
        outside = self.run.no_task_images
        # Remembering pays only if the task draws at least as many images as there are.
        pays = replay is not None and replay.order.num_samples <= self.num_updates * self.recipe.replay_batch_size
        return TaskContext(
            task_name=self.name,
            task_index=self.index,
            is_last_task=self.is_last,
            num_steps=self.num_updates,
            label_smoothing=self.recipe.label_smoothing,
            class_tokens=class_tokens,
            reference_tokens=self._reference_tokens(method, student, class_tokens),
            initial_weights=self.run.initial_weights,
            replay_pass=(lambda: self._replay_pass(student, replay)) if replay is not None and pays else None,
            task_images=lambda num_images: self._first_images(student, num_images),
            own_images=self._image_stream(student, self.images, "own"),
            no_task_images=None if outside is None else self._image_stream(student, outside, "no-task"),
            ranks=self.run.ranks,
            classes=self.classes,
            own_classes=None if own_classes is None else own_classes.to(student.device),
        )

    def _reference_tokens(self, method: Method, student: Backbone, class_tokens: Tensor) -> Tensor | None:
        texts = method.text_source()
        if texts == TextSource.CLASSES:
            return class_tokens
        if texts == TextSource.RANDOM:
            return student.trim(random_sentences(text_frame(student.tokenize), student.vocabulary_size))
        if self.run.reference_texts is not None:
            return student.trim(student.tokenize(list(self.run.reference_texts.sentences)))
        if texts == TextSource.CAPTIONS:
            if self.replay_rows is None:
                raise DataError(f"Method {method.name!r} needs the captions of synthetic images.")
            return student.trim(student.tokenize(list(dict.fromkeys(self.replay_rows["caption"].to_pylist()))))
        return None

    def batches(self, student: Backbone, replay: ReplayStream | None, first_step: int) -> Batches:
        """(task batch, replay batch or None) for every step from `first_step` to the last; placed on the student's device."""
        positions = range(first_step, self.num_updates)
        task_batches = self._stream(self.images, self.order(), self.collate, positions)
        if replay is None:
            for task_batch in task_batches:
                yield place_task(task_batch, student), None
            return
        replay_batches = self._stream(replay.dataset, replay.order, replay.collate, positions)
        for task_batch, replay_batch in zip(task_batches, replay_batches, strict=True):
            yield place_task(task_batch, student), place_replay(replay_batch, student)

    def _replay_pass(self, student: Backbone, replay: ReplayStream) -> Iterator[ReplayBatch]:
        order = self._pass_order(replay.order.num_samples)
        for batch in self._stream(replay.dataset, order, replay.collate_pass, range(order.batches_per_epoch)):
            self.may_leave()
            yield place_replay(batch, student)

    def _first_images(self, student: Backbone, num_images: int) -> Iterator[TaskBatch]:
        order = self._pass_order(min(num_images, _length(self.plain_images)))
        for batch in self._stream(self.plain_images, order, self.collate, range(order.batches_per_epoch)):
            self.may_leave()
            yield place_task(batch, student)

    def _image_stream(self, student: Backbone, dataset: Dataset[Any], name: str) -> ImageStream:
        """Whole batches on every rank, for what is trained beside the student."""
        order = BatchOrder(num_samples=_length(dataset), batch_size=self.recipe.batch_size, seed=self.seed, name=name)

        def take(num_batches: int) -> Iterator[Tensor]:
            for images in stream(dataset, order, stack_images, range(num_batches), self.run.loading):
                self.may_leave()
                yield student.place_images(images)

        return ImageStream(batches_per_epoch=order.batches_per_epoch, take=take)

    def _pass_order(self, num_samples: int) -> BatchOrder:
        """One pass in order, in batches of evaluation's size."""
        size = self.recipe.evaluation_batch_size
        return BatchOrder(num_samples=num_samples, batch_size=size, seed=self.seed, name="pass", is_shuffled=False)

    def _stream(
        self, dataset: Dataset[Any], order: SampleOrder, collate: Callable[[Sequence[Any]], Any], positions: range
    ) -> Iterator[Any]:
        return stream(dataset, order, collate, positions, self.run.loading, self.run.ranks)


def _length(dataset: Dataset[Any]) -> int:
    return len(dataset)  # type: ignore[arg-type]
