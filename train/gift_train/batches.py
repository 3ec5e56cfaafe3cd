"""Which samples a step sees: endless shuffled epochs that follow from (seed, position) alone, so that resuming is arithmetic.

Randomness inside a batch (crops) comes from torch's global generator, seeded here from (seed, position) while the batch is
made: neither what was drawn before nor the number of worker processes can change a batch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gift_shared.keys import hashed_seed
from gift_train.backbone import Backbone
from gift_train.replay import ReplayBatch


@dataclass(frozen=True, kw_only=True)
class TaskBatch:
    """Real images of the current task."""

    images: Tensor  # [B, 3, H, W] float32
    labels: Tensor  # [B] long

    def to(self, device: torch.device) -> "TaskBatch":
        return TaskBatch(images=self.images.to(device, non_blocking=True), labels=self.labels.to(device, non_blocking=True))


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
        order = torch.arange(self.num_samples)
        if self.is_shuffled:
            generator = torch.Generator().manual_seed(hashed_seed(self.seed, f"{self.name}/epoch-{epoch}"))
            order = torch.randperm(self.num_samples, generator=generator)
        return order[batch * self.batch_size : (batch + 1) * self.batch_size].tolist()


@dataclass(frozen=True, kw_only=True)
class ImageStream:
    """Shuffled batches through the training transform, apart from those the student trains on."""

    batches_per_epoch: int
    take: Callable[[int], Iterator[Tensor]]  # the first n batches, each [B, 3, H, W] on the student's device


class _BatchesByPosition(Dataset[Any]):
    """Item = the whole batch at a position: what lets a DataLoader resume anywhere."""

    def __init__(self, dataset: Dataset[Any], order: BatchOrder, collate: Callable[[Sequence[Any]], Any]) -> None:
        self.dataset = dataset
        self.order = order
        self.collate = collate

    def __getitem__(self, position: int) -> Any:
        indices = self.order.indices(position)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hashed_seed(self.order.seed, f"{self.order.name}/batch-{position}"))
            return self.collate([self.dataset[index] for index in indices])


def stream(
    dataset: Dataset[Any], order: BatchOrder, collate: Callable[[Sequence[Any]], Any], positions: range, num_workers: int = 0
) -> Iterator[Any]:
    """The batches at `positions` of the endless stream, made in this process or by worker processes: the same either way."""
    batches = _BatchesByPosition(dataset, order, collate)
    if num_workers == 0:
        return (batches[position] for position in positions)
    # A starting loader draws a seed; from a generator of its own, or the run's random state would tell how often it was resumed.
    own, pins = torch.Generator(), torch.cuda.is_available()
    return iter(DataLoader(batches, batch_size=None, sampler=positions, num_workers=num_workers, pin_memory=pins, generator=own))


def collate_task(samples: Sequence[tuple[Tensor, int]]) -> TaskBatch:
    """(image, label) samples -> TaskBatch."""
    images, labels = zip(*samples, strict=True)
    return TaskBatch(images=torch.stack(images), labels=torch.tensor(labels))


def stack_images(samples: Sequence[tuple[Any, ...]]) -> Tensor:
    """Samples of any dataset here, whose items begin with the image -> [B, 3, H, W]."""
    return torch.stack([sample[0] for sample in samples])


def collate_images(samples: Sequence[tuple[Tensor, int, str]]) -> ReplayBatch:
    """(image, label, sample key) samples of real tasks -> ReplayBatch without captions, for methods that replay images alone."""
    images, _, keys = zip(*samples, strict=True)
    empty = torch.zeros(len(images), 0, dtype=torch.long)
    return ReplayBatch(images=torch.stack(images), captions=(), tokens=empty, caption_ids=empty[:, :0].flatten(), sample_keys=keys)


def place_replay(batch: ReplayBatch, backbone: Backbone) -> ReplayBatch:
    """Cut the tokens to the longest caption and move images and tokens to the backbone's device.

    `caption_ids` stay on the CPU: which captions are equal decides shapes, and asking a device would make it wait.
    """
    return replace(
        batch,
        images=batch.images.to(backbone.device, non_blocking=True),
        tokens=backbone.trim(batch.tokens).to(backbone.device, non_blocking=True),
    )


class KeyedImages(Dataset[tuple[Tensor, int, str]]):
    """Items (image, label, sample key) chosen from one or more labelled datasets, in the order given."""

    def __init__(self, parts: Sequence[tuple[str, Dataset[tuple[Tensor, int]], Sequence[int]]]) -> None:
        self.places = [(name, dataset, index) for name, dataset, indices in parts for index in indices]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, position: int) -> tuple[Tensor, int, str]:
        name, dataset, index = self.places[position]
        image, label = dataset[index]
        return image, label, f"{name}-{index}"
