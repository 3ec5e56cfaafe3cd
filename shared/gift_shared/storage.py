"""An output folder of stage 1, wherever it lies: a folder here, or a URL whose files are fetched, checked and kept here for a while.

To all who read shards the two look alike: they ask `index_file` and `tar_file` for a path on this machine.
"""

import contextlib
import hashlib
import io
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pyarrow as pa
import pyarrow.parquet as pq

from gift_shared.console import FULL_DISK
from gift_shared.errors import ConfigError, ShardError
from gift_shared.file_cache import GB, FileCache
from gift_shared.progress import Progress
from gift_shared.remote_files import CutShortError, NotThereError, Patience, RemoteFiles
from gift_shared.schema import INDEX_FILE, SHARD_FOLDER, TAR_BYTES, TAR_SHA256

REQUESTS_AT_ONCE = 16
TARS_AT_ONCE = 4
DAMAGED_ATTEMPTS = 3  # of fetching a file whose bytes are not what they should be: it may be being replaced
QUESTION = 1.0  # seconds between questions whether to go on fetching
NO_PARQUET = (pa.ArrowException, OSError, UnicodeDecodeError)  # what pyarrow raises for a file that is damaged or none of its own
MB = 10**6

T = TypeVar("T")
MayLeave = Callable[[], None]  # raises to leave

_log = logging.getLogger(__name__)


class _DamagedError(Exception):
    """A fetched file that is not what it should be; the text goes on from its URL."""


