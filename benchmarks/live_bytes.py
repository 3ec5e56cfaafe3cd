"""How many bytes of tensors are alive at once: counted, so that every machine says the same, and tensors without data as well."""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the storages of all tensors that operators make while it is entered, until they are freed. `peak` is the most so far, bytes.

    A kernel's own workspace is not among them, and a tensor is as large as its storage, without the rounding of an allocator.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def hold(self, *tensors: torch.Tensor) -> None:
        """Count tensors that were made before."""
        for tensor in tensors:
            self._note(tensor.untyped_storage())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.hold(*(leaf for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)))
        return made

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage in self._alive:
            return
        self._alive.add(storage)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, storage.nbytes())

    def _freed(self, num_bytes: int) -> None:
        self.now -= num_bytes
