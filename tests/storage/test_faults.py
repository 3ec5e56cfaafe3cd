"""Servers that fail: what passes is waited for, what stays is an error that names the URL, and nothing is ever left out."""

import errno
import io
import signal
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gift_shared.errors import ShardError
from gift_shared.parquet_files import read_output_index
from gift_shared.remote_files import Patience, RemoteFiles
from gift_shared.shards import read_image_bytes, require_images, shard_rows, shard_tar

TAR = "/shards/cats-00000.tar"
WHILE_AILING = 'if (-f "$document_root/ailing") {{ {fault} }}'  # the fault lasts until somebody takes the file away


@contextmanager
def healed_when(site, is_seen: Callable[[], bool]) -> Iterator[None]:
    """The server is well again as soon as something has been seen in its log."""
    (site.root / "ailing").touch()

    def wait_and_heal() -> None:
        end = time.monotonic() + 20
        while not is_seen() and time.monotonic() < end:
            time.sleep(0.01)
        (site.root / "ailing").unlink()

    healer = threading.Thread(target=wait_and_heal)
    healer.start()
    yield
    healer.join()


def everything(folder, places):
    return [read_image_bytes(folder, **place) for place in places]


def everything_by_index(folder):
    require_images(folder, [read_output_index(folder)[0]])


@pytest.mark.parametrize("status", ["429", "444", "500", "503"])  # 444: nginx hangs up
def test_a_fault_that_passes_is_waited_for(served, remote, out, places, status, caplog):
    site = served(out, WHILE_AILING.format(fault=f"return {status};"))
    folder = remote(site.url, patience=Patience(attempts=8, first_wait=0.02, stall=1))
    with healed_when(site, lambda: len(site.requests("GET", status=status)) >= 2):
        assert everything(folder, places) == everything(out, places)
    assert f"{site.url}/shards/cats-" in caplog.text
    assert "attempt 2 of 8 in" in caplog.text


def test_a_server_that_is_restarted_within_a_file_is_waited_for(served, remote, out, places):
    site = served(out, "limit_rate 20k;")
    folder = remote(site.url, patience=Patience(attempts=8, first_wait=0.05, stall=5))
    reader = threading.Thread(target=folder.fetch, args=["cats-00000"])
    reader.start()
    while not list(folder.cache.folder.rglob(".*.tmp")):
        time.sleep(0.01)
    time.sleep(0.2)  # the tar takes two seconds
    site.kill()
    site.rules = ""
    site.start()
    reader.join()
    assert folder.tar("cats-00000").read_bytes() == shard_tar(out, "cats-00000").read_bytes()


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("return 503;", "could not be read in 4 attempts over .* s: the server answered 503"),
        ("return 444;", "could not be read in 4 attempts over .* s: ServerDisconnectedError"),
        ("limit_rate 1;", "could not be read in 4 attempts over .* s: .*Timeout"),
    ],
)
def test_a_fault_that_stays_is_an_error_that_names_the_url(served, remote, out, places, fault, told, caplog):
    site = served(out, f"location {TAR} {{ {fault} }}")
    with pytest.raises(ShardError, match=f"{site.url}{TAR} {told}") as caught:
        everything(remote(site.url), places)
    assert "See whether its server is well; the same command goes on." in str(caught.value)
    assert caplog.text.count("; attempt ") == 3


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        ("return 404;", r"is not there \(404\)\. Check the URL; is the folder complete\?"),
        ("return 403;", r"may not be read \(403\)\. Check URL, rights and credentials\."),
        ("return 401;", r"may not be read \(401\)"),
        ("return 400;", r"may not be asked for: the server answered 400"),
    ],
)
def test_what_will_not_pass_is_not_asked_for_again(served, remote, out, places, rules, told):
    site = served(out, f"location {TAR} {{ {rules} }}")
    with pytest.raises(ShardError, match=f"{site.url}{TAR} {told}"):
        everything(remote(site.url), places)
    assert len(site.requests(ending=TAR)) <= 1


def test_nobody_listening_is_an_error_that_names_the_url(served, remote, out):
    site = served(out)
    site.kill()
    with pytest.raises(ShardError, match=rf"{site.url}/index\.parquet could not be read in 4 attempts .*ConnectionRefusedError"):
        read_output_index(remote(site.url))


@pytest.mark.parametrize(
    "damage",
    [lambda content: content[:20_000], lambda content: content + b"x", lambda content: content[:20_000] + b"?" + content[20_001:]],
    ids=["cut short", "too long", "one byte"],
)
def test_a_tar_that_is_not_what_its_rows_claim_is_an_error_that_names_the_url(served, remote, out, places, damage):
    site = served(out)
    tar = shard_tar(out, "cats-00000")
    tar.write_bytes(damage(tar.read_bytes()))
    folder = remote(site.url)
    with pytest.raises(ShardError, match=rf"{site.url}{TAR} has \d+ bytes, sha256 .*, but its rows claim .*; it came so 3 times"):
        everything(folder, places)
    assert len(site.requests(ending=TAR)) == 3
    assert list(folder.cache.folder.rglob("*.tar*")) == [folder.tar("cats-00000").with_name(".cats-00000.tar.lock")]


