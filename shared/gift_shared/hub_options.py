"""How a command is told where on the Hugging Face hub something goes: options that both programs have. Imports nothing heavy."""

import re
from dataclasses import dataclass
from typing import Annotated

import typer

from gift_shared.errors import ConfigError

HUB_NAME = re.compile(r"[^/\s]+/[^/\s]+")
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, kw_only=True)
class UploadOptions:
    """What is decided of an upload beside its name."""

    private: Annotated[bool, typer.Option("--private", help="Make the repository for yourself and those you let in.")] = False
    revision: Annotated[str | None, typer.Option(help="Branch to upload to, made if it is not there.  [default: main]")] = None
    replace: Annotated[bool, typer.Option("--replace", help="In place of what another push left there; its commits keep that.")] = False

    def __post_init__(self) -> None:
        if self.revision is not None and (not self.revision or COMMIT.fullmatch(self.revision)):
            raise ConfigError(f"--revision {self.revision!r} should be a branch: a commit never changes.")


def require_hub_name(name: str, example: str) -> None:
    """Raises ConfigError unless a text is owner/name."""
    if not HUB_NAME.fullmatch(name):
        raise ConfigError(f"{name!r} should be the repository's owner and name on the hub, e.g. {example}.")
