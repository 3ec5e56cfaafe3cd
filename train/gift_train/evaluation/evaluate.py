"""Accuracy on test sets: a zero-shot classifier from class names and all templates, and top-1 over the whole set."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypedDict, Unpack

import torch
from torch import Tensor
from torch.utils.data import Dataset

from gift_shared.manifests import Classes, LabelSpace, TaskManifest
from gift_shared.progress import Progress
from gift_train.clip.candidates import Answer
from gift_train.clip.model import Backbone
from gift_train.data.batches import BatchOrder, Pass, TaskBatch, collate_task, place_task, streams_in_turn
from gift_train.data.loader import HERE, Loading
from gift_train.data.tasks import TaskImages
from gift_train.distributed import SINGLE, Ranks
from gift_train.evaluation.cache import EvaluationCache
from gift_train.evaluation.label_spaces import Columns, LabelSpaces, Tasks, known

MayStop = Callable[[], None]  # may raise, which ends the evaluation
Note = Callable[[str, Tensor], None]  # a dataset and what a batch of its images is taken for: columns [B] of the order's joined classes
Tests = Mapping[str, tuple[TaskManifest, TaskImages]]
Accuracies = dict[LabelSpace, dict[int, dict[str, dict[str, float]]]]  # by space, tasks learned, reading of the weights, dataset; percent


class Scoring(Protocol):
    """What evaluation needs of a method."""

    def answers(self, student: Backbone, classes: Classes) -> Mapping[str, Answer]:
        """See `Method.answers`."""


class How(TypedDict, total=False):
    """How an evaluation goes about it, see `evaluate_spaces`; changes no number."""

    loading: Loading
    cache: EvaluationCache | None
    ranks: Ranks
    description: str
    before_dataset: MayStop
    before_batch: MayStop


@dataclass(frozen=True)
class _Sheet:
    """What images of one dataset are asked.

    own_start: the column where the dataset's classes begin. order_start: where column 0 stands among the order's joined classes.
    """

    answers: Mapping[str, Answer]
    columns: Columns
    own_start: int
    order_start: int
    candidates: list[Tasks]


class _Sheets:
    """A method's answers: against each dataset's own classes, or once for all against those of the whole order."""

    def __init__(self, method: Scoring, student: Backbone, spaces: LabelSpaces) -> None:
        self.method = method
        self.student = student
        self.spaces = spaces
        self._joined: tuple[Mapping[str, Answer], Columns] | None = None

    def sheet(self, dataset: str) -> _Sheet:
        """That of a dataset. Texts are encoded here, once for all datasets where they share them."""
        spaces, place, starts = self.spaces, self.spaces.place(dataset), self.spaces.joined.starts
        if spaces.is_known:
            answers, columns = self._of(spaces.order[dataset])
            return _Sheet(answers, columns, 0, starts[place], [(0,)])
        self._joined = self._joined or self._of(spaces.joined)
        return _Sheet(*self._joined, starts[place], 0, spaces.all_candidates(dataset))

    def _of(self, classes: Classes) -> tuple[Mapping[str, Answer], Columns]:
        return self.method.answers(self.student, classes), Columns(classes, self.student.device)


def evaluate_readings(
    method: Scoring, student: Backbone, datasets: Tests, *, batch_size: int, **how: Unpack[How]
) -> dict[str, dict[str, float]]:
    """Accuracy in percent on each test set against its own classes, by reading of the weights ("" = the method's own) and dataset."""
    spaces = known(manifest for manifest, _ in datasets.values())
    return evaluate_spaces(method, student, datasets, spaces, batch_size=batch_size, **how)["known"][0]


def evaluate_spaces(
    method: Scoring,
    student: Backbone,
    datasets: Tests,
    spaces: LabelSpaces,
    *,
    batch_size: int,
    note: Note | None = None,
    loading: Loading = HERE,
    cache: EvaluationCache | None = None,
    ranks: Ranks = SINGLE,
    description: str = "evaluate",
    before_dataset: MayStop = lambda: None,
    before_batch: MayStop = lambda: None,
) -> Accuracies:
    """Accuracy in percent on each test set, in all label spaces that are asked for and for each of the method's readings of its weights.

    The images pass the model once, whatever is asked, and texts of classes once for all test sets. Shows its progress. `before_dataset` is
    called by every rank at the same places, `before_batch` by each at its own. The processes that load images stay from the first test set
    to the last. `note` is told of this rank's batches what they are taken for by the reading "", in the first space.
    Raises: ConfigError for a dataset that is no task of the order whose classes are asked for.
    """
    sheets = _Sheets(method, student, spaces)
    for name in datasets:
        spaces.place(name)
    shares: dict[str, dict[tuple[str, Tasks], float]] = {}
    with Progress(description, len(datasets), "dataset", stays=False) as progress:
        passes: list[Pass] = []
        for name, (manifest, images) in datasets.items():
            progress.note(name)
            passes.append(_pass_over(_prepared(manifest, images, cache, ranks, before_dataset), batch_size, ranks))
        with streams_in_turn(passes, collate_task, loading) as streams:
            for name, one, batches in zip(datasets, passes, streams, strict=True):
                before_dataset()
                progress.note(name)
                told = None if note is None else partial(note, name)
                shares[name] = _accuracies(sheets.sheet(name), batches, one.order, student, ranks, before_batch, told)
                progress.advance()
    return {space: {number: _by_reading(shares, spaces, space, number) for number in spaces.learned} for space in spaces.asked}


@torch.no_grad()
def _accuracies(
    sheet: _Sheet,
    batches: Iterable[TaskBatch],
    order: BatchOrder,
    student: Backbone,
    ranks: Ranks,
    before_batch: MayStop,
    note: Callable[[Tensor], None] | None,
) -> dict[tuple[str, Tasks], float]:
    """Top-1 accuracy in percent over all (image, label) items, by reading and candidates, in one pass over the images.

    batches: this rank's of `order`, see `_pass_over`.
    """
    asked = [(reading, tasks) for reading in sheet.answers for tasks in sheet.candidates]
    correct = {key: torch.zeros((), dtype=torch.long, device=student.device) for key in asked}
    for batch in batches:
        before_batch()
        placed = place_task(batch, student)
        true = placed.labels + sheet.own_start
        answers = {reading: answer(placed.images) for reading, answer in sheet.answers.items()}
        for reading, tasks in asked:
            candidates = sheet.columns.candidates(tasks)
            predicted = sheet.columns.predicted(answers[reading](candidates), candidates)
            are_right = sheet.columns.are_right(predicted, true)
            correct[reading, tasks] += are_right.sum()
            if note is not None and reading == "" and tasks == sheet.candidates[0]:
                note(torch.where(are_right, true, predicted) + sheet.order_start)
    if ranks.world_size > 1:
        counts = ranks.counts(order.batches_per_epoch)
        correct = {key: ranks.all_reduce(number * counts) for key, number in correct.items()}
    return {key: 100.0 * int(number) / order.num_samples for key, number in correct.items()}


def _by_reading(
    shares: Mapping[str, Mapping[tuple[str, Tasks], float]], spaces: LabelSpaces, space: LabelSpace, num_learned: int
) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for dataset, of_dataset in shares.items():
        wanted = (0,) if spaces.is_known else spaces.candidates(space, dataset, num_learned)
        for (reading, tasks), share in of_dataset.items():
            if tasks == wanted:
                found.setdefault(reading, {})[dataset] = share
    return found


def _prepared(
    manifest: TaskManifest, images: TaskImages, cache: EvaluationCache | None, ranks: Ranks, before_dataset: MayStop
) -> Dataset[Any]:
    """The test images; those of the cache, which are made now if they are not there."""
    if cache is None:
        return images
    before_dataset()
    return ranks.main_process_first(partial(cache.images, manifest, images))


def _pass_over(images: Dataset[Any], batch_size: int, ranks: Ranks) -> Pass:
    """Ranks take whole batches, because a classifier may look at a batch as one (MoE-Adapter's vote)."""
    num_images = len(images)  # type: ignore[arg-type]
    order = BatchOrder(num_samples=num_images, batch_size=batch_size, seed=0, name="evaluate", is_shuffled=False)
    return Pass(dataset=images, order=order, positions=range(order.batches_per_epoch)[ranks.share(order.batches_per_epoch)])
