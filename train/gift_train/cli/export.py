"""gift-train export: a run's weights as others load them. Imports nothing heavy until the command runs."""

from pathlib import Path
from typing import Annotated

import typer

from gift_shared.errors import ConfigError
from gift_shared.hub_options import UploadOptions, require_hub_name
from gift_shared.options import takes_options


@takes_options
def export(
    run: Annotated[Path, typer.Argument(help="Run folder, finished or not.", show_default=False)],
    to: Annotated[Path, typer.Option("--to", help="Folder to write: new, empty, or an earlier export.", show_default=False)],
    options: UploadOptions,
    task: Annotated[
        str | None, typer.Option(help="Task after which, by name or number from 1.  [default: the last finished]", show_default=False)
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The model the run began with, if it lies elsewhere now: its tokenizer is taken from there.")
    ] = None,
    push_to_hub: Annotated[
        str | None, typer.Option(help="Upload the folder to the Hugging Face hub as owner/name; made if it is not there.")
    ] = None,
) -> None:
    """Write a run's weights as a folder that open_clip and transformers load, with a model card; to the Hugging Face hub if asked."""
    if push_to_hub is None and options != UploadOptions():
        raise ConfigError("--private, --revision and --replace are of --push-to-hub: give the repository's owner/name with it.")
    if push_to_hub is not None:
        require_hub_name(push_to_hub, "you/clip-after-aircraft")
        from gift_shared.hub_upload import require_token

        require_token(push_to_hub)
    from gift_train.export.command import ExportRequest
    from gift_train.export.command import export as export_run
    from gift_train.training.faults import machine_faults

    with machine_faults():
        export_run(ExportRequest(run=run, to=to, task=task, model=model, hub_name=push_to_hub), typer.echo)
    if push_to_hub is not None:
        _push(to, push_to_hub, options)


def _push(folder: Path, name: str, options: UploadOptions) -> None:
    from gift_shared.hub_upload import Destination, Upload, upload
    from gift_train.clip.forms import WEIGHTS_FILE
    from gift_train.export.command import DECIDED_BY_THEM, MODEL_FILES

    what = Upload(folder=folder, ours=MODEL_FILES, last=DECIDED_BY_THEM, deciding=(WEIGHTS_FILE,), what="models of gift-train")
    there = upload(what, Destination(name=name, kind="model", options=options), lambda message: typer.echo(message, err=True))
    typer.echo(f"{folder} is at {there.url} (commit {there.commit[:12]})")