class RemoteFolder:
    """An output folder behind a URL. Can be pickled and forked: every process has its own connections, all share the cache."""

    def __init__(self, url: str, cache: FileCache | None = None, patience: Patience | None = None) -> None:
        self.files = _remote_files(url, patience)
        self.cache = cache or FileCache()
        self._tables: dict[str, Path] = {}  # copies of Parquet files, by their places in the folder
        self._held: dict[str, frozenset[str]] = {}  # shards by purpose

    def __str__(self) -> str:
        return self.files.url

    def pin(self, recorded: str | None) -> None:
        """Read what a run began with, whose record has this location, if the server still keeps it: see HubFiles.pin."""
        self.files.pin(recorded)

    def index(self) -> Path:
        """A copy of the index, see `table`."""
        return self.table(INDEX_FILE)

    def table(self, relative: str) -> Path:
        """A copy of a Parquet file: one version as long as this object lives, fetched anew if the server has another than the copy."""
        copy = self._tables.get(relative)
        if copy is None or not copy.is_file():
            copy = self._tables[relative] = self._sound_table(relative)
        self.cache.used(copy)
        return copy

    def _sound_table(self, relative: str) -> Path:
        facts = self.files.facts(relative)
        version = hashlib.sha256((facts.version or str(time.time_ns())).encode("utf-8", "surrogateescape")).hexdigest()[:12]
        place = PurePosixPath(relative)
        copy = self.cache.path(self.files.url_of(str(place.with_name(f"{version}-{place.name}"))))
        with self.cache.alone_with(copy, self.files.pause):
            if copy.is_file() and not _is_parquet(copy):
                copy.unlink()
            if not copy.is_file():
                self._until_sound(relative, lambda: self._copy(relative, copy, _require_parquet))
        return copy

    def tar(self, shard: str) -> Path:
        """Where the copy of a shard's tar lies; `fetch` sees to it that it does."""
        return self.cache.path(self.files.url_of(_tar(shard)))

    def fetch(self, shard: str, other_than: int | None = None, on_bytes: Callable[[int], Any] | None = None) -> None:
        """Make sure that the copy of a tar is there. `other_than`: inode of a copy that is no good and is to be replaced.

        On arrival its size and digest are held against the shard's own Parquet; if the URL has none, each image is still checked
        whenever it is read. Raises ShardError naming the URL.
        """
        copy = self.tar(shard)
        with self.cache.alone_with(copy, self.files.pause):
            if other_than is not None and copy.is_file() and copy.stat().st_ino == other_than:
                copy.unlink()
            if not copy.is_file():
                self._until_sound(_tar(shard), lambda: self._copy(_tar(shard), copy, self._tar_check(shard), on_bytes))
            self.cache.used(copy)

    def sizes(self, ends: Mapping[str, int], may_leave: MayLeave = lambda: None) -> dict[str, int]:
        """Bytes of each tar, of its copy or as the server says; a copy that ends before the byte given for it is dropped.

        Raises ShardError for a tar that is not there.
        """
        sizes = self._in_threads(REQUESTS_AT_ONCE, [partial(self._size, shard, end) for shard, end in ends.items()], may_leave)
        return dict(zip(ends, sizes, strict=True))

    def hold(self, purpose: str, shards: Collection[str], may_leave: MayLeave = lambda: None) -> None:
        """Fetch these tars and keep them until the same purpose holds others. `may_leave` is asked every second and may raise.

        Raises ShardError, also if the cache is too small.
        """
        others = (held for name, held in self._held.items() if name != purpose)
        wanted = self.sizes(dict.fromkeys(sorted(frozenset(shards).union(*others)), 0), may_leave)
        self.require_room(sum(wanted.values()))
        self._held[purpose] = frozenset(shards)
        missing = [shard for shard in wanted if not self.tar(shard).is_file()]
        total = sum(wanted[shard] for shard in missing)
        with Progress(f"fetching {self}", -(-total // MB), "megabyte", stays=False) as progress:
            arrived = _Megabytes(progress)
            self._in_threads(TARS_AT_ONCE, [partial(self.fetch, shard, on_bytes=arrived) for shard in wanted], may_leave)

    def has_room(self, num_bytes: int) -> bool:
        """Whether the cache can hold tars of so many bytes at once, beside the index."""
        return self._with_tables(num_bytes) <= self.cache.most_bytes

    def require_room(self, num_bytes: int) -> None:
        """Raises ShardError if the cache has no room for tars of so many bytes."""
        if not self.has_room(num_bytes):
            needed = self._with_tables(num_bytes) / GB
            raise ShardError(
                f"{self}: tars that are read together and the index have {needed:.3g} GB, the shard cache holds"
                f" {self.cache.most_bytes / GB:.3g}. Give --shard-cache-gb {needed * 1.05:.2g} or more, or copy the folder here."
            )

    def _with_tables(self, num_bytes: int) -> int:
        return num_bytes + sum(copy.stat().st_size for copy in self._tables.values() if copy.is_file())

    def holds(self, shards: Collection[str]) -> bool:
        """Whether all of these are kept already."""
        return frozenset(shards) <= frozenset().union(*self._held.values())

    def _in_threads(self, most: int, calls: Sequence[Callable[[], T]], may_leave: MayLeave) -> list[T]:
        """The results of calls that ask the server, in their order. After an error, or Ctrl-C, what is under way is given up."""
        self.files.pin()
        with ThreadPoolExecutor(most) as pool:
            jobs = [pool.submit(call) for call in calls]
            pending = set(jobs)
            try:
                while pending:
                    may_leave()
                    done, pending = wait(pending, timeout=QUESTION, return_when=FIRST_EXCEPTION)
                    for job in done:
                        job.result()
            except BaseException:
                self.files.is_given_up = True
                pool.shutdown(cancel_futures=True)
                self.files.is_given_up = False
                raise
        return [job.result() for job in jobs]

    def _size(self, shard: str, end: int) -> int:
        copy = self.tar(shard)
        with contextlib.suppress(FileNotFoundError):
            if (size := copy.stat().st_size) >= end:
                return size
            copy.unlink()  # cut short, or of another time
        return self.files.facts(_tar(shard)).size

    def _tar_check(self, shard: str) -> "Check":
        """What the shard's own Parquet says its tar is; no check where the URL has the index alone."""
        relative = f"{SHARD_FOLDER}/{shard}.parquet"
        try:
            content = b"".join(self.files.blocks(relative, self.files.facts(relative).size))
            claims = pq.read_schema(io.BytesIO(content)).metadata or {}
            expected = tuple(claims.get(key.encode(), b"?").decode() for key in (TAR_BYTES, TAR_SHA256))
        except NotThereError:
            return lambda path, digest: None
        except NO_PARQUET as error:
            raise _DamagedError(f"cannot be checked: {self.files.url_of(relative)} is no readable Parquet file ({error})") from error

        def check(path: Path, digest: str) -> None:
            found = (str(path.stat().st_size), digest)
            if found != expected:
                raise _DamagedError(f"has {found[0]} bytes, sha256 {found[1]}, but its rows claim {expected[0]} bytes, {expected[1]}")

        return check

    def _copy(self, relative: str, copy: Path, check: "Check", on_bytes: Callable[[int], Any] | None = None) -> None:
        size = self.files.facts(relative).size
        kept = {self.tar(shard) for held in self._held.values() for shard in held} | set(self._tables.values())
        for is_last in (False, True):
            try:
                self._fill(relative, copy, size, kept, check, on_bytes)
            except OSError as error:
                if error.errno not in FULL_DISK:
                    raise
                if is_last or not self.cache.drop(size, kept, self.files.pause):  # the bound is kept, but others fill the disk too
                    raise ShardError(
                        f"{self.cache.folder}: the disk of the shard cache is full. Free some space there, or give another folder with"
                        " --shard-cache; the same command goes on."
                    ) from error
            else:
                return

    def _fill(self, relative: str, copy: Path, size: int, kept: set[Path], check: "Check", on_bytes: Callable[[int], Any] | None) -> None:
        digest = hashlib.sha256()
        with self.cache.new_copy(copy, size, kept, self.files.pause) as temporary:
            with temporary.open("r+b") as file:
                for block in self.files.blocks(relative, size):
                    file.write(block)
                    digest.update(block)
                    if on_bytes is not None:
                        on_bytes(len(block))
            check(temporary, digest.hexdigest())

    def _until_sound(self, relative: str, fetch: Callable[[], None]) -> None:
        url = self.files.url_of(relative)
        for attempt in range(1, DAMAGED_ATTEMPTS + 1):
            try:
                return fetch()
            except (_DamagedError, CutShortError) as damage:
                fault = str(damage).removeprefix(f"{url} ")
            if attempt < DAMAGED_ATTEMPTS:
                _log.warning("%s %s; fetching it again (%d of %d).", url, fault, attempt + 1, DAMAGED_ATTEMPTS)
                self.files.pause(self.files.patience.wait(attempt))
        raise ShardError(f"{url} {fault}; it came so {DAMAGED_ATTEMPTS} times. Run gift-generate verify where it lies, and copy it again.")


Folder = Path | RemoteFolder
Check = Callable[[Path, str], None]  # a fetched file and its sha256; raises _DamagedError


def open_folder(location: str | Path, cache: FileCache | None = None) -> Folder:
    """The output folder at a path or URL (http, https, s3, hf://datasets/..., file, and what else fsspec knows). Nothing is read yet.

    Raises: ConfigError for a URL that carries credentials, which would be written into every record, and for a missing package.
    """
    if isinstance(location, Path) or "://" not in location:
        return Path(location)
    try:
        parts = urlsplit(location)
    except ValueError as error:  # not repeated, it may carry a password
        scheme = location.partition("://")[0]
        raise ConfigError(f"--shards {scheme}://... is no URL. Write it as https://host/folder or s3://bucket/folder.") from error
    if parts.scheme == "file":
        return Path(url2pathname(parts.path))
    if parts.username or parts.query or parts.fragment:
        shown = f"{parts.scheme}://{parts.hostname}{parts.path}"
        raise ConfigError(f"{shown}: a URL of shards has no user, ? or #. Give credentials through the environment or fsspec's settings.")
    return RemoteFolder(location, cache)


def _remote_files(url: str, patience: Patience | None) -> RemoteFiles:
    if not url.startswith("hf://"):
        return RemoteFiles(url, patience)
    try:
        from gift_shared.hub_files import HubFiles  # takes a while, and few runs want it
    except ImportError as error:
        raise ConfigError(f'{url} needs the package {error.name}: pip install "gift-cl[remote]".') from error
    return HubFiles(url, patience)


def index_file(folder: Folder) -> Path:
    """The index of an output folder, on this machine."""
    return folder.index() if isinstance(folder, RemoteFolder) else folder / INDEX_FILE


def hold_shards(folder: Folder, purpose: str, shards: Collection[str], may_leave: MayLeave = lambda: None) -> None:
    """Have these shards on this machine before work begins that reads them in any order; a folder here has them. See RemoteFolder.hold."""
    if isinstance(folder, RemoteFolder) and not folder.holds(shards):
        folder.hold(purpose, shards, may_leave)


class _Megabytes:
    """Counts the bytes that threads fetch, in whole megabytes, which is what people read."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._bytes, self._lock = progress, 0, threading.Lock()

    def __call__(self, num_bytes: int) -> None:
        with self._lock:
            before, self._bytes = self._bytes, self._bytes + num_bytes
            self._progress.advance(-(-self._bytes // MB) - -(-before // MB))


def _tar(shard: str) -> str:
    return f"{SHARD_FOLDER}/{shard}.tar"


def _require_parquet(path: Path, _: str = "") -> None:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for _ in file.iter_batches():
                pass
    except NO_PARQUET as error:
        raise _DamagedError(f"is no readable Parquet file ({error})") from error


def _is_parquet(path: Path) -> bool:
    try:
        _require_parquet(path)
    except _DamagedError:
        return False
    return True
