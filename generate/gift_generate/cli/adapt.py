"""gift-generate adapt: a LoRA of the generator for each task. Imports nothing heavy until the command runs."""

from pathlib import Path
from typing import Annotated

import typer

from gift_generate.adaptation.options import AdaptOptions
from gift_generate.cli.options import ManifestFolders
from gift_generate.cli.summary import tell
from gift_shared.errors import ConfigError
from gift_shared.options import takes_options
from gift_shared.preemption import PreemptionNotice


@takes_options
def adapt(
    *,
    out: Annotated[Path, typer.Option("--out", help="Folder of LoRAs, one folder a task.", show_default=False)],
    options: AdaptOptions,
    manifests: ManifestFolders = None,
) -> None:
    """Train a LoRA of the generator on each task's training images, for render --lora. Stopped at any moment, the same command goes on."""
    with PreemptionNotice() as notice:
        try:
            from gift_generate.adaptation.run import adapt as run
        except ModuleNotFoundError as error:
            raise ConfigError(f"Training a LoRA needs {error.name}: pip install 'gift-cl[generate]'.") from error
        from gift_generate.workers.rank import find_worker, is_first_of_its_node
        from gift_shared.manifests import Manifests
        from gift_shared.progress import Progress

        Progress.is_shown = is_first_of_its_node()
        folders = run(out, options, Manifests(tuple(manifests or ())), find_worker(None, None), tell, notice)
        typer.echo(f"done    {len(folders)} LoRA{'' if len(folders) == 1 else 's'} in {out}; render takes them with --lora {out}")
