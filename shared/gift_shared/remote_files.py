"""Files below a URL, read through fsspec: one request after another, tried again while a server is at fault, then told by URL.

fsspec's own file systems talk to the servers (http, https, s3 and whatever else is installed); this adds patience and our errors.
"""

import asyncio
import inspect
import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from gift_shared.errors import ConfigError, GiftError, ShardError

T = TypeVar("T")
BLOCK_BYTES = 16 * 2**20  # of one request: what is lost when a connection breaks, and held in memory
TEMPORARY_STATUS = (408, 425, 429)  # besides 5xx: asked too early or too often
MISSING_STATUS, FORBIDDEN_STATUS, BEYOND_END_STATUS = (404, 410), (401, 403), 416
OWN_FAULTS = ("Credential", "InvalidURL", "InvalidUrl", "ProfileNotFound", "ParamValidation", "NoRegion")  # error classes, in part
REMOTE_EXTRA = ("http", "https", "s3", "s3a")
LOOK = 0.25  # seconds between looks whether a request is still wanted
SLOWEST = 30  # a block that has not come after so many stalls' time is a failure, however steadily it drips

_log = logging.getLogger(__name__)


class NotThereError(ShardError):
    """The server says that it has no such file."""


class CutShortError(ShardError):
    """The file ends before the piece that was asked for: it was replaced meanwhile."""


