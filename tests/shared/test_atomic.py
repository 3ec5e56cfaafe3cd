"""Files are whole or absent."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gift_shared.atomic import atomic_path, temporary_for, write_json, write_once, write_text, writer_of
from gift_shared.processes import this_process


def write_half(path: Path) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("half way")


def test_an_error_leaves_neither_file_nor_temporary(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="half way"):
        write_half(tmp_path / "a.txt")
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError, match="half way"):
        write_half(tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text() == "old"


def test_folders_on_the_way_are_made(tmp_path: Path) -> None:
    write_text(tmp_path / "x" / "y" / "a.txt", "there")
    assert (tmp_path / "x" / "y" / "a.txt").read_text() == "there"


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0)
    os.umask(before)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize(("mask", "rights"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_rights_follow_the_umask_even_of_a_file_that_somebody_else_made(
    tmp_path: Path, umask: Callable[[int], int], mask: int, rights: int
) -> None:
    umask(mask)
    write_text(tmp_path / "ours.txt", "ours")
    with atomic_path(tmp_path / "theirs.txt") as temporary:
        beside = tmp_path / "beside"
        beside.touch(mode=0o600)
        beside.replace(temporary)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours.txt", "theirs.txt")] == [rights, rights]


def test_json_is_sorted_and_readable(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": "é", "a": [1]})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "a": [\n    1\n  ],\n  "b": "é"\n}\n'


def test_a_kill_while_writing_leaves_the_old_content_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    program = (
        "import sys, pathlib\nfrom gift_shared.atomic import write_json\n"
        "for number in range(10**9): write_json(pathlib.Path(sys.argv[1]), {'number': number, 'padding': ['x'] * 20000})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(path)])
    deadline = time.monotonic() + 30
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(json.loads(path.read_text())["padding"]) == 20000


def test_a_temporary_says_who_writes_it(tmp_path: Path) -> None:
    assert writer_of(temporary_for(tmp_path / "a.b-1.tar")) == this_process()
    assert writer_of(tmp_path / ".a.tar.4711.tmp") is None


def test_what_is_written_once_stays(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.json"
    assert write_once(path, b"first")
    assert not write_once(path, b"second")
    assert path.read_bytes() == b"first"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.json"]


def test_a_storage_without_hard_links_will_do_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")  # what such file systems answer

    monkeypatch.setattr(os, "link", refuse)
    assert write_once(tmp_path / "a.json", b"first")
    assert not write_once(tmp_path / "a.json", b"second")
    assert [entry.read_bytes() for entry in tmp_path.iterdir()] == [b"first"]


NO_LINKS = "import os\ndef refuse(*_): raise PermissionError(1, 'Operation not permitted')\nos.link = refuse\n"


@pytest.mark.parametrize("storage", ["", NO_LINKS])
def test_of_processes_that_write_at_once_one_succeeds(tmp_path: Path, storage: str) -> None:
    program = storage + (
        "import sys, time, pathlib\nfrom gift_shared.atomic import write_once\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "sys.exit(not write_once(pathlib.Path(sys.argv[1]), sys.argv[2].encode()))\n"
    )
    line = [sys.executable, "-c", program, str(tmp_path / "a")]
    processes = [subprocess.Popen([*line, str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) for number in range(4)]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
    winners = [number for number, process in enumerate(processes) if process.returncode == 0]
    assert [str(number) for number in winners] == [(tmp_path / "a").read_text()]


def test_without_hard_links_too_a_kill_leaves_nothing_half_and_another_takes_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    program = NO_LINKS + (
        "import pathlib, signal, sys\nfrom gift_shared.atomic import write_once\n"
        "pathlib.Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"  # in the midst of it
        "write_once(pathlib.Path(sys.argv[1]), b'first')\n"
    )
    assert subprocess.run([sys.executable, "-c", program, path], check=False).returncode == -signal.SIGKILL
    assert not path.exists()

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert write_once(path, b"second")
    assert path.read_bytes() == b"second"
    assert not list(tmp_path.glob("*.permit"))