def test_a_tar_that_is_being_replaced_is_fetched_again(served, remote, out, places):
    site = served(out)
    tar = shard_tar(out, "cats-00000")
    whole, expected = tar.read_bytes(), everything(out, places)
    tar.write_bytes(whole[:20_000])

    def finish_the_copy() -> None:
        while not site.requests(ending=TAR):
            time.sleep(0.01)
        tar.write_bytes(whole)

    copying = threading.Thread(target=finish_the_copy)
    copying.start()
    assert everything(remote(site.url, patience=Patience(attempts=4, first_wait=0.3, stall=1)), places) == expected
    copying.join()


def test_images_are_checked_where_a_url_has_no_digests_of_its_tars(served, remote, out, places):
    shard_rows(out, "cats-00000").unlink()
    tar = shard_tar(out, "cats-00000")
    tar.write_bytes(tar.read_bytes()[:20_000])
    site = served(out)
    with pytest.raises(ShardError, match=rf"{site.url}{TAR} is truncated: byte \d+ is not there"):
        everything(remote(site.url), places)


def cut_short(content):
    return content[:-100]


def flipped(content):
    seeds = pq.read_metadata(io.BytesIO(content)).row_group(0).column(7)
    last = (seeds.dictionary_page_offset or seeds.data_page_offset) + seeds.total_compressed_size - 1
    return content[:last] + bytes([content[last] ^ 1]) + content[last + 1 :]


@pytest.mark.parametrize(
    ("name", "damage"), [("index.parquet", cut_short), ("shards/cats-00000.parquet", cut_short), ("index.parquet", flipped)]
)
def test_a_damaged_parquet_file_is_an_error_that_names_the_url(served, remote, out, name, damage):
    (out / name).write_bytes(damage((out / name).read_bytes()))
    site = served(out)
    folder = remote(site.url)
    with pytest.raises(ShardError, match=rf"{site.url}/.* is no readable Parquet file"):
        everything_by_index(folder)


@pytest.mark.parametrize("kind", [OSError, UnicodeDecodeError, pa.ArrowNotImplementedError])
def test_rows_of_a_shard_whose_footer_is_damaged_are_an_error_that_names_the_url(served, remote, out, kind):
    path = shard_rows(out, "cats-00000")
    path.write_bytes(spoilt_for(path.read_bytes(), kind))
    site = served(out)
    with pytest.raises(ShardError, match=rf"{site.url}{TAR} cannot be checked: .*\.parquet is no readable Parquet file"):
        remote(site.url).fetch("cats-00000")


def spoilt_for(content, kind):
    """With the first bit flipped for which pyarrow raises an error of that class."""
    footer = int.from_bytes(content[-8:-4], "little")
    for place in range(len(content) - 8 - footer, len(content) - 8):
        for bit in range(8):
            spoilt = content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]
            try:
                pq.read_schema(io.BytesIO(spoilt))
            except (OSError, ValueError, NotImplementedError) as error:
                if type(error) is kind:
                    return spoilt
    raise AssertionError(f"no bit gives {kind}")


def test_a_file_that_has_become_shorter_is_fetched_again(served, remote, out, places):
    site = served(out, f"location {TAR} {{ if ($request_method = GET) {{ return 416; }} }}")
    with pytest.raises(ShardError, match=rf"{site.url}{TAR} is shorter than its server said \(416\); it came so 3 times"):
        everything(remote(site.url), places)


def test_no_index_is_an_error_that_names_the_url(served, remote, out):
    site = served(out.parent)
    with pytest.raises(ShardError, match=rf"{site.url}/index\.parquet is not there \(404\)"):
        read_output_index(remote(site.url))


class BreaksOff(socketserver.StreamRequestHandler):
    """Knows no ranges. Sends half of every other answer and hangs up, which nginx cannot be made to do."""

    def handle(self) -> None:
        method, uri, *_ = self.rfile.readline().decode().split()
        while self.rfile.readline() not in (b"\r\n", b""):
            pass
        path = Path(self.server.root) / uri.lstrip("/")
        content = path.read_bytes()
        self.wfile.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\nConnection: close\r\n\r\n".encode())
        if method == "GET":
            self.server.answered[uri] = self.server.answered.get(uri, 0) + 1
            self.wfile.write(content[: len(content) // 2] if self.server.answered[uri] % 2 else content)


def test_answers_that_break_off_are_asked_for_again(remote, out, places):
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), BreaksOff) as server:
        server.root, server.answered = out, {}
        threading.Thread(target=server.serve_forever).start()
        folder = remote(f"http://127.0.0.1:{server.server_address[1]}")
        assert everything(folder, places) == everything(out, places)
        server.shutdown()
    assert server.answered[TAR] == 2


