"""Files of a dataset on the Hugging Face hub: asked for by the hub's own client at one commit, with the patience of other URLs.

hf://datasets/owner/name[@revision][/folder]. A branch or tag is looked up once; from then on everything is read at the commit that it was,
in every process that the object is handed to, so that a branch that moves meanwhile mixes no two sets.
"""

import re
import time
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote

import huggingface_hub
from huggingface_hub import errors
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]  # documented, but not marked as exported

from gift_shared.errors import ConfigError, GiftError, ShardError
from gift_shared.hub import HTTP_ERROR, SECONDS_TO_ANSWER, Repository, UnreachableError, hub_api, is_unreachable, status_of
from gift_shared.remote_files import (
    SLOWEST,
    TEMPORARY_STATUS,
    CutShortError,
    GivenUpError,
    NotThereError,
    Patience,
    RemoteFiles,
)

DATASETS = "hf://datasets/"
COMMIT = re.compile(r"[0-9a-f]{40}")
SLASHED_REVISION = re.compile(r"(refs/(?:pr|convert)/[^/]+)(?:/(.*))?", re.DOTALL)  # the two kinds whose names hold slashes
AS_GIVEN = "hf://datasets/owner/name, @revision behind it if you like"


@dataclass(frozen=True)
class HubLocation:
    """An output folder in a dataset of the hub; `folder` is empty for the dataset itself."""

    name: str
    revision: str
    folder: str

    def __str__(self) -> str:
        return "/".join([f"{DATASETS}{self.name}@{self.revision.replace('/', '%2F')}", *([self.folder] if self.folder else [])])

    def is_same_place(self, other: "HubLocation") -> bool:
        """Whether both are one folder, at whatever revision."""
        return (self.name, self.folder) == (other.name, other.folder)


def parse_location(url: str) -> HubLocation:
    """Take hf://datasets/owner/name[@revision][/folder] apart. Raises ConfigError for what is none."""
    owner, _, rest = url.removeprefix(DATASETS).partition("/")
    match = re.fullmatch(r"([^@/]+)(?:@([^/]*)(?:/(.*))?|/(.*))?", rest.strip("/"), re.DOTALL)
    if not url.startswith(DATASETS) or not owner or match is None:
        raise ConfigError(f"{url} is no dataset of the hub: shards are {AS_GIVEN}.")
    name, revision, folder = match[1], unquote(match[2] or ""), match[3] or match[4] or ""
    if match[2] == "refs" and (slashed := SLASHED_REVISION.fullmatch(f"refs/{folder}")):
        revision, folder = slashed[1], slashed[2] or ""
    if match[2] == "":
        raise ConfigError(f"{url} names no revision after its @: shards are {AS_GIVEN}.")
    return HubLocation(f"{owner}/{name}", revision or "main", folder.strip("/"))


class HubFiles(RemoteFiles):
    """The files below hf://datasets/... at one commit."""

    def __init__(self, url: str, patience: Patience | None = None) -> None:
        self._location = parse_location(url)
        self._is_pinned = COMMIT.fullmatch(self._location.revision) is not None
        super().__init__(url, patience)

    def pin(self, recorded: str | None = None) -> None:
        """Look the revision up, once. `recorded`: the URL that a run began with; the same place is read at the commit it was then.

        Raises: ConfigError if there is no such dataset or revision, or none that may be read; ShardError if the hub does not answer.
        """
        if self._is_pinned:
            return
        if recorded is not None and recorded.startswith(DATASETS):
            then = parse_location(recorded)
            if COMMIT.fullmatch(then.revision) and then.is_same_place(self._location):
                self._pin_to(then.revision)
                return
        self._pin_to(self._tried(self.url, self._commit))

    def url_of(self, relative: str) -> str:
        """The file at its commit: what copies are kept under, and errors name."""
        self.pin()
        return super().url_of(relative)

    def _pin_to(self, commit: str) -> None:
        self._location = replace(self._location, revision=commit)
        self._is_pinned = True
        self.url = str(self._location)

    def _commit(self) -> str:
        try:
            found = hub_api().dataset_info(self._location.name, revision=self._location.revision, timeout=SECONDS_TO_ANSWER).sha
        except errors.RepositoryNotFoundError as error:
            if not isinstance(error, errors.GatedRepoError) and self._is_model():
                raise ConfigError(f"{self.url} is a model on the hub, not a dataset: {AS_GIVEN}.") from error
            raise
        assert found is not None
        return str(found)

    def _is_model(self) -> bool:
        try:
            return hub_api().repo_exists(self._location.name, repo_type="model")
        except Exception as error:
            if is_unreachable(error):
                return False
            raise

    def _facts(self, relative: str) -> tuple[int | None, str | None]:
        found = hub_api().get_hf_file_metadata(url=self._address(relative), timeout=self.patience.stall)
        return found.size, found.etag

    def _piece(self, relative: str, start: int, end: int) -> bytes:
        """One request, which can be given up, and fails when it takes too long however steadily it drips."""
        headers = build_hf_headers() | {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        latest = time.monotonic() + SLOWEST * self.patience.stall
        content = bytearray()
        session: Any = huggingface_hub.get_session()
        with session.stream("GET", self._address(relative), headers=headers, timeout=self.patience.stall, follow_redirects=True) as answer:
            hf_raise_for_status(answer)
            for part in answer.iter_bytes():
                content += part
                if self.is_given_up:
                    raise GivenUpError
                if time.monotonic() > latest:
                    raise TimeoutError(f"no whole answer within {SLOWEST * self.patience.stall:g} s")
        return bytes(content)

    def _address(self, relative: str) -> str:
        """Where the hub serves a file."""
        self.pin()
        path = "/".join(part for part in (self._location.folder, relative) if part)
        return huggingface_hub.hf_hub_url(
            self._location.name, path, repo_type="dataset", revision=self._location.revision, endpoint=hub_api().endpoint
        )

    @property
    def _errors(self) -> tuple[type[Exception], ...]:
        return OSError, ValueError, HTTP_ERROR

    def _judged(self, error: Exception) -> tuple[type[GiftError] | None, str]:
        repository = Repository(where=self.url, revision=self._location.revision, how="after the @", absent="is no dataset of the hub")
        status = status_of(error)
        if isinstance(error, errors.EntryNotFoundError):
            return NotThereError, "is not there (404). Is that dataset an output folder of gift-generate, and complete?"
        if (reason := repository.refusal(error)) is not None:
            return ConfigError, reason
        if isinstance(error, errors.OfflineModeIsEnabled):
            return UnreachableError, "cannot be fetched: HF_HUB_OFFLINE is set. Where there is a network, copy the dataset into a folder."
        if status == 416:
            return CutShortError, "is shorter than the hub said (416)"
        if status is not None:
            return (None if status >= 500 or status in TEMPORARY_STATUS else ShardError), f"the hub answered {status}"
        if is_unreachable(error):
            return None, f"{type(error).__name__} ({error})"
        raise error
