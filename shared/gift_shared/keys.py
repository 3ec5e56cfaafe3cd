"""Names and seeds that follow from a sample's place in the plan, never from who renders it or when."""

import functools
import hashlib
import re
import unicodedata

KEY_PATTERN = re.compile(r"[a-z0-9_-]+")  # webdataset takes everything after a key's first dot for the extension

BASE_SEED_STRIDE = 10_000_000
POSITION_SEED_STRIDE = 100_000


@functools.lru_cache(maxsize=4096)  # a plan asks for a few names a million times
def slug(name: str) -> str:
    """A class or dataset name as a path- and key-safe word: lower case, every other run of characters becomes `_`.

    The Unicode form does not matter: macOS writes `é` as two characters, other systems as one.
    """
    return re.sub(r"[^a-z0-9]+", "_", composed(name).lower()).strip("_")


def composed(text: str) -> str:
    """Text in Unicode's composed form (NFC), in which names that look the same are the same."""
    return unicodedata.normalize("NFC", text)


def task_sample_key(task: str, index: int) -> str:
    """Key of the index-th image made for a task, e.g. `aircraft-000017`. Keys of one task sort by index."""
    return f"{slug(task)}-{index:06d}"


def pool_sample_key(source: str, class_index: int, copy: int) -> str:
    """Key of one of a class's images in a pool, e.g. `imagenet-0042-00003`."""
    return f"{slug(source)}-{class_index:04d}-{copy:05d}"


def shard_id(task: str, shard_index: int) -> str:
    """File stem of a shard, e.g. `aircraft-00003`."""
    return f"{slug(task)}-{shard_index:05d}"


def hashed_seed(run_seed: int, sample_key: str) -> int:
    """The default seeding rule: 62 bits of a hash of run seed and key, so adding samples never moves another's seed."""
    digest = hashlib.blake2b(f"{run_seed}/{sample_key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2


def published_seed(base_seed: int, task_position: int, index: int) -> int:
    """The seed the authors' code gave image `index` of the task at one-based `task_position` of its order.

    It ignores caption and dataset, so two orders share the noise at equal positions (their released images do).
    """
    return index + POSITION_SEED_STRIDE * (task_position - 2) + BASE_SEED_STRIDE * base_seed


def retry_seed(sample_seed: int, attempt: int) -> int:
    """Seed of the attempt-th try of one image (0 = the planned seed), away from its neighbours' consecutive seeds."""
    return sample_seed if attempt == 0 else hashed_seed(sample_seed, f"retry-{attempt}")
