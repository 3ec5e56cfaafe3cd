"""Texts of a loss, in two steps: what the host decides of them, which needs their tokens, and what the device computes of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gift_train.clip.model import Backbone
from gift_train.clip.prefix_tree import PrefixTree, SplitTree
from gift_train.clip.tree_buckets import in_bucket
from gift_train.data.replay import ReplayBatch
from gift_train.distributed import SINGLE, Ranks


@dataclass(frozen=True, kw_only=True)
class Texts:
    """N texts that can be encoded without a look at their tokens' values, K of them different.

    On several ranks `tokens` and `tree` are this rank's share of the K.
    """

    tokens: Tensor  # [K or this rank's share, L] on the CPU
    tree: SplitTree | None  # they, on the model's device; None where they do not pass as a tree
    num_distinct: int  # K
    rows: Tensor | None  # [N] long on the model's device: which of the K each text is; None where all are different, in their order

    def encoded(self, backbone: Backbone, ranks: Ranks = SINGLE) -> Tensor:
        """Features [N, D]; each distinct text passes once and its row is repeated, so its gradients add up."""
        distinct = ranks.all_gather(backbone.encode_texts(self.tokens, self.tree), self.num_distinct)
        return distinct if self.rows is None else distinct[self.rows]

    def in_few_shapes(self) -> Texts:
        """The same texts for compiled code, made for one shape at a time: of their number and of the tree's few sizes, of nothing else.

        A text that is repeated is read at its place in the tree each time. For trees of one part, on one rank.
        """
        assert self.tree is not None
        [part] = self.tree.parts
        tree = in_bucket(part)
        ends = tree.ends if self.rows is None else tree.ends[self.rows]
        fixed = SplitTree(parts=(PrefixTree(nodes=tree.nodes, ends=ends),), places=None)
        return Texts(tokens=torch.empty(0), tree=fixed, num_distinct=len(ends), rows=None)


def class_texts(backbone: Backbone, tokens: Tensor, ranks: Ranks = SINGLE) -> Texts:
    """Texts that every step encodes, [K, L]: a task's prompts. Their tree is made once and remembered."""
    own = tokens[ranks.share(len(tokens))]
    return Texts(tokens=own, tree=backbone.text_tree(own), num_distinct=len(tokens), rows=None)


def caption_texts(backbone: Backbone, batch: ReplayBatch, ranks: Ranks = SINGLE) -> Texts:
    """A batch's captions, repeats included, as the tree that it brings, if it brings one.

    Uses that `caption_ids` count from 0 by first appearance and stay on the CPU, so nothing waits for the device.
    """
    ids = batch.caption_ids.tolist()
    first: dict[int, int] = {}
    for row, caption_id in enumerate(ids):
        first.setdefault(caption_id, row)
    tokens, rows = batch.tokens, None
    if len(first) < len(ids):
        place = {caption_id: place for place, caption_id in enumerate(first)}
        tokens = tokens[list(first.values())]
        rows = on_device([place[caption_id] for caption_id in ids], backbone.device)
    own = tokens[ranks.share(len(tokens))]
    tree = backbone.text_tree(own) if batch.caption_tree is None else batch.caption_tree
    return Texts(tokens=own, tree=tree, num_distinct=len(tokens), rows=rows)


def encode_captions(backbone: Backbone, batch: ReplayBatch, ranks: Ranks = SINGLE) -> Tensor:
    """Text features [B, D] of a batch. Values and gradients are those of encoding all B, up to the order of a sum."""
    return caption_texts(backbone, batch, ranks).encoded(backbone, ranks)


def on_device(numbers: list[int], device: torch.device) -> Tensor:
    """[N] long, made on the CPU and sent: torch.tensor(..., device=...) and indexing by a list would wait for the device."""
    return torch.tensor(numbers).to(device, non_blocking=True)
