"""gift-train data: check | fetch | pack. Imports nothing heavy until a command runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gift_shared.options import LocalCommand
from gift_train.options import DataRoot, Datasets, ManifestFolders

if TYPE_CHECKING:
    from gift_shared.manifests import TaskManifest

data_app = typer.Typer(
    name="data", help="The datasets of an order: what is there, get what can be got, pack into shards.", no_args_is_help=True
)

Order = Annotated[str, typer.Option(help="Order whose datasets are meant if none is named.")]


@data_app.command(cls=LocalCommand)
def check(
    datasets: Datasets = None,
    order: Order = "mini",
    data_root: DataRoot = Path("data"),
    manifests: ManifestFolders = None,
    every_image: Annotated[bool, typer.Option("--every-image", help="Decode all images too: minutes for the large datasets.")] = False,
) -> None:
    """Tell for each dataset whether it is there, where it was looked for, its counts against the manifest, how to get it."""
    from gift_train.data.check import check_dataset, state_lines

    states = [check_dataset(manifest, data_root, every_image=every_image) for manifest in _manifests(datasets, order, manifests)]
    for line in state_lines(states):
        typer.echo(line)
    if any(state.problem for state in states):
        raise typer.Exit(1)


@data_app.command(cls=LocalCommand)
def fetch(
    datasets: Datasets = None,
    order: Order = "mtil-1",
    data_root: DataRoot = Path("data"),
    manifests: ManifestFolders = None,
) -> None:
    """Download what torchvision still can, and check it. What has to be fetched by hand is told at the end."""
    from gift_shared.errors import DataError
    from gift_train.data.check import fetch_dataset

    problems = []
    for manifest in _manifests(datasets, order, manifests):
        try:
            fetch_dataset(manifest, data_root)
            typer.echo(f"{manifest.name}: complete under {data_root}")
        except DataError as error:
            problems.append(str(error))
            typer.echo(f"{manifest.name}: not there", err=True)
    if problems:
        raise DataError(" ".join(problems))


@data_app.command(cls=LocalCommand)
def pack(
    out: Annotated[Path, typer.Option("--out", help="Folder for the tars and the manifests that read them.", show_default=False)],
    datasets: Datasets = None,
    order: Order = "mtil-1",
    data_root: DataRoot = Path("data"),
    manifests: ManifestFolders = None,
    shorter_side: Annotated[int | None, typer.Option(help="Reduce images whose shorter side is longer, in pixels.")] = None,
    images_per_shard: Annotated[int, typer.Option(help="Images a tar holds at most.")] = 1000,
    jpeg_quality: Annotated[int, typer.Option(help="Of reduced images; others keep their bytes.")] = 95,
) -> None:
    """Turn datasets into WebDataset tars. Train from them with --data-root OUT --manifests OUT/manifests."""
    from gift_train.data.pack import PackSettings, pack_dataset

    settings = PackSettings(shorter_side=shorter_side, images_per_shard=images_per_shard, jpeg_quality=jpeg_quality)
    for manifest in _manifests(datasets, order, manifests):
        typer.echo(f"{manifest.name}: {pack_dataset(manifest, data_root, out, settings)}")


def _manifests(datasets: list[str] | None, order: str, folders: list[Path] | None) -> "list[TaskManifest]":
    from gift_shared.manifests import Manifests

    manifests = Manifests(tuple(folders or ()))
    return [manifests.task(name) for name in datasets] if datasets else list(manifests.datasets_of(manifests.order(order)).values())
