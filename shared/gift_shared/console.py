"""What both command lines do alike: run a typer app, tell a user's mistake in one line, and choose the exit code.

Exit codes: 0 done; 1 a check ran and failed (verify, parity); 2 the user can mend it; 130 interrupted.
"""

import errno
import sys
from collections.abc import Callable

from gift_shared.errors import GiftError


def run_app(app: Callable[[], None]) -> None:
    """Run a typer app; GiftError and a full disk become one line on stderr and exit code 2."""
    try:
        app()
    except GiftError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _fail(f"The disk is full ({error.filename or 'while writing'}). What is complete stays valid: free some space and run again.")
    except KeyboardInterrupt:
        print("Interrupted. What is complete stays valid; run the same command again to go on.", file=sys.stderr)
        sys.exit(130)


def _fail(message: str) -> None:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)
