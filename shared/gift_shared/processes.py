"""Which process this is, told apart from every other one that sees the same storage, and whether a named one is gone."""

import hashlib
import os
import re
import socket
import uuid
from dataclasses import dataclass
from functools import cache
from pathlib import Path

LONGEST_HOST = 48  # a file name has 255 bytes, and the rest of it is needed too
NAME = re.compile(r"(?P<host>[A-Za-z0-9-]+)-(?P<machine>[0-9a-f]{8})-(?P<pid>\d+)-(?P<started>\d+)")


@dataclass(frozen=True)
class ProcessName:
    """A process by host, machine, number and start. As text it fits into a file name, and it says all that is needed to look for it.

    `machine` is a digest of the boot and the PID namespace, since hosts share names and containers share numbers; `started` counts
    clock ticks since the boot (0 where the system does not tell), since numbers are given again.
    """

    host: str
    machine: str
    pid: int
    started: int

    def __str__(self) -> str:
        return f"{self.host}-{self.machine}-{self.pid}-{self.started}"

    @classmethod
    def parse(cls, text: str) -> "ProcessName | None":
        """The process that a text names; None if it names none."""
        match = NAME.fullmatch(text)
        return cls(match["host"], match["machine"], int(match["pid"]), int(match["started"])) if match else None

    def is_gone(self) -> bool:
        """True if it is certain: the process ran on this machine and does so no more. Of other machines nothing is known."""
        if self.machine != _machine():
            return False
        started = _start_of(self.pid)
        if started is not None:
            return started != self.started
        try:
            os.kill(self.pid, 0)  # /proc may hide other users' processes; signal 0 only asks
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return _is_zombie(self.pid)


def this_process() -> ProcessName:
    """The running process; another one after a fork."""
    return _name_of(os.getpid())


@cache
def _name_of(pid: int) -> ProcessName:
    host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname().partition(".")[0])[:LONGEST_HOST] or "host"
    return ProcessName(host, _machine(), pid, _start_of(pid) or 0)


@cache
def _machine() -> str:
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")
    except OSError:  # no Linux: the network card's number lasts longer than a boot, so a heartbeat decides after one
        text = f"{socket.gethostname()} {uuid.getnode()}"
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _start_of(pid: int) -> int | None:
    """Clock ticks from boot to the start of a process; None if there is none, or only what its parent has not yet asked after."""
    fields = _stat_fields(pid)
    return int(fields[19]) if fields and fields[0] not in "ZX" else None


def _is_zombie(pid: int) -> bool:
    fields = _stat_fields(pid)
    return bool(fields) and fields[0] in "ZX"


def _stat_fields(pid: int) -> list[str]:
    """Fields 3 (state) onwards of /proc/<pid>/stat; the second, the program's name, may hold anything."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
