"""gift-generate render: one worker at an output folder, several of this machine, or a preview. Imports nothing heavy until it runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from gift_generate.cli.options import Out, PreviewOptions, WorkerOptions
from gift_generate.cli.summary import print_summary, tell
from gift_generate.images.encoding import ImageEncoder
from gift_generate.rendering.loras import Lora, check_sources
from gift_generate.rendering.model_options import ModelOptions
from gift_generate.workers.local import is_supervised, leave_with_supervisor, require_no_launcher, signals_to_pass_on
from gift_shared.errors import ConfigError
from gift_shared.options import takes_options
from gift_shared.preemption import SIGNALS, PreemptionNotice

NOTHING_BEGUN = "no image was begun"  # as told to who stops it this early


@takes_options
def render(
    *,
    out: Out,
    plan: Annotated[Path | None, typer.Option("--plan", help="Plan to render; left out, the folder's own is gone on with.")] = None,
    options: ModelOptions,
    max_attempts: Annotated[int, typer.Option(help="Seeds tried for an image that comes out black or flagged.")] = 3,
    encoder: ImageEncoder,
    place: WorkerOptions,
    trial: PreviewOptions,
    retry: Annotated[
        str | None,
        typer.Option(help="Make rows of finished shards with these statuses again, by the settings given here: failed,flagged,black."),
    ] = None,
) -> None:
    """Render a plan into shards, shared with every other worker in the folder. Stopped at any moment, the same command goes on."""
    # Before the imports, which take seconds: a signal that comes meanwhile is not lost.
    with PreemptionNotice(signals_to_pass_on() if place.processes > 1 else SIGNALS) as notice:
        from gift_generate.images.constants import batch_constants
        from gift_generate.images.rendered import RenderedImages
        from gift_generate.output.folder import check_place, planned_left
        from gift_generate.output.retry import parse_statuses
        from gift_generate.pipeline import WorkerPolicy, run
        from gift_generate.planning.plan_check import shard_slices
        from gift_generate.rendering.factory import open_renderer
        from gift_generate.workers.rank import find_worker, is_first_of_its_node
        from gift_shared.progress import Progress
        from gift_shared.schema import PLAN_FILE

        worker = find_worker(place.rank, place.world_size)
        statuses = parse_statuses(retry) if retry is not None else frozenset()
        if statuses and trial.preview is not None:
            raise ConfigError("--retry makes images of a folder again and --preview makes none: give one of the two.")
        planned = check_place(out, plan)
        encoder.require_room(options.height, options.width)
        if options.loras and not is_supervised():  # else told, or refused, by who supervises
            _tell_sources(options.loras, plan or out / PLAN_FILE)
        if place.processes > 1:
            from gift_generate.cli.local_workers import render_by_processes

            _require_several(options.device, trial)
            render_by_processes(out, len(shard_slices(planned)), place.processes, worker, notice, is_retry=bool(statuses))
            return
        if is_supervised():
            leave_with_supervisor()
        Progress.is_shown = is_first_of_its_node() and not is_supervised()
        notice.obey(NOTHING_BEGUN)
        tell(f"loading {options.model}")
        source = RenderedImages(open_renderer(options), encoder, max_attempts)
        notice.obey(NOTHING_BEGUN)
        if trial.preview is not None:
            from gift_generate.views.preview import render_preview

            for line in source.check(batch_constants(plan or out / PLAN_FILE)):
                tell(line)
            for line in render_preview(planned, planned_left(out, planned), source, trial.preview, trial.preview_to, notice):
                typer.echo(line)
            return
        summary = run(out, plan, source, worker, tell, WorkerPolicy(waits=place.waits, notice=notice), statuses)
        if not is_supervised():  # else there is one of all workers
            print_summary(out, summary)


def _tell_sources(loras: Sequence[Lora], plan_path: Path) -> None:
    """Whose captions are painted with LoRAs of their own. Raises ConfigError for captions that the plan does not have."""
    from gift_generate.images.constants import plan_sources

    for line in check_sources(loras, plan_sources(plan_path)):
        tell(line)


def _require_several(device: str, trial: PreviewOptions) -> None:
    """Raises ConfigError for what several workers of one machine cannot do."""
    require_no_launcher()
    if trial.preview is not None:
        raise ConfigError("--preview is the work of one process: leave out --processes.")
    if ":" in device:
        raise ConfigError(
            f"--device {device} is one for all --processes: give --device {device.partition(':')[0]}, so that each takes its own; "
            "CUDA_VISIBLE_DEVICES says which there are."
        )
