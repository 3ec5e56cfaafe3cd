"""Synthetic pictures with their captions, read from the shards of stage 1 by the rows that were selected for a task."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from gift_shared.decoding import decode_rgb
from gift_shared.errors import ShardError
from gift_shared.shards import read_image_bytes, tar_name
from gift_shared.storage import Folder
from gift_train.clip.prefix_tree import SplitTree
from gift_train.clip.tree_maker import TreeMaker
from gift_train.data.pixel_cache import CACHE_BYTES, cached
from gift_train.data.transforms import ImageTransform
from gift_train.distributed import SINGLE, Ranks

Tokenizer = Callable[[list[str]], Tensor]
ReplaySample = tuple[Tensor, str, str]


class _Pictures:
    """The picture of a row by its number, decoded."""

    def __init__(self, shards: Folder, rows: pa.Table) -> None:
        self.shards = shards
        columns = ("shard", "byte_offset", "byte_size", "sha256", "sample_key")
        self._places = list(zip(*(rows[column].to_pylist() for column in columns), strict=True))

    def __call__(self, index: int) -> Image.Image:
        shard, offset, size, sha256, sample_key = self._places[index]
        content = read_image_bytes(self.shards, shard, offset, size, sha256)
        return decode_rgb(content, f"{tar_name(self.shards, shard)} ({sample_key})", ShardError)


class ReplayDataset(Dataset[ReplaySample]):
    """Item = (image uint8 [3, S, S], caption, sample key), in the order of `rows` (INDEX_SCHEMA, status ok).

    cache_bytes: memory for images that are decoded once and kept.
    """

    def __init__(self, shards: Folder, rows: pa.Table, transform: ImageTransform, cache_bytes: int = CACHE_BYTES) -> None:
        self.captions: list[str] = rows["caption"].to_pylist()
        self.sample_keys: list[str] = rows["sample_key"].to_pylist()
        self._prepared = cached(_Pictures(shards, rows), transform, len(rows), cache_bytes)

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> ReplaySample:
        """Raises ShardError, naming shard and key, for a tar that is missing or changed and an image that does not decode."""
        return self._prepared(index), *self.about(index)

    def about(self, index: int) -> tuple[str, str]:
        """(caption, sample key) of an item; its image is not loaded."""
        return self.captions[index], self.sample_keys[index]


@dataclass(frozen=True, kw_only=True)
class ReplayBatch:
    """B synthetic pictures and their captions. Equal captions have equal ids: they share an alignment target (METHODS 3.2).

    On several ranks `images` are this rank's share, in the order of the batch, and `caption_tree` is of its share of the distinct
    captions, in the order of their ids; all else is the whole batch's.
    """

    images: Tensor  # [B or this rank's share, 3, H, W], uint8 as loaded, normalised float32 once placed
    captions: tuple[str, ...]
    tokens: Tensor  # [B, L] long
    caption_ids: Tensor  # [B] long, counted from 0 by first appearance in this batch
    sample_keys: tuple[str, ...]
    caption_tree: SplitTree | None = None  # None: made where the captions are encoded, if they are

    def pin_memory(self) -> "ReplayBatch":
        """What travels to a device in memory that is copied there without waiting; a DataLoader asks for it."""
        tree = None if self.caption_tree is None else self.caption_tree.pin_memory()
        return replace(self, images=self.images.pin_memory(), caption_tree=tree)


class ReplayCollate:
    """Samples -> ReplayBatch. A caption is tokenised once and remembered: a task draws a few hundred distinct ones.

    trees: what makes the trees of captions that are encoded in every step; None where none are. `ranks` share the batch.
    """

    def __init__(self, tokenizer: Tokenizer, trees: TreeMaker | None = None, ranks: Ranks = SINGLE) -> None:
        self.tokenizer = tokenizer
        self.trees = trees
        self.ranks = ranks
        self._tokens: dict[str, Tensor] = {}

    def __call__(self, samples: Sequence[ReplaySample]) -> ReplayBatch:
        images, captions, sample_keys = zip(*samples, strict=True)
        ids: dict[str, int] = {}
        caption_ids = torch.tensor([ids.setdefault(caption, len(ids)) for caption in captions], dtype=torch.long)
        own = list(ids)[self.ranks.share(len(ids))]
        return ReplayBatch(
            images=torch.stack([image for image in images if image is not None]),
            captions=captions,
            tokens=self._tokenize(captions),
            caption_ids=caption_ids,
            sample_keys=sample_keys,
            caption_tree=None if self.trees is None else self.trees(self._tokenize(own)),
        )

    def _tokenize(self, captions: Sequence[str]) -> Tensor:
        new = sorted(set(captions) - self._tokens.keys())
        if new:
            self._tokens.update(zip(new, self.tokenizer(new).long(), strict=True))
        return torch.stack([self._tokens[caption] for caption in captions])
