"""Copies of remote files in a folder of bounded size, shared by every process of the machine. Knows nothing of what they hold.

Not fsspec's filecache: it drops copies by age and not by size, and has no locks, so that two processes write one copy at a time, under
its final name. Nor filelock for the locks: they are held on the very file that is being fetched, which tells a dead writer's from a live
one's, and filelock locks files of its own.

FOLDER/.lock                         held while room is made
FOLDER/<URL>-<digest>/NAME           a copy
FOLDER/<URL>-<digest>/.NAME.lock     held by who fetches or renews it; beside every copy, so it tells ours from other files
FOLDER/<URL>-<digest>/.NAME.*.tmp    being fetched by the process it names, which holds a lock on it

Not fsspec's filecache and simplecache, which never bound their size (what is older than a date can be cleared, by hand) and let every
process fetch the same file again. Not filelock for the locks: here the file that is being filled is itself locked, a wait can be given up,
and where files cannot be locked the work goes on without.
"""

import contextlib
import fcntl
import hashlib
import logging
import math
import os
import re
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from gift_shared.atomic import TEMPORARY_SUFFIX, temporary_for, writer_of
from gift_shared.errors import ConfigError, ShardError
from gift_shared.locks import LOCKS_UNKNOWN

GB = 10**9
DEFAULT_GB = "20"
FOLDER_VARIABLE, GB_VARIABLE = "GIFT_SHARD_CACHE", "GIFT_SHARD_CACHE_GB"  # a matter of the machine: jobs inherit them
LOCK_SUFFIX = ".lock"
DIGEST_DIGITS = 12
OUR_FOLDERS = "*-" + DIGEST_DIGITS * "[0-9a-f]"
WAIT = 0.1  # seconds between looks at what another process holds
UNTOUCHED = 3600  # where files cannot be locked: seconds after which a temporary that nobody wrote to is dead

Pause = Callable[[float], object]  # waits so many seconds, or raises to give up
Copy = tuple[int, Path, int]  # time of its last use, path, bytes

_log = logging.getLogger(__name__)


