"""gift-generate render: one worker at an output folder. Imports nothing heavy until the command runs."""

from pathlib import Path
from typing import Annotated

import typer

from gift_generate.cli.options import Out
from gift_generate.cli.summary import print_summary, tell
from gift_generate.images.encoding import ImageEncoder
from gift_generate.rendering.model_options import ModelOptions
from gift_shared.options import takes_options
from gift_shared.preemption import PreemptionNotice

NOTHING_BEGUN = "no image was begun"  # as told to who stops it this early


@takes_options
def render(
    *,
    out: Out,
    plan: Annotated[Path | None, typer.Option("--plan", help="Plan to render; left out, the folder's own is gone on with.")] = None,
    options: ModelOptions,
    max_attempts: Annotated[int, typer.Option(help="Seeds tried for an image that comes out black or flagged.")] = 3,
    encoder: ImageEncoder,
    rank: Annotated[int | None, typer.Option(help="This worker, from 0.  [default: from torchrun, accelerate or SLURM]")] = None,
    world_size: Annotated[int | None, typer.Option(help="Number of workers.  [default: from torchrun, accelerate or SLURM]")] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Stay while other workers are at it, and take over the shards of those that die.")
    ] = False,
    retry: Annotated[
        str | None,
        typer.Option(help="Make rows of finished shards with these statuses again, by the settings given here: failed,flagged,black."),
    ] = None,
) -> None:
    """Render a plan into shards, shared with every other worker in the folder. Stopped at any moment, the same command goes on."""
    with PreemptionNotice() as notice:  # before the imports, which take seconds: a signal that comes meanwhile is not lost
        from gift_generate.images.rendered import RenderedImages
        from gift_generate.output.folder import check_place
        from gift_generate.output.retry import parse_statuses
        from gift_generate.pipeline import WorkerPolicy, run
        from gift_generate.rendering.factory import open_renderer
        from gift_generate.workers.rank import find_worker, is_first_of_its_node
        from gift_shared.progress import Progress

        worker = find_worker(rank, world_size)
        statuses = parse_statuses(retry) if retry is not None else frozenset()
        Progress.is_shown = is_first_of_its_node()
        check_place(out, plan)
        encoder.require_room(options.height, options.width)
        notice.obey(NOTHING_BEGUN)
        tell(f"loading {options.model}")
        source = RenderedImages(open_renderer(options), encoder, max_attempts)
        notice.obey(NOTHING_BEGUN)
        print_summary(out, run(out, plan, source, worker, tell, WorkerPolicy(waits=wait, notice=notice), statuses))
