"""Files are whole or absent."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gift_shared.atomic import atomic_path, write_json, write_text


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
