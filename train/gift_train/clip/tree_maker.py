"""Texts -> the tree as which a model reads them, and nothing of the model: processes that load captions are handed this, and no weights."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gift_train.clip.prefix_tree import SplitTree, build_prefix_tree, split_tree
from gift_train.clip.tree_buckets import ROW_LENGTH, in_bucket


@dataclass(frozen=True)
class TextEnds:
    """Where open_clip reads a text's feature: at the first end token ("eos"), or the first of the largest ids ("argmax")."""

    pooling: str
    end_id: int

    def __call__(self, tokens: Tensor) -> Tensor:
        """[K, L] -> [K]."""
        if self.pooling == "eos":
            return torch.as_tensor((tokens == self.end_id).int().argmax(dim=1))
        return tokens.argmax(dim=1)


@dataclass(frozen=True)
class TreeMaker:
    """The tree of texts on the CPU, in parts of so many rows (one part if None), and for compiled code in few shapes."""

    ends: TextEnds
    max_rows: int | None = None
    is_for_compiled: bool = False

    def __call__(self, tokens: Tensor) -> SplitTree:
        """[K, L] on the CPU, K at least 1."""
        row_length = ROW_LENGTH if self.is_for_compiled else None
        tree = split_tree(build_prefix_tree(tokens, self.ends(tokens), row_length), self.max_rows)
        return replace(tree, parts=tuple(map(in_bucket, tree.parts))) if self.is_for_compiled else tree
