"""gift-generate push: a finished output folder to the Hugging Face hub. Imports nothing heavy until the command runs."""

from typing import Annotated

import typer

from gift_generate.cli.options import Out
from gift_generate.cli.summary import tell
from gift_shared.hub_options import UploadOptions, require_hub_name
from gift_shared.options import takes_options


@takes_options
def push(
    name: Annotated[str, typer.Argument(help="Dataset on the Hugging Face hub, owner/name; made if it is not there.", show_default=False)],
    out: Out,
    options: UploadOptions,
) -> None:
    """Upload a finished, verified output folder to the Hugging Face hub; given again, it goes on where it broke off."""
    require_hub_name(name, "you/mtil-shards")
    from gift_generate.output.folder import open_output
    from gift_generate.output.push import push as push_folder
    from gift_generate.output.push import require_whole
    from gift_shared.hub_upload import Destination, require_token
    from gift_shared.progress import Progress

    require_token(name)
    with Progress("verify", len(open_output(out).shards), "shard", stays=False) as progress:
        require_whole(out, lambda _: progress.advance())
    there = push_folder(out, Destination(name=name, kind="dataset", options=options), tell)
    typer.echo(f"{out} is at {there.url}")
    typer.echo(f"gift-train run --shards hf://datasets/{name}@{there.commit} reads what it is now")
