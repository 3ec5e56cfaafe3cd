"""Texts as the tree of their prefixes: what a causal text tower computes more than once is computed once. No model in here.

Under the causal mask a position's hidden state depends on the tokens up to it and on nothing else. Texts that begin alike, as
"a photo of a {}." does for every class, share those states, and what follows the token that is read matters to nobody. So the
tree of all distinct prefixes holds everything there is to compute: one node per prefix, at the position of its depth, attending
to itself and its ancestors. The tree is cut into rows of equal length; a prefix that two rows need is in both.

Within a row nodes stand in depth-first order, so a node's descendants follow it without a gap: who attends to whom is one number a node.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LONGEST_ROW = 192  # nodes, unless one text is longer
ROW_STEP = 8  # row lengths are multiples of it: fused attention wants aligned masks
ATTENTION_COST = 1e-3  # of one more masked neighbour, as a share of a node's products: three times its operations, as attention is slower
NOTHING = -1  # after a text's end; less than any token, so that a text stands before those that it begins

Numbers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class PrefixTree:
    """K texts as R rows of N nodes; nodes that only fill a row attend to themselves and are never read."""

    nodes: Tensor  # [3, R, N] long: token, position, and the place in its row at which a node's descendants end; one tensor, one copy
    ends: Tensor  # [K] long: place among the R * N nodes of each text's last one; equal texts have the same

    @property
    def tokens(self) -> Tensor:
        """[R, N] long."""
        return self.nodes[0]

    @property
    def positions(self) -> Tensor:
        """[R, N] long: a node's depth."""
        return self.nodes[1]

    @property
    def attends(self) -> Tensor:
        """[R, N, N] bool, made anew: the column is the row's node itself or one of its ancestors."""
        places = torch.arange(self.nodes.shape[2], device=self.nodes.device)
        return (places[:, None] >= places) & (places[:, None] < self.nodes[2][:, None])

    def attention_bias(self, dtype: torch.dtype) -> Tensor:
        """[R, 1, N, N], what is added to attention's scores, the same for every head: 0 where a node attends, else minus infinity.

        What `scaled_dot_product_attention` would make of `attends` each time it is called.
        """
        is_hidden = self.attends.logical_not_()[:, None]
        return torch.zeros(is_hidden.shape, dtype=dtype, device=is_hidden.device).masked_fill_(is_hidden, -torch.inf)

    def to(self, device: torch.device) -> PrefixTree:
        """The same on `device`; by way of pinned memory, so that the host does not wait."""
        return PrefixTree(nodes=_moved(self.nodes, device), ends=_moved(self.ends, device))

    def pin_memory(self) -> PrefixTree:
        """In memory that is copied to a device without waiting."""
        return PrefixTree(nodes=self.nodes.pin_memory(), ends=self.ends.pin_memory())


@dataclass(frozen=True, kw_only=True)
class SplitTree:
    """A prefix tree in parts of a few of its rows each, every text in the part in which it ends. What rows share stays shared."""

    parts: tuple[PrefixTree, ...]
    places: Tensor | None  # [K] long: where each text stands among those of all parts; None where there is one part, in their order

    def to(self, device: torch.device) -> SplitTree:
        """The same on `device`, without waiting."""
        return SplitTree(
            parts=tuple(part.to(device) for part in self.parts), places=None if self.places is None else _moved(self.places, device)
        )

    def pin_memory(self) -> SplitTree:
        """In memory that is copied to a device without waiting."""
        return SplitTree(
            parts=tuple(part.pin_memory() for part in self.parts), places=None if self.places is None else self.places.pin_memory()
        )


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def split_tree(tree: PrefixTree, max_rows: int | None) -> SplitTree:
    """Parts of at most so many rows (one part if None) of a tree on the CPU."""
    _, num_rows, row_length = tree.nodes.shape
    if max_rows is None or num_rows <= max_rows:
        return SplitTree(parts=(tree,), places=None)
    part_of = tree.ends // (row_length * max_rows)
    parts = []
    for number, start in enumerate(range(0, num_rows, max_rows)):
        ends = tree.ends[part_of == number] - start * row_length
        parts.append(PrefixTree(nodes=tree.nodes[:, start : start + max_rows], ends=ends))
    return SplitTree(parts=tuple(parts), places=part_of.argsort(stable=True).argsort())


