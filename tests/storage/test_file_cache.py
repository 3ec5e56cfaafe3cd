"""The cache's folder is the user's: what others put there stays, and what dead processes left there goes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gift_shared.errors import ShardError
from gift_shared.file_cache import GB, FileCache

URL = "https://host/shards"


def fetch(cache: FileCache, name: str, num_bytes: int = 1000) -> Path:
    """As if a file had been fetched."""
    copy = cache.path(f"{URL}/{name}")
    with cache.alone_with(copy), cache.new_copy(copy, num_bytes, ()) as temporary:
        temporary.write_bytes(bytes(num_bytes))
    return copy


def test_the_users_own_files_in_the_folder_neither_count_nor_go(tmp_path):
    cache = FileCache(tmp_path, 2500 / GB)
    theirs = [tmp_path / "weights.pt", tmp_path / "project/data/train.tar", fetch(cache, "a").parent / "notes.txt", tmp_path / ".x.1.tmp"]
    for path in theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(5000))
        os.utime(path, (0, 0))  # older than all of ours
    (tmp_path / "project/data/.train.tar.lock").touch()
    copies = [fetch(cache, name) for name in "abc"]
    assert all(path.stat().st_size == 5000 for path in theirs)
    assert [copy.is_file() for copy in copies] == [False, True, True]


KILLED = """
import os, signal, sys
from pathlib import Path
from gift_shared.file_cache import GB, FileCache
cache = FileCache(Path(sys.argv[1]), 2500 / GB)
if sys.argv[2:]:
    import errno, fcntl
    def flock(*_): raise OSError(errno.ENOSYS, "no locks here")
    fcntl.flock = flock
copy = cache.path("https://host/shards/killed")
with cache.alone_with(copy), cache.new_copy(copy, 2000, ()):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("without_locks", [[], ["without locks"]])
def test_what_a_killed_process_was_fetching_takes_no_room(tmp_path, without_locks, monkeypatch):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), *without_locks], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.rglob(".*.tmp"))) == 1
    if without_locks:
        monkeypatch.setattr("gift_shared.file_cache._take", lambda _: None)
    fetch(FileCache(tmp_path, 2500 / GB), "a")
    assert list(tmp_path.rglob(".*.tmp")) == []


def test_what_is_being_fetched_is_waited_for_only_if_that_helps(tmp_path):
    cache = FileCache(tmp_path, 2500 / GB)
    arriving, other = cache.path(f"{URL}/a"), cache.path(f"{URL}/b")

    class Waited(Exception):
        pass

    def wait(_: float) -> None:
        raise Waited

    with cache.alone_with(arriving), cache.new_copy(arriving, 2000, ()), cache.alone_with(other):
        with pytest.raises(Waited), cache.new_copy(other, 1000, (), wait):
            pass
        with pytest.raises(ShardError, match="Give --shard-cache-gb"), cache.new_copy(other, 3000, (), wait):
            pass