def test_large_files_come_in_pieces_and_only_the_broken_piece_comes_twice(served, remote, out, places, monkeypatch):
    monkeypatch.setattr("gift_shared.remote_files.BLOCK_BYTES", 5_000)
    site = served(out, WHILE_AILING.format(fault="return 503;"))
    folder = remote(site.url, patience=Patience(attempts=8, first_wait=0.02, stall=1))
    tar = shard_tar(out, "cats-00000")
    pieces = -(-tar.stat().st_size // 5_000)
    arrived, seen = [], threading.Event()

    def after_three_pieces(size: int) -> None:
        arrived.append(size)
        if len(arrived) == 3:
            (site.root / "ailing").touch()
            seen.set()

    def heal() -> None:
        seen.wait(20)
        while not site.requests(ending=TAR, status="503"):
            time.sleep(0.01)
        (site.root / "ailing").unlink()

    healer = threading.Thread(target=heal)
    healer.start()
    folder.fetch("cats-00000", on_bytes=after_three_pieces)
    healer.join()
    assert folder.tar("cats-00000").read_bytes() == tar.read_bytes()
    assert len(site.requests(ending=TAR, status="206")) == pieces


def test_a_full_disk_takes_old_copies_first_and_is_told_then(served, remote, out, places, monkeypatch):
    folder = remote(served(out).url)
    read_output_index(folder)
    folder.fetch("cats-00000")
    blocks, calls = RemoteFiles.blocks, []

    def full_disk(self, relative, size):
        if relative.endswith(".tar"):
            calls.append(relative)
            if len(calls) in (1, 3):
                raise OSError(errno.ENOSPC, "No space left on device")
        yield from blocks(self, relative, size)

    monkeypatch.setattr(RemoteFiles, "blocks", full_disk)
    folder.fetch("cats-00001")
    assert not folder.tar("cats-00000").exists()
    folder.hold("task", ["cats-00001"])
    with pytest.raises(ShardError, match=rf"{folder.cache.folder}: the disk of the shard cache is full\. .* --shard-cache;"):
        folder.fetch("cats-00002")
    assert folder.tar("cats-00001").exists()


def test_a_full_cache_folder_leaves_no_half_copy(served, remote, out, places):
    folder = remote(served(out).url)
    index_size = (out / "index.parquet").stat().st_size
    read_output_index(folder)
    folder.cache.most_bytes = index_size + 10_000
    with pytest.raises(ShardError, match=r"Give --shard-cache-gb"):
        folder.fetch("cats-00000")
    assert [path for path in folder.cache.folder.rglob("*.tar*") if not path.name.endswith(".lock")] == []


FETCH_ALL = """
import sys
from pathlib import Path
from gift_shared.console import run_app
from gift_shared.file_cache import FileCache
from gift_shared.shards import require_images
from gift_shared.storage import RemoteFolder
from gift_shared.parquet_files import read_output_index
def main():
    folder = RemoteFolder(sys.argv[1], FileCache(Path(sys.argv[2])))
    require_images(folder, [read_output_index(folder)[0]])
run_app(main)
"""


class Left(Exception):
    pass


@pytest.mark.parametrize("fault", ["limit_rate 100;", "return 503;"], ids=["drips", "is waited for"])
def test_fetching_is_left_soon_when_asked_to(served, remote, out, fault):
    site = served(out, f"location ~ tar$ {{ {fault} }}")
    folder = remote(site.url, patience=Patience(attempts=9, first_wait=20, stall=20))
    rows = read_output_index(folder)[0]
    began = time.monotonic()

    def may_leave() -> None:
        if time.monotonic() > began + 1:
            raise Left

    with pytest.raises(Left):
        require_images(folder, [rows], may_leave)
    assert time.monotonic() < began + 5
    assert list(folder.cache.folder.rglob(".*.tmp")) == []


def test_fetching_that_was_left_can_be_begun_again(served, remote, out, places):
    site = served(out, WHILE_AILING.format(fault="return 503;"))
    folder = remote(site.url, patience=Patience(attempts=9, first_wait=0.1, stall=1))
    rows = read_output_index(folder)[0]
    with healed_when(site, lambda: len(site.requests(status="503")) >= 2):

        def may_leave() -> None:
            raise Left

        with pytest.raises(Left):
            folder.hold("task", ["cats-00000"], may_leave)
        require_images(folder, [rows])
    assert everything(folder, places) == everything(out, places)


def test_ctrl_c_while_shards_are_fetched_ends_at_once(served, out, tmp_path):
    site = served(out, "location ~ tar$ { limit_rate 100; }")
    command = [sys.executable, "-c", FETCH_ALL, site.url, str(tmp_path / "cache")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 20
    while not list(tmp_path.rglob(".*.tar.*.tmp")) and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    assert "Interrupted." in process.communicate(timeout=60)[1]
    assert time.monotonic() < began + 5
    assert process.returncode == 130
    assert list(tmp_path.rglob(".*.tmp")) == []