class FileCache:
    """A folder that never holds more than `most_bytes`; what was used least recently goes first.

    A copy appears whole, by a rename. One process fetches a file and others that want it wait. A copy that is removed while a process
    has it open stays readable there.
    """

    def __init__(self, folder: Path | None = None, most_gb: float | None = None) -> None:
        """Where nothing is given the environment decides, else `gift/shards` in the user's cache folder and 20 GB.

        Raises: ConfigError for a bound that is no number above 0.
        """
        self.folder = folder or _default_folder()
        self.most_bytes = _num_bytes(most_gb)

    def path(self, url: str) -> Path:
        """Where the copy of a URL lies, or would."""
        parent, _, name = url.rpartition("/")
        readable = re.sub(r"[^A-Za-z0-9.]+", "-", parent)[-60:]
        return self.folder / f"{readable}-{hashlib.sha256(parent.encode()).hexdigest()[:DIGEST_DIGITS]}" / name

    @contextmanager
    def alone_with(self, copy: Path, pause: Pause = time.sleep) -> Iterator[None]:
        """Nobody else makes or renews this copy meanwhile; waits until nobody does."""
        copy.parent.mkdir(parents=True, exist_ok=True)
        with _locked(copy.with_name(f".{copy.name}{LOCK_SUFFIX}"), pause):
            yield

    @contextmanager
    def new_copy(self, copy: Path, num_bytes: int, kept: Collection[Path], pause: Pause = time.sleep) -> Iterator[Path]:
        """A temporary file of that many bytes to fill; it becomes the copy unless the block raises. Only inside `alone_with`.

        Waits while what others fetch is in the way. Raises: ShardError if there is no room even without all that is not in `kept`.
        """
        temporary = temporary_for(copy)  # of this process: where files cannot be locked, two may fetch the same
        try:
            with self._begun(temporary, num_bytes, kept, pause) as file:
                yield temporary
                os.fsync(file.fileno())
                with _locked(self.folder / LOCK_SUFFIX, pause):  # or who counts just then would find neither of the two
                    temporary.replace(copy)
        finally:
            temporary.unlink(missing_ok=True)

    def drop(self, num_bytes: int, kept: Collection[Path], pause: Pause = time.sleep) -> bool:
        """Remove what was used least recently and is not in `kept`, so many bytes of it or all there is; whether there was any."""
        with _locked(self.folder / LOCK_SUFFIX, pause):
            copies, _ = self._found()
            return _drop(copies, num_bytes, kept)

    def used(self, copy: Path) -> None:
        """Note that a copy is in use now, so that others go before it."""
        with contextlib.suppress(FileNotFoundError):
            now = time.time_ns()  # the kernel's own stamp is some milliseconds coarse
            os.utime(copy, ns=(now, now))

    def _begun(self, temporary: Path, num_bytes: int, kept: Collection[Path], pause: Pause) -> IO[bytes]:
        """The temporary, locked as long as it is open. Its room is taken before its bytes are there."""
        told = False
        while True:
            with _locked(self.folder / LOCK_SUFFIX, pause):
                if self._make_room(num_bytes, kept):
                    file = temporary.open("wb")
                    _take(file)
                    file.truncate(num_bytes)
                    return file
            if not told:
                _log.warning("The shard cache %s is full of what is being fetched; waiting for room.", self.folder)
                told = True
            pause(WAIT)

    def _make_room(self, num_bytes: int, kept: Collection[Path]) -> bool:
        """Drop what was used least recently. False if room can only be made once others have fetched what they are at."""
        copies, arriving = self._found()
        excess = sum(size for _, _, size in copies) + arriving + num_bytes - self.most_bytes
        beyond = excess - sum(size for _, path, size in copies if path not in kept)
        if beyond > arriving:
            lacking = beyond - arriving
            raise ShardError(
                f"The shard cache {self.folder} holds at most {_gb(self.most_bytes)}, and {_gb(lacking)} more are needed at the same time."
                f" Give --shard-cache-gb {(self.most_bytes + lacking) / GB * 1.01:.3g} or more."
            )
        if beyond > 0:
            return False
        _drop(copies, excess, kept)
        return True

    def _found(self) -> tuple[list[Copy], int]:
        """Every copy, and the bytes that are being fetched. What killed processes left is removed.

        The folder is the user's: whatever else lies in it neither counts nor goes.
        """
        copies: list[Copy] = []
        arriving = 0
        for folder in self.folder.glob(OUR_FOLDERS):
            names = set(os.listdir(folder)) if folder.is_dir() else set()
            for name in names:
                path = folder / name
                with contextlib.suppress(FileNotFoundError):
                    if f".{name}{LOCK_SUFFIX}" in names:
                        status = path.stat()
                        copies.append((status.st_mtime_ns, path, status.st_size))
                    elif name.startswith(".") and name.endswith(TEMPORARY_SUFFIX) and writer_of(path) is not None:
                        if _is_dead(path):
                            path.unlink()
                        else:
                            arriving += path.stat().st_size
        return copies, arriving


def _drop(copies: Collection[Copy], num_bytes: int, kept: Collection[Path]) -> bool:
    dropped = 0
    for _, path, size in sorted(copies):
        if dropped < num_bytes and path not in kept:
            path.unlink(missing_ok=True)
            dropped += size
    return dropped > 0


def _default_folder() -> Path:
    if FOLDER_VARIABLE in os.environ:
        return Path(os.environ[FOLDER_VARIABLE])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gift" / "shards"


def _num_bytes(most_gb: float | None) -> int:
    text, where = (
        (os.environ.get(GB_VARIABLE, DEFAULT_GB), GB_VARIABLE) if most_gb is None else (str(most_gb), f"--shard-cache-gb ({GB_VARIABLE})")
    )
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = math.nan
    if not 0 < gigabytes < math.inf:
        raise ConfigError(f"{where} should be a number of gigabytes above 0, found {text!r}.")
    return round(gigabytes * GB)


@contextmanager
def _locked(lock: Path, pause: Pause) -> Iterator[None]:
    """Wait for a lock file and hold it; go on without where files cannot be locked."""
    with lock.open("a") as file:
        while _take(file) is False:
            pause(WAIT)
        yield


def _take(file: IO[Any]) -> bool | None:
    """Lock a file until it is closed; False if it is locked, None where files cannot be.

    The lock belongs to this opening of the file, so threads exclude each other too.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in LOCKS_UNKNOWN:
            raise
        return None
    return True


def _is_dead(temporary: Path) -> bool:
    """Whether nobody fills this temporary any more."""
    with temporary.open("r+b") as file:
        is_free = _take(file)
    if is_free is not None:
        return is_free
    writer = writer_of(temporary)
    return writer is None or writer.is_gone() or time.time() - temporary.stat().st_mtime > UNTOUCHED


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / GB:.3g} GB"
