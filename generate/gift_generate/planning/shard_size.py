"""How many images a shard holds: as asked, by minutes of work, or small enough that all workers are busy to the end."""

import heapq
from collections.abc import Sequence

from gift_generate.planning.plan_request import IMAGES_PER_SHARD, PlanRequest
from gift_shared.errors import ConfigError

BATCHES_OF = 32  # sizes are multiples of it: a last batch that is not full costs a GPU almost as much as a full one
BUSY_ENOUGH = 0.95  # of all workers' time until the last one is done
SHARDS_PER_WORKER = 10  # at least: workers are never equally fast, and the last to finish has one shard more than the others


def shard_size(request: PlanRequest, group_sizes: Sequence[int], images_per_second: float | None) -> int:
    """Images a shard holds at most; `group_sizes` are the images of each task or source, which a shard never mixes.

    Raises: ConfigError if two options contradict each other, or a rate is missing.
    """
    if request.images_per_shard is not None:
        if request.workers is not None or request.minutes_per_shard is not None:
            raise ConfigError("--images-per-shard says what --workers and --minutes-per-shard would choose: give one of them.")
        return request.images_per_shard
    sizes = [IMAGES_PER_SHARD] if request.minutes_per_shard is None else [_size_of(request.minutes_per_shard, images_per_second)]
    if request.workers is not None:
        sizes.append(_size_for(request.workers, group_sizes, sizes[0]))
    return sizes[-1]


def busy_fraction(group_sizes: Sequence[int], size: int, workers: int) -> float:
    """The share of their time that equally fast workers work, from the first shard to the end of the last, if each takes the next one."""
    free_at = [0] * workers
    for images in group_sizes:
        for start in range(0, images, size):
            heapq.heapreplace(free_at, free_at[0] + min(size, images - start))
    return sum(group_sizes) / (workers * max(free_at))


def _size_of(minutes: float, images_per_second: float | None) -> int:
    if not 0 < minutes < float("inf"):
        raise ConfigError(f"--minutes-per-shard must be above 0, found {minutes}.")
    if images_per_second is None:
        raise ConfigError("--minutes-per-shard needs a rate: give --measured OUT with a folder rendered earlier, or --images-per-second.")
    images = max(1, int(minutes * 60 * images_per_second))
    return images if images < BATCHES_OF else images - images % BATCHES_OF


def _size_for(workers: int, group_sizes: Sequence[int], most: int) -> int:
    """The largest size that keeps workers busy enough; where none does, that which keeps them busiest."""
    largest = min(most, max(sum(group_sizes) // (workers * SHARDS_PER_WORKER), BATCHES_OF))
    sizes: list[int] = [most, *range(most - most % BATCHES_OF, 0, -BATCHES_OF), 16, 8, 4, 2, 1]
    busiest, best_size = 0.0, 1
    for size in [size for size in sizes if size <= largest]:
        busy = busy_fraction(group_sizes, size, workers)
        if busy >= BUSY_ENOUGH:
            return size
        if busy > busiest:
            busiest, best_size = busy, size
    return best_size
