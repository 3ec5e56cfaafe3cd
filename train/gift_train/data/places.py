"""Where many images lie, in a few arrays: what a million Python objects would take half a gigabyte for, in each process that reads them."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


class Place(NamedTuple):
    """An image's bytes: from `offset` on in a file; `size` -1 for all that follow."""

    path: Path
    offset: int
    size: int


class Places(Sequence[Place]):
    """An immutable list of places. Forked processes share its memory: there is no object in it whose count they would write."""

    def __init__(
        self, files: pa.LargeBinaryArray, numbers: NDArray[np.int32], offsets: NDArray[np.int64], sizes: NDArray[np.int64]
    ) -> None:
        self._files = files  # as the file system has their names
        self._numbers, self._offsets, self._sizes = numbers, offsets, sizes

    @classmethod
    def of(cls, places: Iterable[Place]) -> "Places":
        """Places one after the other; a file that holds several in a row is kept once."""
        files: list[bytes] = []
        rows: list[tuple[int, int, int]] = []
        for path, offset, size in places:
            name = os.fsencode(path)
            if not files or files[-1] != name:
                files.append(name)
            rows.append((len(files) - 1, offset, size))
        columns = np.array(rows, dtype=np.int64).reshape(-1, 3)
        return cls(pa.array(files, pa.large_binary()), columns[:, 0].astype(np.int32), columns[:, 1].copy(), columns[:, 2].copy())

    def take(self, indices: Sequence[int]) -> "Places":
        """Those at the indices, in their order."""
        chosen = np.asarray(indices, dtype=np.int64)
        return Places(self._files, self._numbers[chosen], self._offsets[chosen], self._sizes[chosen])

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Place: ...
    @overload
    def __getitem__(self, index: slice) -> "Places": ...
    def __getitem__(self, index: int | slice) -> "Place | Places":
        if isinstance(index, slice):
            return self.take(range(len(self))[index])
        path = Path(os.fsdecode(self._files[int(self._numbers[index])].as_py()))
        return Place(path, int(self._offsets[index]), int(self._sizes[index]))

    def __iter__(self) -> Iterator[Place]:
        return (self[index] for index in range(len(self)))
