"""Files that are either whole or absent: born under a temporary name, flushed to disk, renamed last."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gift_shared.processes import ProcessName, this_process

TEMPORARY_SUFFIX = ".tmp"  # no reader ever looks at a name that ends like this
NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def temporary_for(path: Path) -> Path:
    """The temporary name of `path` in this process; no other process, here or on another host, writes to it."""
    return path.with_name(f".{path.name}.{this_process()}{TEMPORARY_SUFFIX}")


def writer_of(temporary: Path) -> ProcessName | None:
    """The process that made a temporary; None if its name does not say."""
    return ProcessName.parse(temporary.name.removesuffix(TEMPORARY_SUFFIX).rpartition(".")[2])


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and renamed to `path`, on any error removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_for(path)
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_once(path: Path, content: bytes) -> bool:
    """Write a file unless it is there; True if it was this call that did. Of several processes, on any machines, one succeeds.

    It appears whole; on a storage without hard links, empty for a moment.
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
        return _write_exclusively(path, content)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _write_exclusively(path: Path, content: bytes) -> bool:
    try:
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError:
        return False
    except OSError:
        path.unlink(missing_ok=True)  # a full disk: what was begun would pass for written
        raise
    return True


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
