"""Options that several commands of gift-generate have."""

from pathlib import Path
from typing import Annotated

import typer

from gift_shared.errors import ConfigError

Out = Annotated[Path, typer.Option("--out", help="Output folder of a render.", show_default=False)]
ManifestFolders = Annotated[list[Path] | None, typer.Option("--manifests", help="A folder of your own manifests; repeatable.")]


def require_file_name(flag: str, path: Path) -> None:
    """Raises ConfigError if a folder stands where a file shall be written."""
    if path.is_dir():
        raise ConfigError(f"{flag} {path} is a folder; expected the name of the file to write.")
