"""Texts as the tree of their prefixes: what a causal text tower computes more than once is computed once. No model in here.

Under the causal mask a position's hidden state depends on the tokens up to it and on nothing else. Texts that begin alike, as
"a photo of a {}." does for every class, share those states, and what follows the token that is read matters to nobody. So the
tree of all distinct prefixes holds everything there is to compute: one node per prefix, at the position of its depth, attending
to itself and its ancestors. The tree is cut into rows of equal length; a prefix that two rows need is in both.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LONGEST_ROW = 192  # nodes, unless one text is longer
ROW_STEP = 8  # row lengths are multiples of it: fused attention wants aligned masks, and compiled code few shapes
ATTENTION_COST = 1e-3  # of one more masked neighbour, as a share of a node's products: three times its operations, as attention is slower

Text = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class PrefixTree:
    """K texts as R rows of N nodes; nodes that only fill a row attend to themselves and are never read."""

    tokens: Tensor  # [R, N] long
    positions: Tensor  # [R, N] long: a node's depth
    attends: Tensor  # [R, N, N] bool: the column is the row's node itself or one of its ancestors
    ends: Tensor  # [K] long: place among the R * N nodes of each text's last one; equal texts have the same

    def to(self, device: torch.device) -> PrefixTree:
        """The same on `device`; by way of pinned memory, so that the host does not wait."""
        if device.type == "cpu":
            return self
        pins = device.type == "cuda"
        moved = {name: (tensor.pin_memory() if pins else tensor).to(device, non_blocking=True) for name, tensor in vars(self).items()}
        return PrefixTree(**moved)


@dataclass(frozen=True, kw_only=True)
class SplitTree:
    """A prefix tree in parts of a few of its rows each, every text in the part that it ends in; nothing is in more parts than rows."""

    parts: tuple[PrefixTree, ...]
    places: Tensor | None  # [K] long: where each text stands among those of all parts; None where there is one part, in their order

    def to(self, device: torch.device) -> SplitTree:
        """The same on `device`, without waiting."""
        places = None if self.places is None else self.places.to(device, non_blocking=True)
        return SplitTree(parts=tuple(part.to(device) for part in self.parts), places=places)


def split_tree(tree: PrefixTree, max_rows: int | None) -> SplitTree:
    """Parts of at most so many rows (one part if None) of a tree on the CPU."""
    num_rows, row_length = tree.tokens.shape
    if max_rows is None or num_rows <= max_rows:
        return SplitTree(parts=(tree,), places=None)
    part_of = tree.ends // (row_length * max_rows)
    parts = []
    for number, start in enumerate(range(0, num_rows, max_rows)):
        rows = slice(start, start + max_rows)
        ends = tree.ends[part_of == number] - start * row_length
        parts.append(PrefixTree(tokens=tree.tokens[rows], positions=tree.positions[rows], attends=tree.attends[rows], ends=ends))
    return SplitTree(parts=tuple(parts), places=part_of.argsort(stable=True).argsort())


def texts_in_rows(num_rows: int, length: int) -> int:
    """How many plain texts of so many tokens are as much work as so many rows of a tree; at least as many texts as rows."""
    return num_rows * max(1, LONGEST_ROW // length)


def build_prefix_tree(tokens: Tensor, last: Tensor) -> PrefixTree:
    """The tree of these texts, in rows.

    Args:
        tokens: [K, L], K at least 1, on the CPU.
        last: [K], the position that is read of each; what comes after it is left out.
    """
    texts: list[Text] = [tuple(row[: end + 1]) for row, end in zip(tokens.tolist(), last.tolist(), strict=True)]
    distinct = sorted(set(texts))  # neighbours share most, and a text follows those it begins with
    shared = [0, *(_num_shared(*pair) for pair in itertools.pairwise(distinct))]
    length = _row_length([len(text) for text in distinct], shared)
    rows = [distinct[start:stop] for start, stop in _rows([len(text) for text in distinct], shared, length)]
    place_of: dict[Text, int] = {}
    packed = [_pack_row(row, length, number * length, place_of) for number, row in enumerate(rows)]
    row_tokens, positions, attends = (torch.stack(part) for part in zip(*packed, strict=True))
    return PrefixTree(tokens=row_tokens, positions=positions, attends=attends, ends=torch.tensor([place_of[text] for text in texts]))


def _pack_row(row: Sequence[Text], length: int, offset: int, place_of: dict[Text, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [N], positions [N] and attends [N, N] of one row; notes each text's last place, counted from `offset`."""
    tokens, positions = torch.zeros(2, length, dtype=torch.long)
    attends = torch.eye(length, dtype=torch.bool)
    path: list[int] = []  # the nodes of the current text's prefixes
    num_nodes = 0
    for before, text in zip([(), *row], row, strict=False):
        shared = _num_shared(before, text)
        new = range(num_nodes, num_nodes + len(text) - shared)
        path = [*path[:shared], *new]
        num_nodes = new.stop
        tokens[new.start : new.stop] = torch.tensor(text[shared:])
        positions[new.start : new.stop] = torch.arange(shared, len(text))
        attends[new.start : new.stop, path] = torch.ones(len(new), len(path), dtype=torch.bool).tril(shared)
        place_of[text] = offset + path[-1]
    return tokens, positions, attends


def _num_shared(first: Text, second: Text) -> int:
    """Length of the common beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(first), len(second)))


def _rows(lengths: Sequence[int], shared: Sequence[int], row_length: int) -> Iterator[tuple[int, int]]:
    """Fill rows of at most `row_length` nodes with the texts in their order; yields (first text, one past the last)."""
    start, num_nodes = 0, 0
    for number, (length, num_shared) in enumerate(zip(lengths, shared, strict=True)):
        num_new = length - num_shared
        if number > start and num_nodes + num_new > row_length:
            yield start, number
            start, num_nodes = number, 0
        num_nodes += num_new if number > start else length
    yield start, len(lengths)


def _row_length(lengths: Sequence[int], shared: Sequence[int]) -> int:
    """The row length that costs least: short rows repeat prefixes, long ones attend over more, and the last may stay half empty."""
    shortest = -(-max(lengths) // ROW_STEP) * ROW_STEP

    def cost(row_length: int) -> float:
        num_rows = sum(1 for _ in _rows(lengths, shared, row_length))
        return num_rows * row_length * (1 + ATTENTION_COST * row_length)

    return min(range(shortest, max(shortest, LONGEST_ROW) + 1, ROW_STEP), key=cost)
