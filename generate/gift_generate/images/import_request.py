"""What an import is told: the options of the command and the object that the import reads. Imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer


@dataclass(frozen=True, kw_only=True)
class ImportRequest:
    """Where the images are and what is known of how they were made."""

    folder: Annotated[Path, typer.Argument(help="Folder with image_text.csv, or with one such folder per task.", show_default=False)]
    # None: seeds unknown.
    order: Annotated[str | None, typer.Option(help="Order the images were made for: gives seeds and class names.")] = None
    seed: Annotated[int, typer.Option(help="Base seed of the published rule.")] = 42
    guidance_scale: Annotated[float, typer.Option(help="The images were made with.")] = 7.5
    denoising_steps: Annotated[int, typer.Option("--steps", help="The images were made with.")] = 50
    images_per_task: Annotated[int | None, typer.Option(help="Take the first n of each task.  [default: all]")] = None
    images_per_shard: Annotated[int, typer.Option(help="Images a shard holds at most.")] = 1000
