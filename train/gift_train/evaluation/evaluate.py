"""Accuracy on test sets: a zero-shot classifier from class names and all templates, and top-1 over the whole set."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from gift_shared.manifests import TaskManifest
from gift_shared.progress import Progress
from gift_train.clip.model import Backbone
from gift_train.data.batches import BatchOrder, Pass, TaskBatch, collate_task, place_task, streams_in_turn
from gift_train.data.loader import HERE, Loading
from gift_train.data.tasks import TaskImages
from gift_train.distributed import SINGLE, Ranks
from gift_train.evaluation.cache import EvaluationCache

MayStop = Callable[[], None]  # may raise, which ends the evaluation


class Classifies(Protocol):
    """What evaluation needs of a method."""

    def classifiers(self, student: Backbone, manifest: TaskManifest) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """See `Method.classifiers`."""


@torch.no_grad()
def accuracies(
    classifiers: Mapping[str, Callable[[Tensor], Tensor]],
    batches: Iterable[TaskBatch],
    order: BatchOrder,
    student: Backbone,
    ranks: Ranks = SINGLE,
    before_batch: MayStop = lambda: None,
) -> dict[str, float]:
    """Top-1 accuracy in percent over all (image, label) items, of each classifier by its name, in one pass over the images.

    batches: this rank's of `order`, see `_pass_over`.
    """
    correct = {name: torch.zeros((), dtype=torch.long, device=student.device) for name in classifiers}
    for batch in batches:
        before_batch()
        placed = place_task(batch, student)
        for name, classify in classifiers.items():
            correct[name] += (classify(placed.images) == placed.labels).sum()
    if ranks.world_size > 1:
        counts = ranks.counts(order.batches_per_epoch)
        correct = {name: ranks.all_reduce(number * counts) for name, number in correct.items()}
    return {name: 100.0 * int(number) / order.num_samples for name, number in correct.items()}


def evaluate_readings(
    method: Classifies,
    student: Backbone,
    datasets: Mapping[str, tuple[TaskManifest, TaskImages]],
    *,
    batch_size: int,
    loading: Loading = HERE,
    cache: EvaluationCache | None = None,
    ranks: Ranks = SINGLE,
    description: str = "evaluate",
    before_dataset: MayStop = lambda: None,
    before_batch: MayStop = lambda: None,
) -> dict[str, dict[str, float]]:
    """Accuracy in percent on each test set, against that dataset's own classes, for each of the method's readings of its weights.

    Shows its progress. `before_dataset` is called by every rank at the same places, `before_batch` by each at its own. The processes that
    load images stay from the first test set to the last.
    Returns: {"": {dataset: accuracy}, other reading: {...}}; most methods have the reading "" alone.
    """
    found: dict[str, dict[str, float]] = {}
    with Progress(description, len(datasets), "dataset", stays=False) as progress:
        passes: list[Pass] = []
        for name, (manifest, images) in datasets.items():
            progress.note(name)
            passes.append(_pass_over(_prepared(manifest, images, cache, ranks, before_dataset), batch_size, ranks))
        with streams_in_turn(passes, collate_task, loading) as streams:
            for (name, (manifest, _)), one, batches in zip(datasets.items(), passes, streams, strict=True):
                before_dataset()
                progress.note(name)
                classifiers = method.classifiers(student, manifest)
                for reading, value in accuracies(classifiers, batches, one.order, student, ranks, before_batch).items():
                    found.setdefault(reading, {})[name] = value
                progress.advance()
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
