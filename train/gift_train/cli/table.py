"""gift-train table. Imports nothing heavy until the command runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gift_shared.errors import ConfigError
from gift_train.options import Compiles, DataRoot, Device, EvaluationCacheFolder, ImageCacheGb, ManifestFolders, Pretrained, Workers

if TYPE_CHECKING:
    from gift_train.report.paper_tables.command import TableRequest
    from gift_train.report.paper_tables.running import Machine

Shards = Annotated[
    list[str] | None,
    typer.Option(help="Output folder of gift-generate render; repeatable as LABEL=FOLDER where rows differ by their images."),
]
ReferenceImages = Annotated[
    list[str] | None,
    typer.Option(help="Folder or tars as for run; repeatable as METHOD=FOLDER where moe_adapter and zscl look at different images."),
]
ReferenceCaptions = Annotated[Path | None, typer.Option(help="Caption file as for run (zscl).")]


def table(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            help="1, 2, distillation, teacher, alignment, steps, images, captions or components; or a table of your own, as a .toml file.",
            show_default=False,
        ),
    ],
    world: Annotated[str, typer.Option(help="mtil, where the paper's numbers are from, or mini, the embedded world.")] = "mtil",
    order: Annotated[
        str | None, typer.Option(help="Another order of tasks than the table's, by name or as a .toml file; instead of --world.")
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder of run folders; new ones are RUNS/<order>/<recipe>-seed<seed>.")] = Path("runs"),
    run: Annotated[bool, typer.Option("--run", help="Make the runs that are not there, one after another.")] = False,
    commands: Annotated[bool, typer.Option("--commands", help="Print the runs that are not there as commands, and do nothing.")] = False,
    seeds: Annotated[str, typer.Option(help="Seeds of every row, with commas between them.")] = "42",
    only: Annotated[list[str] | None, typer.Option(help="Run only this recipe of the table; repeatable.")] = None,
    shards: Shards = None,
    reference_images: ReferenceImages = None,
    reference_captions: ReferenceCaptions = None,
    model: Annotated[
        str | None, typer.Option(help="As for run.  [default: ViT-B-16 with openai on mtil, mini on mini]", show_default=False)
    ] = None,
    pretrained: Pretrained = None,
    data_root: DataRoot = Path("data"),
    manifests: ManifestFolders = None,
    device: Device = "auto",
    num_workers: Workers = 0,
    image_cache_gb: ImageCacheGb = 0.2,
    evaluation_cache: EvaluationCacheFolder = None,
    compiles: Compiles = False,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="key=value over every recipe, for trials; repeatable.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the table as .txt, .md, .tex, .csv.  [default: RUNS/<order>/tables]")
    ] = None,
) -> None:
    """A table of the paper: the runs it needs, which are there, and ours beside the published numbers."""
    if run and commands:
        raise ConfigError("Give either --run or --commands.")
    from gift_train.report.paper_tables.command import missing_commands, table_command

    request, machine = asked(context.params)
    if commands:
        typer.echo(missing_commands(request, machine))
        return
    typer.echo(table_command(request, machine, run=run, tell=lambda text: typer.echo(text + "\n", err=True)))


def asked(given: Mapping[str, Any]) -> "tuple[TableRequest, Machine]":
    """What the parameters of `table` ask for, as typer has parsed them."""
    from gift_train.report.paper_tables.command import TableRequest
    from gift_train.report.paper_tables.running import Machine

    machine = Machine(
        data_root=Path(given["data_root"]),
        manifests=_paths(given["manifests"]),
        device=given["device"],
        num_workers=given["num_workers"],
        cache_bytes=round(given["image_cache_gb"] * 1e9),
        evaluation_cache=_path(given["evaluation_cache"]),
        compiles=given["compiles"],
    )
    request = TableRequest(
        name=given["name"],
        world=given["world"],
        order=given["order"],
        runs=Path(given["runs"]),
        out=_path(given["out"]),
        seeds=given["seeds"],
        shards=given["shards"] or (),
        reference_images=given["reference_images"] or (),
        reference_captions=_path(given["reference_captions"]),
        model=given["model"],
        pretrained=given["pretrained"],
        overrides=given["overrides"] or (),
        only=given["only"] or (),
    )
    return request, machine


def _path(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given)


def _paths(given: Sequence[str | Path] | None) -> tuple[Path, ...]:
    return tuple(map(Path, given or ()))
