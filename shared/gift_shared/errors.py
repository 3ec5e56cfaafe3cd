"""What a user can cause. The command lines print these in one line and exit with their code; everything else is our bug."""

import difflib
import re
from collections.abc import Iterable


class GiftError(Exception):
    """Base of all errors that are told in one line: what was expected, what was found, where, and what to do."""

    exit_code = 2


class ConfigError(GiftError):
    """A recipe, flag or combination of them that cannot be run."""


class ManifestError(GiftError):
    """A task or order manifest that is missing, malformed or contradicts the data on disk."""


class DataError(GiftError):
    """A dataset or image on disk that is not what its manifest says."""


class PlanError(GiftError):
    """A plan that is malformed, of another schema version, or made for something else."""


class ShardError(GiftError):
    """A shard or index that is truncated, edited, missing or from another run."""


class ShapeError(GiftError):
    """Tensors whose shapes do not fit the equation they were given to."""


class NonFiniteError(GiftError):
    """A loss that became NaN or infinite; the message names the step and the term."""


class MachineError(GiftError):
    """What the machine did: memory that ran out, a process that was killed. Nothing the user wrote is at fault."""

    exit_code = 1


class Preempted(GiftError):
    """Not a mistake: the scheduler asked for the machine. The same command goes on, so the exit code asks for another start."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h; what SLURM's RequeueExit is set to


def unknown_name(kind: str, name: str, valid: Iterable[str]) -> str:
    """The message for a name that does not exist: names the nearest valid one first, then all of them."""
    names = sorted(map(str, valid))
    nearest = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return f"Unknown {kind} {name!r}.{hint} Valid: {', '.join(names) or 'none'}."


def first_line(error: BaseException) -> str:
    """What a library's error says, without the pages that may follow; the error's kind if it says nothing.

    Addresses of objects, which differ from start to start, are left out: `<_io.BytesIO object at 0x7f...>` is `<_io.BytesIO object>`.
    What is recorded of a damaged file is therefore the same whoever reads it.
    """
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return re.sub(r" at 0x[0-9A-Fa-f]+\b", "", line)
