"""Files that are either whole or absent: born under a temporary name, flushed to disk, renamed last."""

import errno
import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gift_shared.processes import ProcessName, this_process

TEMPORARY_SUFFIX = ".tmp"  # no reader ever looks at a name that ends like this
PERMIT_SUFFIX = ".permit"
SECONDS_OF_A_RENAME = 60.0  # whoever holds a permit for longer has died with its machine
SECONDS_BETWEEN_LOOKS = 0.02
NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def temporary_for(path: Path) -> Path:
    """The temporary name of `path` in this process; no other process, here or on another host, writes to it."""
    return path.with_name(f".{path.name}.{this_process()}{TEMPORARY_SUFFIX}")


def writer_of(temporary: Path) -> ProcessName | None:
    """The process that made a temporary; None if its name does not say."""
    return ProcessName.parse(temporary.name.removesuffix(TEMPORARY_SUFFIX).rpartition(".")[2])


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, an empty file; on success it is synced and renamed to `path`, on any error removed.

    Whoever may read the folder's other files may read this one: its rights are those of a file opened here, by umask and folder, even
    where a library puts one of its own in its place (safetensors makes them for the owner alone).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_for(path)
    try:
        temporary.touch()
        rights = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        if stat.S_IMODE(temporary.stat().st_mode) != rights:  # asked first: some file systems know no rights to change
            temporary.chmod(rights)
        _sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_once(path: Path, content: bytes) -> bool:
    """Write a file unless it is there; True if it was this call that did. Of several processes, on any machines, one succeeds.

    It appears whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_for(path)
    try:
        temporary.write_bytes(content)
        _sync(temporary)
        os.link(temporary, path)  # other than a rename it never replaces
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        return _rename_once(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _rename_once(temporary: Path, path: Path) -> bool:
    """`write_once` without hard links: whoever can create the permit, which is a file beside `path`, renames; the others wait for it.

    Should its holder be gone, the next permit is created beside it: to remove it would be to remove, at times, another heir's.
    """
    number, since = 0, time.monotonic()
    while not path.exists():
        permit = path.with_name(f".{path.name}.{number}{PERMIT_SUFFIX}")
        try:
            permit.touch(exist_ok=False)
        except FileExistsError:
            if _is_forsaken(permit, since):
                number, since = number + 1, time.monotonic()
            else:
                time.sleep(SECONDS_BETWEEN_LOOKS)
            continue
        try:
            permit.write_text(str(this_process()), encoding="utf-8")
            is_first = not path.exists()  # others may have been through with it between the look and the permit
            if is_first:
                temporary.replace(path)
            return is_first
        finally:
            for used in range(number + 1):
                path.with_name(f".{path.name}.{used}{PERMIT_SUFFIX}").unlink(missing_ok=True)
    return False


def _is_forsaken(permit: Path, since: float) -> bool:
    try:
        holder = ProcessName.parse(permit.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    return (holder is not None and holder.is_gone()) or time.monotonic() - since > SECONDS_OF_A_RENAME


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON with sorted keys and a final newline, whole or not at all."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Indented JSON with sorted keys and a final newline."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
