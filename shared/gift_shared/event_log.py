"""A log for programs: one JSON object a line, appended whole, so that several hours of a cluster can be filtered with jq."""

import errno
import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any


class EventLog:
    """Appends events to a file; every line names time (UTC, ISO 8601), host, process and event, then what the event brings along.

    Lines of several processes never mix: each is one write to a file opened for appending.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._who = {"host": socket.gethostname(), "process": os.getpid()}

    def write(self, event: str, **fields: Any) -> None:
        """Append one event, e.g. `write("shard", name=..., seconds=...)`."""
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **self._who, "event": event, **fields}
        with self._path.open("a+b", buffering=0) as file:
            encoded = json.dumps(line, ensure_ascii=False).encode() + b"\n"
            if not _ends_a_line(file):  # a disk was full, or a process killed: what was cut short takes no other event with it
                encoded = b"\n" + encoded
            if file.write(encoded) != len(encoded):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))


def _ends_a_line(file: IO[bytes]) -> bool:
    length = file.seek(0, os.SEEK_END)
    if length == 0:
        return True
    file.seek(length - 1)
    return file.read(1) == b"\n"


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events of a log, oldest first; a line that is no event, as a killed process may leave one unfinished, is passed over."""
    events = []
    for line in path.read_bytes().splitlines():
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            events.append(event)
    return events
