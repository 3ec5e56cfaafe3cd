"""Copies of remote files in a folder of bounded size, shared by every process of the machine. Knows nothing of what they hold."""

import contextlib
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from gift_shared.atomic import TEMPORARY_SUFFIX
from gift_shared.errors import ConfigError, ShardError
from gift_shared.locks import LOCKS_UNKNOWN

GB = 10**9
DEFAULT_GB = "20"
FOLDER_VARIABLE, GB_VARIABLE = "GIFT_SHARD_CACHE", "GIFT_SHARD_CACHE_GB"  # a matter of the machine: jobs inherit them
LOCK_SUFFIX = ".lock"


class FileCache:
    """A folder that never holds more than `most_bytes`; what was used least recently goes first.

    A copy appears whole, by a rename. One process fetches a file and others that want it wait. A copy that is removed while a process
    has it open stays readable there.
    """

    def __init__(self, folder: Path | None = None, most_gb: float | None = None) -> None:
        """Where nothing is given the environment decides, else `gift/shards` in the user's cache folder and 20 GB."""
        self.folder = folder or _default_folder()
        self.most_bytes = round((most_gb if most_gb is not None else _default_gb()) * GB)

    def path(self, url: str) -> Path:
        """Where the copy of a URL lies, or would."""
        parent, _, name = url.rpartition("/")
        readable = re.sub(r"[^A-Za-z0-9.]+", "-", parent)[-60:]
        return self.folder / f"{readable}-{hashlib.sha256(parent.encode()).hexdigest()[:12]}" / name

    @contextmanager
    def alone_with(self, copy: Path) -> Iterator[None]:
        """Nobody else makes or renews this copy meanwhile; waits until nobody does."""
        copy.parent.mkdir(parents=True, exist_ok=True)
        with _locked(copy.with_name(f".{copy.name}{LOCK_SUFFIX}")):
            yield

    @contextmanager
    def new_copy(self, copy: Path, num_bytes: int, kept: Collection[Path]) -> Iterator[Path]:
        """A temporary file of that many bytes to fill; it becomes the copy unless the block raises. Only inside `alone_with`.

        Raises: ShardError if there is no room even without all that is not in `kept`.
        """
        temporary = copy.with_name(f".{copy.name}{TEMPORARY_SUFFIX}")  # alone with it: what is there was left by a killed process
        temporary.unlink(missing_ok=True)
        try:
            with _locked(self.folder / LOCK_SUFFIX):
                self._make_room(num_bytes, kept)
                with temporary.open("wb") as file:
                    file.truncate(num_bytes)  # its room is taken before its bytes are there
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(copy)
        finally:
            temporary.unlink(missing_ok=True)

    def used(self, copy: Path) -> None:
        """Note that a copy is in use now, so that others go before it."""
        with contextlib.suppress(FileNotFoundError):
            now = time.time_ns()  # the kernel's own stamp is some milliseconds coarse
            os.utime(copy, ns=(now, now))

    def _make_room(self, num_bytes: int, kept: Collection[Path]) -> None:
        found = []
        for path in self.folder.rglob("*"):
            with contextlib.suppress(FileNotFoundError):
                if path.is_file():
                    found.append((path.stat().st_mtime_ns, path, path.stat().st_size))
        excess = sum(size for _, _, size in found) + num_bytes - self.most_bytes
        for _, path, size in sorted(found):
            if excess <= 0:
                return
            if path not in kept and not path.name.startswith("."):  # hidden: a lock, or being fetched
                path.unlink(missing_ok=True)
                excess -= size
        if excess > 0:
            raise ShardError(
                f"The shard cache {self.folder} holds at most {_gb(self.most_bytes)}, and {_gb(excess)} more are needed at the same time."
                f" Give --shard-cache-gb {(self.most_bytes + excess) / GB * 1.01:.3g} or more."
            )


def _default_folder() -> Path:
    if FOLDER_VARIABLE in os.environ:
        return Path(os.environ[FOLDER_VARIABLE])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gift" / "shards"


def _default_gb() -> float:
    text = os.environ.get(GB_VARIABLE, DEFAULT_GB)
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"{GB_VARIABLE} should be a number of gigabytes, found {text!r}.") from error


@contextmanager
def _locked(lock: Path) -> Iterator[None]:
    """Wait for a lock file and hold it. It belongs to this opening of the file, so threads exclude each other too."""
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in LOCKS_UNKNOWN:
                raise
        yield


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / GB:.3g} GB"
