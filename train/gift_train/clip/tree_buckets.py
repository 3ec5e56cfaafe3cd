"""Prefix trees in few shapes, for compiled code that is made for one shape at a time. Features are those of the tree as it is."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from gift_train.clip.prefix_tree import PrefixTree

# Nodes in a row of what is made for compiled code: 60 batches of 64 ImageNet prompts are then 2 shapes and no longer 9, with 1.06 times the
# nodes. 64 and 16 captions of three datasets are 1 or 2 shapes at 96 as at 128, which takes up to 1.7 times the nodes and not 1.4.
ROW_LENGTH = 96
LENGTH_STEP = 32  # nodes, of a tree that was made without


def in_bucket(tree: PrefixTree) -> PrefixTree:
    """The tree with more rows and longer ones, up to the next of few sizes; what is added attends to itself and is never read."""
    _, num_rows, length = tree.nodes.shape
    more_rows, longer = bucket(num_rows) - num_rows, -length % LENGTH_STEP
    if more_rows == longer == 0:
        return tree
    nodes = F.pad(tree.nodes, (0, longer, 0, more_rows))
    behind = torch.arange(1, length + longer + 1, device=nodes.device)  # a node that nothing descends from ends right behind itself
    nodes[2, :, length:] = behind[length:]
    nodes[2, num_rows:] = behind
    return PrefixTree(nodes=nodes, ends=tree.ends + tree.ends // length * longer)


def bucket(num_rows: int) -> int:
    """The least of 1, 2, 3, 4, 6, 8, 12, 16, 24 ... that is not smaller."""
    power = 1 << (num_rows - 1).bit_length()
    return power * 3 // 4 if num_rows <= power * 3 // 4 else power
