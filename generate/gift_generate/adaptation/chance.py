"""What chance decides in each update: by seed, task and step alone, so that a training that goes on draws what it would have drawn."""

from functools import lru_cache

import torch

from gift_shared.keys import hashed_seed


class Chance:
    """Batches and noise of one task's training. Everything is drawn on the CPU: devices see the same."""

    def __init__(self, task: str, num_images: int, seed: int) -> None:
        self._task = task
        self._num_images = num_images
        self._seed = seed
        self._order = lru_cache(maxsize=2)(self._shuffled)  # a batch may reach into the next pass

    def generator(self, what: str) -> torch.Generator:
        """A source of numbers for one use, e.g. `step 17`."""
        return torch.Generator().manual_seed(hashed_seed(self._seed, f"adapt/{self._task}/{what}"))

    def images(self, step: int, batch_size: int) -> list[int]:
        """The images of an update: passes over all of them, each in an order of its own, one after the other."""
        places = range(step * batch_size, (step + 1) * batch_size)
        return [self._order(place // self._num_images)[place % self._num_images] for place in places]

    def _shuffled(self, number: int) -> list[int]:
        order: list[int] = torch.randperm(self._num_images, generator=self.generator(f"pass {number}")).tolist()
        return order
