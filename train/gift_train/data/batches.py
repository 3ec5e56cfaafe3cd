"""Which samples a step sees: endless shuffled epochs that follow from (seed, position) alone, so that resuming is arithmetic.

Randomness inside a sample (crops) comes from torch's global generator, seeded here from (seed, position, slot) while the sample is
made: neither what was drawn before, nor the number of worker processes, nor that of ranks that share a batch can change it.

On several ranks a batch holds the images of this rank's slots alone, and of everything else the whole batch's.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from gift_shared.keys import hashed_seed
from gift_train.data.loader import HERE, Loading, loaded
from gift_train.data.replay import ReplayBatch
from gift_train.data.tasks import TaskImages
from gift_train.distributed import SINGLE, Ranks

if TYPE_CHECKING:  # a process that loads images reads this module, and needs no CLIP
    from gift_train.clip.model import Backbone

Collate = Callable[[Sequence[Any]], Any]


@dataclass(frozen=True, kw_only=True)
class TaskBatch:
    """Real images of the current task; on several ranks this rank's share of them, and all labels."""

    images: Tensor  # [B or this rank's share, 3, H, W], uint8 as loaded, normalised float32 once placed
    labels: Tensor  # [B] long
    datasets: Tensor | None = None  # [B] long, place in the order of the dataset an image is of, if all are learned at once

    def pin_memory(self) -> "TaskBatch":
        """In memory that is copied to a device without waiting; a DataLoader asks for it."""
        datasets = None if self.datasets is None else self.datasets.pin_memory()
        return TaskBatch(images=self.images.pin_memory(), labels=self.labels.pin_memory(), datasets=datasets)


