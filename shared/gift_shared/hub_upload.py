"""Folders of ours to the Hugging Face hub, by its own client: begun again, it goes on, and what is not whole there does not look whole.

The hub takes a large folder in several commits. So the files without which the rest does not count are committed last, all at once, and
where others of their kind are there, these go first. Whoever reads a commit from before still has that one, whole.
"""

import hashlib
import logging
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoFile
from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

from gift_shared.cards import CARD_FILE, is_untouched, plain
from gift_shared.console import some_of
from gift_shared.errors import ConfigError, MachineError, first_line
from gift_shared.hub import HTTP_ERROR, LOG_IN, Repository, hub_api, is_logged_in, is_unreachable
from gift_shared.hub_options import UploadOptions

MAIN = "main"
THEIRS = ("LICENSE*", "NOTICE*", CARD_FILE)  # what people put beside it on the hub, and whatever is hidden
Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Destination:
    """A repository of the hub and what it is to be."""

    name: str
    kind: Literal["model", "dataset"]
    options: UploadOptions

    @property
    def branch(self) -> str:
        """Where it is committed to."""
        return self.options.revision or MAIN


@dataclass(frozen=True, kw_only=True)
class Upload:
    """Files of a folder, by names relative to it.

    ours: patterns of all names that a folder of this kind may have. Those are sent; what is there under one and not here is removed; what
    is under none makes the repository something else, which is let alone. last: names that are committed together when all others are
    there. deciding: names that tell which of two such folders it is. what: how errors call it.
    """

    folder: Path
    ours: Sequence[str]
    last: Sequence[str]
    deciding: Sequence[str]
    what: str


@dataclass(frozen=True)
class Uploaded:
    """Where it is, for people and for programs."""

    url: str
    commit: str


def require_token(name: str) -> None:
    """Before anything takes time. Raises ConfigError if nobody is logged in."""
    if not is_logged_in():
        raise ConfigError(f"{name}: to upload, {LOG_IN}, with a token that may write.")


def upload(what: Upload, to: Destination, tell: Tell) -> Uploaded:
    """Bring the files there; what is there already is not sent again.

    Raises: ConfigError for a repository that cannot be written, or holds something else; MachineError if the way there breaks off.
    """
    require_token(to.name)
    if not sys.stderr.isatty():
        disable_progress_bars()
    api, hub = hub_api(), Repository(where=to.name, revision=to.branch, deed="write")
    hub.ask(lambda: _create(api, to))
    there = hub.ask(lambda: _files(api, to))
    other = [name for name in what.deciding if name in there and not _is_same(there[name], what.folder / name)]
    _require_room(what, to, there, other)
    last = [name for name in what.last if name != CARD_FILE or _may_write_card(api, to, hub, there, what.folder, tell)]
    if other:
        hub.ask(lambda: _retract(api, to, [name for name in last if name in there]))
    stale = sorted(name for name in there if _fits(name, what.ours) and not (what.folder / name).is_file())
    _send(hub, lambda: _upload_most(api, what, to))
    _send(hub, lambda: _commit_last(api, what, to, last, stale))
    commit = hub.ask(lambda: api.repo_info(to.name, repo_type=to.kind, revision=to.branch).sha)
    assert commit is not None
    folder = "datasets/" if to.kind == "dataset" else ""
    return Uploaded(f"{api.endpoint}/{folder}{to.name}" + ("" if to.branch == MAIN else f"/tree/{to.branch}"), str(commit))


def _create(api: HfApi, to: Destination) -> None:
    api.create_repo(to.name, repo_type=to.kind, private=True if to.options.private else None, exist_ok=True)
    if to.options.private and not api.repo_info(to.name, repo_type=to.kind).private:
        raise ConfigError(f"{to.name} is there and public; --private makes a new one so. Change it on its page, or choose another name.")
    if to.branch != MAIN and not to.branch.startswith("refs/"):
        api.create_branch(to.name, repo_type=to.kind, branch=to.branch, exist_ok=True)