def texts_in_rows(num_rows: int, length: int) -> int:
    """How many plain texts of so many tokens are as much work as so many rows of a tree; at least as many texts as rows."""
    return num_rows * max(1, LONGEST_ROW // length)


def build_prefix_tree(tokens: Tensor, last: Tensor, row_length: int | None = None) -> PrefixTree:
    """The tree of these texts, in rows.

    Args:
        tokens: [K, L], K at least 1, on the CPU.
        last: [K], the position that is read of each; what comes after it is left out.
        row_length: of every row, or its least multiple that holds each text; the length that costs least if None.
    """
    texts = _distinct(tokens.numpy(), last.numpy())
    row_length, first_texts = _rows(texts, row_length)
    starts = np.array(first_texts)
    shared = texts.shared.copy()
    shared[starts] = 0  # a row begins with a whole text
    num_new = texts.lengths - shared
    row_of = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(num_new)))
    num_before = np.cumsum(num_new) - num_new
    first_place = num_before - num_before[starts][row_of]  # of the nodes that a text adds to its row

    owner = np.repeat(np.arange(len(num_new)), num_new)  # of each node: the first text that has it
    depth = np.arange(len(owner)) - (num_before - shared)[owner]
    flat = row_of[owner] * row_length + first_place[owner] + depth - shared[owner]
    nodes = np.zeros((3, len(starts), row_length), dtype=np.int64)
    nodes[2] = np.arange(1, row_length + 1)  # what fills a row has no descendants
    by_place = nodes.reshape(3, -1)
    by_place[0, flat] = texts.tokens[owner, depth]
    by_place[1, flat] = depth
    by_place[2, flat] = _ends_of_descendants(shared, row_of, first_place, num_new)[owner, depth]
    last_node = row_of * row_length + first_place + num_new - 1
    return PrefixTree(nodes=torch.from_numpy(nodes), ends=torch.from_numpy(last_node[texts.number_of]))


@dataclass(frozen=True, kw_only=True)
class _Distinct:
    """D different texts, sorted: neighbours share most, and a text follows those it begins with."""

    tokens: Numbers  # [D, L], NOTHING after a text's end
    lengths: Numbers  # [D]
    shared: Numbers  # [D]: tokens that a text begins with as the one before it does; 0 of the first
    number_of: Numbers  # [K]: which of them each of the given texts is


def _distinct(tokens: Numbers, last: Numbers) -> _Distinct:
    length = int(last.max()) + 1
    cut = np.where(np.arange(length) <= last[:, None], tokens[:, :length], NOTHING)
    order = np.lexsort(cut.T[::-1])
    cut = cut[order]
    shared = np.logical_and.accumulate(cut[1:] == cut[:-1], axis=1).sum(axis=1)  # with the text before
    is_first = np.concatenate([[True], shared < length])
    number_of = np.empty(len(order), dtype=np.int64)
    number_of[order] = np.cumsum(is_first) - 1
    return _Distinct(
        tokens=cut[is_first],
        lengths=last[order][is_first] + 1,
        shared=np.concatenate([[0], shared[is_first[1:]]]),
        number_of=number_of,
    )


def _ends_of_descendants(shared: Numbers, row_of: Numbers, first_place: Numbers, num_new: Numbers) -> Numbers:
    """[D, L]: where in its row the descendants end of the node that text d has at depth l: at the next text that parts from it there."""
    num_texts, depths = len(shared), np.arange(int((shared + num_new).max()))
    parting = np.where(shared[:, None] <= depths, np.arange(num_texts)[:, None], num_texts)
    next_parting = np.minimum.accumulate(parting[::-1], axis=0)[::-1][1:]
    # A row's first text parts from all before it, so the next text that parts is in the row or begins another.
    next_parting = np.concatenate([next_parting, np.full((1, len(depths)), num_texts)])
    starts_row = np.append(np.diff(row_of, prepend=-1) > 0, True)
    num_in_row = np.bincount(row_of, weights=num_new).astype(np.int64)
    return np.where(starts_row[next_parting], num_in_row[row_of][:, None], np.append(first_place, 0)[next_parting])


def _rows(texts: _Distinct, fixed: int | None) -> tuple[int, list[int]]:
    """The row length that costs least, or the least multiple of a fixed one; and the first text of each row then.

    Short rows repeat prefixes, long ones attend over more, and the last may stay half empty.
    """
    lengths: list[int] = texts.lengths.tolist()
    num_nodes: list[int] = np.cumsum(texts.lengths - texts.shared).tolist()  # that a text and those before it need in one row
    step = fixed or ROW_STEP
    shortest = -(-max(lengths) // step) * step
    candidates = range(shortest, max(shortest, LONGEST_ROW) + 1, step) if fixed is None else [shortest]
    starts = {row_length: _row_starts(lengths, num_nodes, row_length) for row_length in candidates}
    cheapest = min(candidates, key=lambda row_length: len(starts[row_length]) * row_length * (1 + ATTENTION_COST * row_length))
    return cheapest, starts[cheapest]


def _row_starts(lengths: Sequence[int], num_nodes: Sequence[int], row_length: int) -> list[int]:
    """The first text of each row, when rows of at most `row_length` nodes are filled with the texts in their order."""
    starts = [0]
    while True:
        start = starts[-1]
        after = bisect_right(num_nodes, num_nodes[start] + row_length - lengths[start], lo=start)
        if after == len(lengths):
            return starts
        starts.append(after)
