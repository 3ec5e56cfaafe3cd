"""Many tensors as one: each in its place of one buffer, so that what is done to all of them is one operation and not one for each.

A place begins at a multiple of CHUNK entries; what is left over behind a tensor is 0 and stays 0 wherever it counts. So a sum over each
tensor is a sum over rows of CHUNK entries, and then one over the few rows of each tensor, in an order that never changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

CHUNK = 2**14  # entries: a ViT-B/16 grows by 2 % of its weights, and its largest tensor has 1,544 of them
CACHED_ENTRIES = 2**20  # 4 MiB of float32


@dataclass(frozen=True)
class Piece:
    """Some consecutive tensors of a layout: where they lie, and which they are."""

    entries: slice
    chunks: slice
    names: tuple[str, ...]


class FlatLayout:
    """The places of named tensors in a buffer, in their order. One chunk more stands at the end and is always 0."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.shapes = {name: tensor.shape for name, tensor in tensors.items()}
        self._num_entries = [tensor.numel() for tensor in tensors.values()]
        self._num_chunks = [-(-count // CHUNK) for count in self._num_entries]
        counts = zip(tensors, self._num_entries, self._num_chunks, strict=True)
        self._part_sizes = {name: (entries, chunks * CHUNK - entries) for name, entries, chunks in counts}  # and what is left over
        self._padding: Tensor | None = None
        like = next(iter(tensors.values()))
        self.dtype, self.device = like.dtype, like.device
        others = {tensor.dtype for tensor in tensors.values()} | {tensor.device for tensor in tensors.values()}
        assert others == {self.dtype, self.device}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FlatLayout) or (self.dtype, self.device) != (other.dtype, other.device):
            return False
        return list(self.shapes.items()) == list(other.shapes.items())  # in one order

    __hash__ = None  # type: ignore[assignment]

    @property
    def size(self) -> int:
        """Entries of a buffer."""
        return CHUNK * (sum(self._num_chunks) + 1)

    def pieces(self) -> list[Piece]:
        """What is worked on at once, together all tensors.

        On a GPU all, for few launches. On a CPU as many as its caches hold, because there the memory is what takes the time: a third of
        the seconds for the 150 million weights of a ViT-B/16 (0.95 to 0.33 on one core), and no temporary copies of them all.
        """
        limit = CACHED_ENTRIES // CHUNK if self.device.type == "cpu" else sum(self._num_chunks)
        pieces: list[Piece] = []
        names: list[str] = []
        start = stop = 0
        for name, count in zip(self.shapes, self._num_chunks, strict=True):
            if names and stop + count - start > limit:
                pieces.append(_piece(start, stop, names))
                names, start = [], stop
            names.append(name)
            stop += count
        return [*pieces, Piece(slice(start * CHUNK, None), slice(start, None), tuple(names))]  # with the chunk at the end

    def gathered(self, tensors: Sequence[Tensor | None]) -> FlatTensors:
        """A buffer of these tensors, given in the layout's order; 0 in place of None."""
        parts: list[Tensor] = []
        for tensor, num_entries, num_chunks in zip(tensors, self._num_entries, self._num_chunks, strict=True):
            num_zeros = num_chunks * CHUNK
            if tensor is not None:
                parts.append(tensor.reshape(-1))
                num_zeros -= num_entries
            if num_zeros:
                parts.append(self._zeros(num_zeros))
        return FlatTensors(self, torch.cat([*parts, self._zeros(CHUNK)]))

    def views(self, buffer: Tensor, piece: Piece | None = None) -> dict[str, Tensor]:
        """The tensors in a buffer, or in that part of one which is a piece, each in its shape; they share its memory."""
        names = tuple(self.shapes) if piece is None else piece.names
        sizes = [size for name in names for size in self._part_sizes[name]]
        parts = buffer[: sum(sizes)].split_with_sizes(sizes)[::2]
        return {name: part.view(self.shapes[name]) for name, part in zip(names, parts, strict=True)}

    def sums(self, chunk_sums: Tensor) -> Tensor:
        """The sum over each tensor from those over its chunks, given back for each chunk: [chunks] -> [chunks]."""
        return chunk_sums[self._chunks_of].sum(dim=1)[self._tensor_of]

    @cached_property
    def entries_of(self) -> Tensor:
        """How many entries the tensor of each chunk has: [chunks]."""
        counts = torch.tensor(self._num_entries, dtype=self.dtype, device=self.device)
        return counts[self._tensor_of]

    @cached_property
    def _tensor_of(self) -> Tensor:
        """Which tensor each chunk belongs to: [chunks]; the one at the end to the last, which it cannot change."""
        numbers = [number for number, count in enumerate(self._num_chunks) for _ in range(count)]
        return torch.tensor([*numbers, len(self._num_chunks) - 1], device=self.device)

    @cached_property
    def _chunks_of(self) -> Tensor:
        """The chunks of each tensor, filled up with the one that is 0: [tensors, most chunks]."""
        table = torch.full((len(self._num_chunks), max(self._num_chunks)), sum(self._num_chunks))
        start = 0
        for row, count in zip(table, self._num_chunks, strict=True):
            row[:count] = torch.arange(start, start + count)
            start += count
        return table.to(self.device)

    def _zeros(self, num_entries: int) -> Tensor:
        if num_entries > CHUNK:
            return torch.zeros(num_entries, dtype=self.dtype, device=self.device)
        if self._padding is None:
            self._padding = torch.zeros(CHUNK, dtype=self.dtype, device=self.device)
        return self._padding[:num_entries]


@dataclass(frozen=True)
class FlatTensors:
    """A layout's tensors, all in `buffer` [size]."""

    layout: FlatLayout
    buffer: Tensor

    @cached_property
    def views(self) -> dict[str, Tensor]:
        """Each tensor by name, in its shape."""
        return self.layout.views(self.buffer)

    def copy(self) -> FlatTensors:
        """Their values as they are now."""
        return FlatTensors(self.layout, self.buffer.clone())


def hold_flat(parameters: Mapping[str, Tensor]) -> FlatTensors:
    """Move these parameters into one buffer. They stay the parameters they are, and see whatever is written to it."""
    with torch.no_grad():
        flat = FlatLayout(parameters).gathered([parameter.detach() for parameter in parameters.values()])
        for name, parameter in parameters.items():
            parameter.data = flat.views[name]
    return flat


def are_held(parameters: Mapping[str, Tensor], flat: FlatTensors) -> bool:
    """Whether these parameters still lie in that buffer: who gives one other memory takes it out."""
    storage = flat.buffer.untyped_storage().data_ptr()
    return all(parameter.untyped_storage().data_ptr() == storage for parameter in parameters.values())


def take_gradients(parameters: Mapping[str, Tensor], layout: FlatLayout) -> FlatTensors:
    """All gradients in one buffer, 0 where there is none; the parameters have none any more."""
    gradients = layout.gathered([parameter.grad for parameter in parameters.values()])
    for parameter in parameters.values():
        parameter.grad = None
    return gradients


def add_gradients(parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
    """Add gradients to the `.grad` of the parameters of their names, and let them be it where there is none."""
    held, added = [], []
    for name, gradient in gradients.items():
        own = parameters[name].grad
        if own is None:
            parameters[name].grad = gradient
        else:
            held.append(own)
            added.append(gradient)
    if held:
        torch._foreach_add_(held, added)


def _piece(start: int, stop: int, names: Sequence[str]) -> Piece:
    return Piece(slice(start * CHUNK, stop * CHUNK), slice(start, stop), tuple(names))
