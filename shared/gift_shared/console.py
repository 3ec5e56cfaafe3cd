"""What both command lines do alike: run a typer app, tell a user's mistake in one line, and choose the exit code.

Exit codes: 0 done; 1 a check ran and failed (verify, parity), or the machine did (memory, a killed process); 2 the user can mend it;
75 preempted, start again; 130 interrupted.
"""

import errno
import logging
import os
import sys
from collections.abc import Callable, Sequence

from gift_shared.errors import GiftError, Preempted

INTERRUPTED = 130
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
# A path that cannot be used as it is: the user gave it, or its rights.
WRONG_PATH = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG,
)  # fmt: skip
FAILED_STORAGE = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)  # a disk, or a server of files that went away


def run_app(app: Callable[[], None]) -> None:
    """Run a typer app; GiftError, storage that is full or fails and a path that cannot be used become one line and their exit code."""
    logging.basicConfig(format="warning: %(message)s", level=logging.WARNING)
    try:
        app()
    except GiftError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        if error.errno in FULL_DISK:
            _fail(f"The disk is full ({error.filename or 'while writing'}). What is complete stays valid: free some space and run again.")
        if error.errno in FAILED_STORAGE:
            where = error.filename or "while reading or writing"
            _fail(f"The storage failed ({where}): {os.strerror(error.errno)}. What is complete stays valid: run again once it is back.")
        if error.errno not in WRONG_PATH:
            raise
        reason = os.strerror(error.errno)
        _fail(f"{error.filename} cannot be used: {reason}." if error.filename else f"{error}.")
    except KeyboardInterrupt:
        _tell_interrupted()
        sys.exit(INTERRUPTED)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:  # typer's own answer to Ctrl-C
            _tell_interrupted()
        raise


def some_of(texts: Sequence[str], most: int = 3) -> str:
    """The first few of a list in quotes, each shortened, and how many more there are."""
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return "; ".join(map(shortened, texts[:most])) + more


def shortened(text: str, most: int = 100) -> str:
    """A text in quotes, of a long one its beginning and how long it is: a caption can have megabytes."""
    return repr(text) if len(text) <= most else f"{text[:most]!r}... ({len(text):,} characters)"


def _tell_interrupted() -> None:
    print("Interrupted. What is complete stays valid; run the same command again to go on.", file=sys.stderr)


def _fail(message: str, exit_code: int = GiftError.exit_code) -> None:
    print(("" if exit_code == Preempted.exit_code else "error: ") + " ".join(message.split()), file=sys.stderr)
    sys.exit(exit_code)
