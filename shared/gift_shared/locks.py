"""One process at a time: a folder that is being written is refused to a second writer.

Not filelock: before its release 4.0 a lock passes to forked loader processes, and one that outlives a killed run keeps the folder locked
(tried with 3.20, 3.29 and 4.0). And all there is here, a refusal in our words and going on where there are no locks, would stay around it.
"""

import errno
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gift_shared.errors import ConfigError

LOCKS_UNKNOWN = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # a file system without locks: go on without


@contextmanager
def only_writer(lock: Path, what: str) -> Iterator[None]:
    """Hold the lock file while the block runs; its folder must exist. Raises ConfigError if another process holds it.

    A POSIX record lock: it ends with its process however that dies, and forked loader processes do not inherit it. The file stays.
    """
    with lock.open("a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise ConfigError(f"{what} is being written by another process. Wait for it, or choose another --out.") from error
            if error.errno not in LOCKS_UNKNOWN:
                raise
        yield
