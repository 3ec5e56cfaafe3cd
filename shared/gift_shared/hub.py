"""The Hugging Face hub: its client, and its answers as one line each. Reading shards and uploading folders stand in modules of their own.

The hub answers alike for a name that does not exist and for one that is private; only somebody who is logged in is told which it is.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import huggingface_hub
from huggingface_hub import errors

from gift_shared.errors import ConfigError, first_line

LOG_IN = "log in with `hf auth login` or set HF_TOKEN"
SECONDS_TO_ANSWER = 30.0
UNKNOWN_TOKEN, FORBIDDEN = 401, 403
# What the client for HTTP raises without an answer: httpx's, under the name by which this version of the hub's library has it.
HTTP_ERROR: type[Exception] = next(base for base in errors.HfHubHTTPError.__bases__ if base is not OSError)
Answer = TypeVar("Answer")


class UnreachableError(ConfigError):
    """No answer from the hub: no network, or HF_HUB_OFFLINE is set."""


def hub_api() -> huggingface_hub.HfApi:
    """The library's client. HF_ENDPOINT is read now and not when the library was imported; the token by each of its calls."""
    return huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT", "").rstrip("/") or None)


def is_logged_in() -> bool:
    """Whether there is a token, of `hf auth login` or HF_TOKEN."""
    return bool(huggingface_hub.get_token())


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A repository in the words of who asks for it, with which its errors begin.

    where: how the user named it. how: how a revision is given. absent: what a name is that the hub does not know. deed: `read` or `write`.
    unreachable: what is told where there is no network, of `where` and `why`.
    """

    where: str
    revision: str = "main"
    how: str = "as --revision"
    absent: str = "is not on the hub"
    deed: str = "read"
    unreachable: str = "{where}: {why}."

    def ask(self, question: Callable[[], Answer]) -> Answer:
        """What a call of the hub's library answers. Raises ConfigError (UnreachableError) for what a user can mend."""
        try:
            return question()
        except Exception as error:
            if (reason := self.refusal(error)) is not None:
                raise ConfigError(f"{self.where} {reason}") from error
            if is_unreachable(error):
                raise self.out_of_reach(error) from error
            raise

    def refusal(self, error: BaseException) -> str | None:
        """Why the hub said no, as the rest of a sentence; None if the error is none of its answers, or one that may pass."""
        if isinstance(error, errors.GatedRepoError):
            return f"is gated: accept its licence on its page of the hub, then {LOG_IN}."
        if isinstance(error, errors.RepositoryNotFoundError):
            return self._not_found()
        if isinstance(error, errors.RevisionNotFoundError):
            return f"has no revision {self.revision!r}: give a branch, tag or commit of it {self.how}."
        if isinstance(error, errors.HFValidationError):
            return f"is no name of the hub: {first_line(error)}"
        status = status_of(error)
        if status == UNKNOWN_TOKEN:
            return "is refused: the hub does not know your token. Log in again with `hf auth login`, or mend HF_TOKEN."
        if status == FORBIDDEN and self.deed == "read":
            return "is private, and your token may not read it: log in with `hf auth login` as somebody who may."
        if status == FORBIDDEN:
            return "may not be written with your token: log in with `hf auth login` as somebody who may, with a token that may write."
        return None

    def out_of_reach(self, error: BaseException) -> UnreachableError:
        """The error to raise where the hub gave no answer."""
        return UnreachableError(self.unreachable.format(where=self.where, why=_why_unreachable(error)))

    def _not_found(self) -> str:
        if is_logged_in():
            return f"{self.absent}: is it misspelt? If it is private, your token may not {self.deed} it."
        return f"{self.absent} for everybody: it is misspelt, or private. If it is private, {LOG_IN}."


def status_of(error: BaseException) -> int | None:
    """HTTP status of an error of the hub's library, None if it has none."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    return status if isinstance(error, errors.HfHubHTTPError) and isinstance(status, int) else None


def is_unreachable(error: BaseException) -> bool:
    """Whether there was no network, or the hub did not answer as it should; a full disk or missing rights are something else."""
    if isinstance(error, errors.OfflineModeIsEnabled | errors.HfHubHTTPError | ConnectionError | TimeoutError):
        return True
    if isinstance(error, OSError):
        return error.errno is None
    return isinstance(error, HTTP_ERROR)


def _why_unreachable(error: BaseException) -> str:
    """What stands between this machine and the hub."""
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        return "HF_HUB_OFFLINE is set"
    status = status_of(error)
    if status is not None:
        return f"the hub answered {status}: {first_line(error)}"
    return f"the hub cannot be reached: {first_line(error)}"
