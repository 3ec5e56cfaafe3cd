"""One process at a time: a folder that is being written is refused to a second writer.

Not filelock, of which this would use three lines: on a file system without locks it leaves a marker, which outlives a killed process, or
raises, where a run had better go on; and it takes flock, which a fork hands on unless the library takes care of it.
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