class GivenUpError(Exception):
    """Nobody wants the answer any more."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a failing server is waited for: by default 6 attempts with about 31 s of waiting between them.

    first_wait: seconds before the second attempt; doubled each time, and varied by a quarter so that many workers do not come at once.
    stall: seconds without a byte after which an attempt has failed.
    """

    attempts: int = 6
    first_wait: float = 1.0
    stall: float = 20.0

    def wait(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row."""
        return float(self.first_wait * 2 ** (failures - 1) * random.uniform(0.75, 1.25))


@dataclass(frozen=True)
class RemoteFacts:
    """What a server says of a file. size: bytes. version: changes with the content; None if the server does not tell."""

    size: int
    version: str | None


class RemoteFiles:
    """The files below a URL. Can be pickled and forked: every process opens connections of its own.

    is_given_up: set by who does not want the answers any more; whatever other threads wait for then ends with GivenUpError.
    """

    def __init__(self, url: str, patience: Patience | None = None) -> None:
        self.url = url.rstrip("/")
        self.patience = patience or Patience()
        self.is_given_up = False
        self._opened: tuple[int, Any, tuple[type[Exception], ...]] | None = None
        _ = self._errors  # a missing package is told at once

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    def url_of(self, relative: str) -> str:
        """The URL of a file, as errors name it."""
        return f"{self.url}/{relative}"

    def pin(self, recorded: str | None = None) -> None:
        """Decide which of several versions of the whole is read from now on, where a server keeps more than one. See HubFiles."""

    def facts(self, relative: str) -> RemoteFacts:
        """Size and version of a file. Raises ShardError (NotThereError) if it is not there, or its server does not answer."""
        url = self.url_of(relative)
        size, version = self._tried(url, lambda: self._facts(relative))
        if size is None:
            raise ShardError(f"{url}: its server tells no length, so nobody could see that it is cut short.")
        return RemoteFacts(size, version)

    def blocks(self, relative: str, size: int) -> Iterator[bytes]:
        """The content of a file of `size` bytes, piece by piece; one that breaks off is asked for again. Raises as `facts` does."""
        position = 0
        while position < size:
            block = self._tried(self.url_of(relative), partial(self._block, relative, position, size))
            yield block
            position += len(block)

    def pause(self, seconds: float) -> None:
        """Wait. Raises GivenUpError."""
        end = time.monotonic() + seconds
        while not self.is_given_up and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, LOOK))
        if self.is_given_up:
            raise GivenUpError

    def _facts(self, relative: str) -> tuple[int | None, str | None]:
        info = self._ask("info", self.url_of(relative))
        version = info.get("ETag") or info.get("Last-Modified") or info.get("LastModified")
        return info.get("size"), None if version is None else str(version)

    def _piece(self, relative: str, start: int, end: int) -> bytes:
        return bytes(self._ask("cat_file", self.url_of(relative), start=start, end=end))

    def _ask(self, method: str, url: str, **arguments: int) -> Any:
        """One request, which can be given up, and fails when it takes too long however steadily it drips."""
        files = self._file_system
        if not files.async_impl:
            return getattr(files, method)(url, **arguments)
        request = asyncio.run_coroutine_threadsafe(getattr(files, f"_{method}")(url, **arguments), files.loop)
        longest = SLOWEST * self.patience.stall
        end = time.monotonic() + longest
        try:
            while not wait([request], timeout=LOOK).done:
                if self.is_given_up:
                    raise GivenUpError
                if time.monotonic() > end:
                    raise TimeoutError(f"no whole answer within {longest:g} s")
            return request.result()
        finally:
            request.cancel()

    def _block(self, relative: str, start: int, size: int) -> bytes:
        end = min(start + BLOCK_BYTES, size)
        content = self._piece(relative, start, end)
        is_whole = start == 0 and len(content) == size  # from a server that knows no ranges
        if len(content) != end - start and not is_whole:
            raise ConnectionError(f"{len(content)} of {end - start} bytes came")
        return content

    def _tried(self, url: str, request: Callable[[], T]) -> T:
        started = time.monotonic()
        for failures in range(1, self.patience.attempts + 1):
            try:
                return request()
            except self._errors as error:
                final, reason = self._judged(error)
                if final is not None:
                    raise final(f"{url} {reason}") from error
                if failures == self.patience.attempts:
                    break
            pause = self.patience.wait(failures)
            _log.warning("%s: %s; attempt %d of %d in %.1f s.", url, reason, failures + 1, self.patience.attempts, pause)
            self.pause(pause)
        seconds = time.monotonic() - started
        raise ShardError(
            f"{url} could not be read in {self.patience.attempts} attempts over {seconds:.0f} s: {reason}."
            " See whether its server is well; the same command goes on."
        )

    def _judged(self, error: Exception) -> tuple[type[GiftError] | None, str]:
        return _judged(error)

    @property
    def _file_system(self) -> Any:
        return self._open()[1]

    @property
    def _errors(self) -> tuple[type[Exception], ...]:
        return self._open()[2]

    def _open(self) -> tuple[int, Any, tuple[type[Exception], ...]]:
        if self._opened is None or self._opened[0] != os.getpid():  # fsspec's connections do not survive a fork
            self._opened = (os.getpid(), *_open_file_system(self.url, self.patience.stall))
        return self._opened


def _open_file_system(url: str, stall: float) -> tuple[Any, tuple[type[Exception], ...]]:
    """fsspec's file system for a URL, and what it raises for a server's fault besides OSError."""
    protocol = url.partition("://")[0]
    errors: list[type[Exception]] = [OSError, ValueError]
    try:
        import fsspec
        from fsspec.config import conf

        if protocol in ("http", "https"):
            import aiohttp

            limits = aiohttp.ClientTimeout(sock_connect=stall, sock_read=stall)
            # trust_env: a cluster's proxy (HTTPS_PROXY), and passwords of ~/.netrc
            client = _settings("client_kwargs", "http", "https") | {"timeout": limits, "trust_env": True}
            client["headers"] = dict(client.get("headers") or {}) | {"Accept-Encoding": "identity"}
            file_system = fsspec.filesystem(protocol, skip_instance_cache=True, client_kwargs=client)
            errors += [aiohttp.ClientError]
        elif protocol in ("s3", "s3a"):
            import botocore.exceptions
            import s3fs

            patience = {"connect_timeout": stall, "read_timeout": stall, "retries": {"max_attempts": 0}}
            patience = _settings("config_kwargs", "s3", "s3a") | patience
            file_system = s3fs.S3FileSystem(skip_instance_cache=True, config_kwargs=patience)
            file_system.retries = 1  # the patience is ours
            errors += [botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError]
        else:
            # A file system that needs a host besides is refused before it is made: half an object complains when it is collected.
            inspect.signature(fsspec.get_filesystem_class(protocol).__init__).bind(None, **conf.get(protocol, {}))
            file_system = fsspec.filesystem(protocol, skip_instance_cache=True)
    except ImportError as error:
        if protocol in REMOTE_EXTRA:
            raise ConfigError(f'{url} needs the package {error.name or "fsspec"}: pip install "gift-cl[remote]".') from error
        raise ConfigError(f"{url} needs another package: {error}.") from error
    except (TypeError, ValueError) as error:  # TypeError: it takes more than a URL to open
        raise ConfigError(f"{url}: {error}. Give a folder, or a URL with http, https or s3.") from error
    return file_system, tuple(errors)


def _settings(key: str, *protocols: str) -> dict[str, Any]:
    """What fsspec's own settings say of an argument that we give too: ours would replace it whole."""
    from fsspec.config import conf

    return {name: value for protocol in protocols for name, value in (conf.get(protocol, {}).get(key) or {}).items()}


def _judged(error: BaseException) -> tuple[type[GiftError] | None, str]:
    """What went wrong, and the error to raise at once; None if trying again can help. fsspec wraps errors, so the first cause decides."""
    told = str(error)
    while error.__cause__ is not None:
        error = error.__cause__
        told = str(error) or told
    kind, status = type(error).__name__, _status(error)
    if isinstance(error, FileNotFoundError) or status in MISSING_STATUS:
        return NotThereError, "is not there (404). Check the URL; is the folder complete?"
    if isinstance(error, PermissionError) or status in FORBIDDEN_STATUS:
        return ShardError, f"may not be read ({status or 403}). Check URL, rights and credentials."
    if status == BEYOND_END_STATUS:
        return CutShortError, "is shorter than its server said (416)"
    if status is not None and status < 500 and status not in TEMPORARY_STATUS:
        return ShardError, f"may not be asked for: the server answered {status}. Check URL and credentials; has a token expired?"
    if isinstance(error, ValueError) or any(name in kind for name in OWN_FAULTS):
        return ShardError, f"cannot be asked for ({kind}: {told}). Check URL, endpoint and credentials."
    return None, f"{kind} ({told})" if status is None else f"the server answered {status}"


def _status(error: BaseException) -> int | None:
    """HTTP status of an error of aiohttp or botocore, None if it has none."""
    status, response = getattr(error, "status", None), getattr(error, "response", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status if isinstance(status, int) and status > 0 else None  # aiohttp says 0 of redirects without end
