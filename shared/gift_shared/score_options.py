"""What scoring is told: options of `gift-generate score`, and of `gift-train score`, which does the work. Imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from gift_shared.errors import ConfigError
from gift_shared.keys import KEY_PATTERN


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """Which folder is scored, by which CLIP, on what. Of these `clip`, its weights and `precision` decide the scores."""

    out: Annotated[Path, typer.Option("--out", help="Output folder of a finished render.", show_default=False)]
    clip: Annotated[
        str,
        typer.Option(
            "--clip",
            help="mini, an open_clip name (ViT-B-16), a folder in open_clip's or transformers' form, hf-hub:owner/name, or weights of a "
            "run, RUN/checkpoints/task-*.safetensors.",
            show_default=False,
        ),
    ]
    pretrained: Annotated[str | None, typer.Option(help="With an open_clip name: a tag (openai), or a weights file.")] = None
    quick_gelu: Annotated[
        Literal["yes", "no"] | None,
        typer.Option(help="Whether the weights were trained with QuickGELU, where neither names nor files say so.", show_default=False),
    ] = None
    name: Annotated[
        str | None, typer.Option(help="What the scores are called: OUT/scores/NAME.parquet.  [default: from --clip]", show_default=False)
    ] = None
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...; auto takes an accelerator if there is one.")] = "auto"
    precision: Annotated[
        str | None, typer.Option(help="fp32, bf16 or tf32.  [default: the run's of a checkpoint, else fp32]", show_default=False)
    ] = None
    batch_size: Annotated[int, typer.Option(min=1, help="Images of a forward pass; changes last bits alone.")] = 256
    num_workers: Annotated[
        int | None,
        typer.Option(
            min=0, help="Processes that load images.  [default: on a GPU one for each core, 8 at most; 0 on the CPU]", show_default=False
        ),
    ] = None
    rank: Annotated[
        int | None, typer.Option(help="This worker of several, from 0.  [default: from torchrun, accelerate or srun]", show_default=False)
    ] = None
    world_size: Annotated[int | None, typer.Option(help="Number of workers.  [default: likewise]", show_default=False)] = None

    def __post_init__(self) -> None:
        if self.name is not None and not KEY_PATTERN.fullmatch(self.name):
            raise ConfigError(f"--name {self.name!r} must match {KEY_PATTERN.pattern}.")
        if (self.rank is None) != (self.world_size is None):
            raise ConfigError("--rank and --world-size belong together: give both or none.")
