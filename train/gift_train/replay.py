"""Synthetic pictures with their captions, read from the shards of stage 1 by the rows that were selected for a task."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import Dataset

from gift_shared.errors import ShardError
from gift_shared.shards import read_image_bytes, shard_tar
from gift_train.datasets.images import DecodedCache, decode_rgb
from gift_train.transforms import ImageTransform

Tokenizer = Callable[[list[str]], Tensor]
ReplaySample = tuple[Tensor, str, str]


class ReplayDataset(Dataset[ReplaySample]):
    """Item = (image float32 [3, H, W], caption, sample key), in the order of `rows` (INDEX_SCHEMA, status ok)."""

    def __init__(self, out: Path, rows: pa.Table, transform: ImageTransform) -> None:
        self.out = out
        self.transform = transform
        self.captions: list[str] = rows["caption"].to_pylist()
        self.sample_keys: list[str] = rows["sample_key"].to_pylist()
        columns = ("shard", "byte_offset", "byte_size", "sha256")
        self._places = list(zip(*(rows[column].to_pylist() for column in columns), strict=True))
        self._cache = DecodedCache()

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> ReplaySample:
        """Raises ShardError, naming shard and key, for a tar that is missing or changed and an image that does not decode."""
        image = self._cache.get(index)
        if image is None:
            shard, offset, size, sha256 = self._places[index]
            content = read_image_bytes(self.out, shard, offset, size, sha256)
            image = decode_rgb(content, f"{shard_tar(self.out, shard)} ({self.sample_keys[index]})", ShardError)
            self._cache.offer(index, image)
        return self.transform(image), self.captions[index], self.sample_keys[index]


@dataclass(frozen=True, kw_only=True)
class ReplayBatch:
    """B synthetic pictures and their captions. Equal captions have equal ids: they share an alignment target (METHODS 3.2)."""

    images: Tensor  # [B, 3, H, W] float32
    captions: tuple[str, ...]
    tokens: Tensor  # [B, L] long
    caption_ids: Tensor  # [B] long, counted from 0 by first appearance in this batch
    sample_keys: tuple[str, ...]

    def to(self, device: torch.device | str) -> "ReplayBatch":
        """The same batch with its tensors on `device`."""
        return ReplayBatch(
            images=self.images.to(device, non_blocking=True),
            captions=self.captions,
            tokens=self.tokens.to(device, non_blocking=True),
            caption_ids=self.caption_ids.to(device, non_blocking=True),
            sample_keys=self.sample_keys,
        )


class ReplayCollate:
    """Samples -> ReplayBatch. A caption is tokenised once and remembered: a task draws a few hundred distinct ones."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._tokens: dict[str, Tensor] = {}

    def __call__(self, samples: Sequence[ReplaySample]) -> ReplayBatch:
        images, captions, sample_keys = zip(*samples, strict=True)
        ids: dict[str, int] = {}
        caption_ids = torch.tensor([ids.setdefault(caption, len(ids)) for caption in captions], dtype=torch.long)
        return ReplayBatch(
            images=torch.stack(images),
            captions=captions,
            tokens=self._tokenize(captions),
            caption_ids=caption_ids,
            sample_keys=sample_keys,
        )

    def _tokenize(self, captions: Sequence[str]) -> Tensor:
        new = sorted(set(captions) - self._tokens.keys())
        if new:
            self._tokens.update(zip(new, self.tokenizer(new).long(), strict=True))
        return torch.stack([self._tokens[caption] for caption in captions])
