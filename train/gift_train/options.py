"""Options that several commands share, with one wording each."""

from pathlib import Path
from typing import Annotated

import typer

Order = Annotated[str, typer.Option(help="Order of tasks, by name or as a .toml file.")]
Model = Annotated[str, typer.Option(help="mini, an open_clip name (ViT-B-16), or a folder with open_clip_config.json and weights.")]
Pretrained = Annotated[str | None, typer.Option(help="With an open_clip name: a tag (openai), a weights file, or random.")]
DataRoot = Annotated[Path, typer.Option(help="Folder that holds the datasets.")]
ManifestFolders = Annotated[list[Path] | None, typer.Option("--manifests", help="A folder of your own manifests; repeatable.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...; auto takes an accelerator if there is one.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that load images; they change no number.")]
Compiles = Annotated[bool, typer.Option("--compile", help="Compile the towers' blocks: faster, other last bits.")]
ImageCacheGb = Annotated[
    float, typer.Option(min=0, max=1e15, help="Memory for decoded images: of each dataset's training, its test and the replayed images.")
]
EvaluationCacheFolder = Annotated[
    Path | None, typer.Option(help="Keep test images there as the model sees them; evaluations and runs share the folder.")
]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="key=value over the recipe, for trials; repeatable.")]