def _files(api: HfApi, to: Destination) -> dict[str, RepoFile]:
    entries = api.list_repo_tree(to.name, repo_type=to.kind, revision=to.branch, recursive=True)
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def _require_room(what: Upload, to: Destination, there: dict[str, RepoFile], other: Sequence[str]) -> None:
    """`other`: names that decide which of its kind it is, and that differ there."""
    foreign = [name for name in there if not _fits(name, (*what.ours, *THEIRS)) and not name.startswith(".")]
    if foreign:
        raise ConfigError(f"{to.name} holds other files than {what.what} ({some_of(foreign)}), which stay. Choose another name.")
    if other and not to.options.replace:
        raise ConfigError(
            f"{to.name} ({to.branch}) holds another of {what.what}: its {other[0]} differs. Choose another name or --revision, or give "
            "--replace; commits keep what was there."
        )


def _may_write_card(api: HfApi, to: Destination, hub: Repository, there: dict[str, RepoFile], folder: Path, tell: Tell) -> bool:
    """A card that was edited on the hub is its editor's."""
    if CARD_FILE not in there or _is_same(there[CARD_FILE], folder / CARD_FILE):
        return True
    with tempfile.TemporaryDirectory() as temporary:
        found = hub.ask(lambda: api.hf_hub_download(to.name, CARD_FILE, repo_type=to.kind, revision=to.branch, local_dir=temporary))
        if is_untouched(Path(found).read_bytes()):
            return True
    tell(f"{to.name}: its {CARD_FILE} was changed there, so it stays; remove it there to have ours.")
    return False


def _retract(api: HfApi, to: Destination, names: Sequence[str]) -> None:
    if names:
        deletions = [CommitOperationDelete(name, is_folder=False) for name in names]
        api.create_commit(to.name, deletions, commit_message="Make room", repo_type=to.kind, revision=to.branch)


def _upload_most(api: HfApi, what: Upload, to: Destination) -> None:
    api.upload_folder(
        repo_id=to.name, repo_type=to.kind, revision=to.branch, folder_path=what.folder, commit_message=f"Upload {what.what}",
        allow_patterns=list(what.ours), ignore_patterns=list(what.last),
    )  # fmt: skip


def _commit_last(api: HfApi, what: Upload, to: Destination, last: Sequence[str], stale: Sequence[str]) -> None:
    """Without a change nothing is committed; the library says so at length."""
    operations: list[Any] = [CommitOperationDelete(name, is_folder=False) for name in stale]
    operations += [CommitOperationAdd(name, what.folder / name) for name in last]
    logger = logging.getLogger("huggingface_hub.hf_api")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        api.create_commit(to.name, operations, commit_message=f"Complete {what.what}", repo_type=to.kind, revision=to.branch)
    finally:
        logger.setLevel(level)


def _send(hub: Repository, send: Callable[[], Any]) -> None:
    """A long way, on which much can happen: the library wraps what happens to a file's content, wherever it goes, in a RuntimeError."""
    try:
        send()
    except (RuntimeError, ValueError, OSError, HTTP_ERROR) as error:
        cause = error.__cause__ or error
        if isinstance(error, RuntimeError) or (is_unreachable(error) and hub.refusal(error) is None):
            told = f"{hub.where}: the upload broke off ({first_line(cause)}). What has arrived stays there; the same command goes on."
            raise MachineError(told) from error
        if (reason := hub.refusal(error)) is not None:
            raise ConfigError(f"{hub.where} {reason}") from error
        if isinstance(error, ValueError):  # the card's front matter, which the hub reads first
            raise ConfigError(f"{hub.where}: {plain(str(error))}") from error
        raise


def _is_same(there: RepoFile, path: Path) -> bool:
    """Whether a file on the hub is the one here, by the hub's digest of it: sha256 of a large one, git's sha1 of others."""
    if not path.is_file() or there.size != path.stat().st_size:
        return False
    with path.open("rb") as file:
        if there.lfs is not None:
            return hashlib.file_digest(file, "sha256").hexdigest() == there.lfs.sha256
        return hashlib.sha1(f"blob {there.size}\0".encode() + file.read()).hexdigest() == there.blob_id


def _fits(name: str, patterns: Sequence[str]) -> bool:
    """Whether any pattern means this name, whose folders it must name: to fnmatch a star is any number of them."""
    return any(fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns)