class SampleOrder(Protocol):
    """Which samples each batch of an endless stream holds, by its position alone."""

    @property
    def batch_size(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def name(self) -> str: ...

    def indices(self, position: int) -> list[int]:
        """Sample indices of the batch at this zero-based position."""


@dataclass(frozen=True, kw_only=True)
class BatchOrder:
    """Epochs in sequence over `num_samples`; the last, smaller batch of an epoch is kept (METHODS 1.9)."""

    num_samples: int
    batch_size: int
    seed: int
    name: str  # two streams of one seed must not share an order
    is_shuffled: bool = True

    @property
    def batches_per_epoch(self) -> int:
        return -(-self.num_samples // self.batch_size)

    def indices(self, position: int) -> list[int]:
        """Sample indices of the batch at this zero-based position of the endless stream."""
        epoch, batch = divmod(position, self.batches_per_epoch)
        places = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
        if not self.is_shuffled:
            return list(range(self.num_samples)[places])
        return shuffled(self.num_samples, hashed_seed(self.seed, f"{self.name}/epoch-{epoch}"))[places].tolist()


@lru_cache(maxsize=4)  # the epochs that a step's streams are in: drawing one anew for each batch takes 20 ms for a million images
def shuffled(num_samples: int, seed: int) -> Tensor:
    """The numbers below `num_samples` in the order of that seed."""
    return torch.randperm(num_samples, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True, kw_only=True)
class ImageStream:
    """Shuffled batches through the training transform, apart from those the student trains on."""

    batches_per_epoch: int
    take: Callable[[int], Iterator[Tensor]]  # the first n batches, each [B, 3, H, W] on the student's device


class _BatchesByPosition(Dataset[Any]):
    """Item = the whole batch at a position: what lets a DataLoader resume anywhere."""

    def __init__(self, dataset: Any, order: SampleOrder, collate: Collate, ranks: Ranks) -> None:
        self.dataset = dataset
        self.order = order
        self.collate = collate
        self.ranks = ranks

    def __getitem__(self, position: int) -> Any:
        indices = self.order.indices(position)
        own = range(len(indices))[self.ranks.share(len(indices))]
        with torch.random.fork_rng(devices=[]):
            return self.collate([self._sample(position, slot, index, slot in own) for slot, index in enumerate(indices)])

    def _sample(self, position: int, slot: int, index: int, is_own: bool) -> Any:
        if not is_own:
            return None, *self.dataset.about(index)
        # Not torch.manual_seed, which would start the accelerators' generators anew as well: gate noise comes from them.
        torch.default_generator.manual_seed(hashed_seed(self.order.seed, f"{self.order.name}/batch-{position}/{slot}"))
        return self.dataset[index]


@dataclass(frozen=True, kw_only=True)
class Pass:
    """A dataset and the batches of it that are wanted."""

    dataset: Dataset[Any]
    order: BatchOrder
    positions: range


class _InTurn(Dataset[Any]):
    """The wanted batches of several datasets as those of one: item = the batch at a place of all of them, one dataset after the other."""

    def __init__(self, passes: Sequence[Pass], collate: Collate) -> None:
        self.batches = [_BatchesByPosition(one.dataset, one.order, collate, SINGLE) for one in passes]
        self.positions = [one.positions for one in passes]
        self.ends = list(accumulate(map(len, self.positions)))

    def __getitem__(self, place: int) -> Any:
        number = bisect_right(self.ends, place)
        start = self.ends[number - 1] if number else 0
        return self.batches[number][self.positions[number][place - start]]


def stream(
    dataset: Dataset[Any], order: SampleOrder, collate: Collate, positions: range, loading: Loading = HERE, ranks: Ranks = SINGLE
) -> Iterator[Any]:
    """The batches at `positions` of the endless stream, made in this process or by worker processes: the same either way.

    dataset: its items begin with the image. On several ranks, `about(index)` must give the rest of an item without loading it.
    """
    return _made(_BatchesByPosition(dataset, order, collate, ranks), positions, loading)


@contextmanager
def streams_in_turn(passes: Sequence[Pass], collate: Collate, loading: Loading = HERE) -> Iterator[Iterator[Iterator[Any]]]:
    """For each pass, in order, an iterator of its batches. Worker processes are started once for all, and are ahead by some batches.

    They end with the block. What is left of a pass when the next one is asked for is passed over.
    """
    batches = _InTurn(passes, collate)
    with closing(_made(batches, range(sum(map(len, batches.positions))), loading)) as made:
        yield _cut(made, list(map(len, batches.positions)))


def _made(batches: Dataset[Any], positions: Sequence[int], loading: Loading) -> Generator[Any, None, None]:
    if loading.num_workers == 0 or not positions:
        return (batches[position] for position in positions)
    return loaded(batches, positions, loading)


def _cut(made: Iterator[Any], lengths: Sequence[int]) -> Iterator[Iterator[Any]]:
    for length in lengths:
        part = islice(made, length)
        yield part
        deque(part, maxlen=0)


def collate_task(samples: Sequence[tuple[Tensor, int]]) -> TaskBatch:
    """(image, label) samples -> TaskBatch."""
    _, labels = zip(*samples, strict=True)
    return TaskBatch(images=stack_images(samples), labels=torch.tensor(labels))


def stack_images(samples: Sequence[tuple[Any, ...]]) -> Tensor:
    """Samples of any dataset here, whose items begin with the image -> those images that this rank loaded, [share of B, 3, H, W]."""
    return torch.stack([image for image, *_ in samples if image is not None])


def collate_images(samples: Sequence[tuple[Tensor, int, str]]) -> ReplayBatch:
    """(image, label, sample key) samples of real tasks -> ReplayBatch without captions, for methods that replay images alone."""
    _, _, keys = zip(*samples, strict=True)
    empty = torch.zeros(len(keys), 0, dtype=torch.long)
    return ReplayBatch(images=stack_images(samples), captions=(), tokens=empty, caption_ids=empty[:, :0].flatten(), sample_keys=keys)


def place_task(batch: TaskBatch, backbone: "Backbone") -> TaskBatch:
    """Move a batch to the backbone's device, its images normalised."""
    datasets = None if batch.datasets is None else batch.datasets.to(backbone.device, non_blocking=True)
    labels = batch.labels.to(backbone.device, non_blocking=True)
    return TaskBatch(images=backbone.place_images(batch.images), labels=labels, datasets=datasets)


def place_replay(batch: ReplayBatch, backbone: "Backbone") -> ReplayBatch:
    """Move the images to the backbone's device, normalised, and cut the tokens to the longest caption.

    `tokens` and `caption_ids` stay on the CPU: which captions are equal decides shapes, and asking a device would make it wait.
    """
    return replace(batch, images=backbone.place_images(batch.images), tokens=backbone.trim(batch.tokens))


class KeyedImages(Dataset[tuple[Tensor, int, str]]):
    """Items (image, label, sample key) chosen from one or more tasks' images, in the order given."""

    def __init__(self, parts: Sequence[tuple[str, TaskImages, Sequence[int]]]) -> None:
        self.places = [(name, dataset, index) for name, dataset, indices in parts for index in indices]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, position: int) -> tuple[Tensor, int, str]:
        name, dataset, index = self.places[position]
        image, label = dataset[index]
        return image, label, f"{name}-{index}"

    def about(self, position: int) -> tuple[int, str]:
        """(label, sample key) of an item; its image is not loaded."""
        name, dataset, index = self.places[position]
        (label,) = dataset.about(index)
        return label, f"{name}-{index}"
