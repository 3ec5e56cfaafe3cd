"""Options that several commands of gift-generate have."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from gift_shared.errors import ConfigError

Out = Annotated[Path, typer.Option("--out", help="Output folder of a render.", show_default=False)]
ManifestFolders = Annotated[list[Path] | None, typer.Option("--manifests", help="A folder of your own manifests; repeatable.")]


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """Which worker, or which workers of one machine, a command is."""

    processes: Annotated[
        int, typer.Option(min=1, help="Workers of this machine, one for each of its GPUs; one that dies is started again.")
    ] = 1
    rank: Annotated[
        int | None,
        typer.Option(help="This worker, from 0; with --processes this machine.  [default: from torchrun, accelerate or SLURM]"),
    ] = None
    world_size: Annotated[
        int | None,
        typer.Option(help="Number of workers; with --processes of machines.  [default: from torchrun, accelerate or SLURM]"),
    ] = None
    waits: Annotated[
        bool, typer.Option("--wait", help="Stay while other workers are at it, and take over the shards of those that die.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class PreviewOptions:
    """What is rendered before the long run, if anything. Raises ConfigError if it cannot be written there."""

    preview: Annotated[
        int | None,
        typer.Option(min=1, help="Before the long run: so many images a task on a sheet, the rate, the hours. --out stays as it is."),
    ] = None
    preview_to: Annotated[Path, typer.Option(help="PNG that --preview writes.")] = Path("preview.png")

    def __post_init__(self) -> None:
        if self.preview is not None:
            require_png_name("--preview-to", self.preview_to)


def require_png_name(flag: str, path: Path) -> None:
    """Raises ConfigError unless a picture may be written there."""
    require_file_name(flag, path)
    if path.suffix.lower() != ".png":
        raise ConfigError(f"{flag} {path} should be a name that ends in .png.")


def require_file_name(flag: str, path: Path) -> None:
    """Raises ConfigError if a folder stands where a file shall be written."""
    if path.is_dir():
        raise ConfigError(f"{flag} {path} is a folder; expected the name of the file to write.")
