"""gift-generate: plan | render | submit | verify | status | show | import. Imports nothing heavy until a command runs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from gift_generate.cli.submit import submit
from gift_shared.console import run_app

app = typer.Typer(
    name="gift-generate",
    help="Stage 1 of GIFT: captions in, WebDataset shards of synthetic images out.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain text: boxes cut flag names short, and markup swallows [default: ...]
    pretty_exceptions_enable=False,
)

Out = Annotated[Path, typer.Option("--out", help="Output folder of a render.", show_default=False)]
ManifestFolders = Annotated[list[Path] | None, typer.Option("--manifests", help="A folder of your own manifests; repeatable.")]
NOTHING_BEGUN = "no image was begun"  # as told to who stops it this early


def main() -> None:
    """Entry point of the command line."""
    run_app(app)


def _tell(message: str) -> None:
    typer.echo(message, err=True)


@app.command()
def plan(
    out: Annotated[Path, typer.Option("--out", help="Parquet file to write.", show_default=False)],
    order: Annotated[str | None, typer.Option(help="Order of tasks; its manifest names the pretraining source.  [default: mini]")] = None,
    kind: Annotated[str, typer.Option(help="per-task: n images for each task, as GIFT does. pool: n images per class name.")] = "per-task",
    images_per_task: Annotated[int | None, typer.Option(help="Images for each task (kind per-task).")] = None,
    images_per_class: Annotated[int | None, typer.Option(help="Images for each class name (kind pool).")] = None,
    dataset: Annotated[list[str] | None, typer.Option(help="Datasets of a pool, in place of an order's; repeatable.")] = None,
    seed: Annotated[int, typer.Option(help="Decides captions and image seeds.")] = 42,
    seeding: Annotated[str, typer.Option(help="Image seeds: hashed (from seed and key) or published (the authors' rule).")] = "hashed",
    draws_per_task: Annotated[
        int | None, typer.Option(help="Captions drawn per task before the first n are kept.  [default: the order's captions_drawn]")
    ] = None,
    pretraining_only: Annotated[
        bool, typer.Option("--pretraining-only", help="Captions of the pretraining source alone, for every task (ablation).")
    ] = False,
    caption_file: Annotated[
        list[str] | None, typer.Option(help="FILE[=WEIGHT]: .txt, .tsv, .jsonl or .parquet of captions to mix in; repeatable.")
    ] = None,
    class_name_weight: Annotated[float, typer.Option(help="Weight of class-name captions against caption files.")] = 1.0,
    guidance_scale: Annotated[float, typer.Option(help="Classifier-free guidance scale.")] = 7.5,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 50,
    images_per_shard: Annotated[int, typer.Option(help="Images a shard holds at most.")] = 1000,
    manifests: ManifestFolders = None,
    images_per_second: Annotated[float | None, typer.Option(help="Rate for the estimate of time.")] = None,
    measured: Annotated[Path | None, typer.Option(help="Output folder rendered earlier, to take rate and image size from.")] = None,
) -> None:
    """Decide every image before any model is loaded, and tell what it will cost."""
    from gift_generate.planning.captions import parse_weighted_file
    from gift_generate.planning.cost import Rates, cost_lines, measured_rates
    from gift_generate.planning.plan import PlanRequest, Seeding, make_plan
    from gift_shared.errors import ConfigError
    from gift_shared.manifests import Manifests
    from gift_shared.parquet_files import write_plan
    from gift_shared.schema import PlanKind

    _require_file_name("--out", out)
    request = PlanRequest(
        kind=PlanKind(_choice("kind", kind, list(PlanKind))),
        order=order if order is not None or dataset else "mini",
        datasets=tuple(dataset or ()),
        images_per_task=images_per_task,
        images_per_class=images_per_class,
        draws_per_task=draws_per_task,
        is_pretraining_only=pretraining_only,
        caption_files=tuple(parse_weighted_file(argument) for argument in caption_file or ()),
        class_name_weight=class_name_weight,
        seed=seed,
        seeding=Seeding(_choice("seeding", seeding, list(Seeding))),
        guidance_scale=guidance_scale,
        denoising_steps=steps,
        images_per_shard=images_per_shard,
    )
    rates = measured_rates(measured) if measured else Rates(None, None)
    if images_per_second is not None:
        if not 0 < images_per_second < float("inf"):
            raise ConfigError(f"--images-per-second must be above 0, found {images_per_second}.")
        rates = Rates(images_per_second, rates.bytes_per_image)
    rows, metadata = make_plan(request, Manifests(tuple(manifests or ())))
    write_plan(out, rows, metadata)
    typer.echo(f"plan    {out}")
    for line in cost_lines(rows.num_rows, rates):
        typer.echo(line)


def _require_file_name(flag: str, path: Path) -> None:
    from gift_shared.errors import ConfigError

    if path.is_dir():
        raise ConfigError(f"{flag} {path} is a folder; expected the name of the file to write.")


def _choice(kind: str, name: str, valid: list[Any]) -> str:
    from gift_shared.errors import ConfigError, unknown_name

    if name not in valid:
        raise ConfigError(f"--{kind}: " + unknown_name(kind, name, valid))
    return name


@app.command()
def render(
    out: Out,
    plan: Annotated[Path | None, typer.Option("--plan", help="Plan to render; left out, the folder's own is gone on with.")] = None,
    model: Annotated[
        str, typer.Option(help="Hub id or folder in diffusers format, mini, mini-drawings (control) or flat-color (dry run).")
    ] = "mini",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda (each process of a node takes its own), cuda:1, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto (float16 on a GPU), float32, float16 or bfloat16.")] = "auto",
    batch_size: Annotated[str, typer.Option(help="Images rendered at once; auto: as many as the device holds.")] = "16",
    threads: Annotated[int, typer.Option(help="CPU threads of this worker, where the model runs on the CPU; changes last bits.")] = 1,
    scheduler: Annotated[
        str | None,
        typer.Option(help="Another of diffusers that fits.  [default: the model's own; multistep DPM-Solver below 50 steps]"),
    ] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.  [default: the model's]")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.  [default: the model's]")] = None,
    generator_device: Annotated[str, typer.Option(help="Where noise is drawn: cpu, or device (as the authors did).")] = "cpu",
    compiled: Annotated[bool, typer.Option("--compile", help="U-Net and image decoder through torch.compile; changes last bits.")] = False,
    vae_slices: Annotated[bool, typer.Option("--vae-slices", help="Decode one image at a time: less memory; changes last bits.")] = False,
    guidance_until: Annotated[float, typer.Option(help="Share of the steps that are guided; below 1 an approximation.")] = 1.0,
    feature_interval: Annotated[int, typer.Option(help="Steps from one run of the whole U-Net to the next; above 1 an approximation.")] = 1,
    max_attempts: Annotated[int, typer.Option(help="Seeds tried for an image that comes out black or flagged.")] = 3,
    image_format: Annotated[str, typer.Option(help="jpg, png or webp.")] = "jpg",
    jpeg_quality: Annotated[int, typer.Option(help="Of jpg and webp.")] = 75,
    rank: Annotated[int | None, typer.Option(help="This worker, from 0.  [default: from torchrun, accelerate or SLURM]")] = None,
    world_size: Annotated[int | None, typer.Option(help="Number of workers.  [default: from torchrun, accelerate or SLURM]")] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Stay while other workers are at it, and take over the shards of those that die.")
    ] = False,
) -> None:
    """Render a plan into shards, shared with every other worker in the folder. Stopped at any moment, the same command goes on."""
    from gift_shared.preemption import PreemptionNotice

    with PreemptionNotice() as notice:  # before the imports, which take seconds: a signal that comes meanwhile is not lost
        from gift_generate.images.image_source import ImageEncoder
        from gift_generate.images.rendered import RenderedPictures
        from gift_generate.output.folder import check_place
        from gift_generate.pipeline import WorkerPolicy, run
        from gift_generate.rendering.batch_size import parse_batch_size
        from gift_generate.rendering.factory import open_renderer
        from gift_generate.rendering.renderer import ModelOptions
        from gift_generate.workers.rank import find_worker, is_first_of_its_node
        from gift_shared.progress import Progress

        worker = find_worker(rank, world_size)
        Progress.is_shown = is_first_of_its_node()
        check_place(out, plan)
        encoder = ImageEncoder(image_format, jpeg_quality)
        encoder.require_room(height, width)
        options = ModelOptions(
            model=model,
            device=device,
            dtype=dtype,
            batch_size=parse_batch_size(batch_size),
            cpu_threads=threads,
            scheduler=scheduler,
            height=height,
            width=width,
            generator_device=generator_device,
            is_compiled=compiled,
            decodes_one_by_one=vae_slices,
            guidance_until=guidance_until,
            feature_interval=feature_interval,
        )
        notice.obey(NOTHING_BEGUN)
        _tell(f"loading {model}")
        source = RenderedPictures(open_renderer(options), encoder, max_attempts)
        notice.obey(NOTHING_BEGUN)
        _report(out, run(out, plan, source, worker, _tell, WorkerPolicy(waits=wait, notice=notice)))


def _report(out: Path, summary: Any) -> None:
    from gift_generate.output.status import output_status, shortfall_lines

    nothing = "none was free" if summary.shards_left else "nothing left to do"
    counts = ", ".join(f"{count:,} {status}" for status, count in sorted(summary.statuses.items())) or nothing
    typer.echo(f"done    {summary.shards_done_here} shards here ({counts}); {summary.shards_left} left in {out}")
    if not summary.shards_left:
        for line in shortfall_lines(output_status(out).tasks):
            typer.echo(line)


app.command(context_settings={"allow_interspersed_args": False})(submit)


@app.command()
def verify(out: Out) -> None:
    """Check every byte claim of an output folder; a line per fault, exit code 1 if there is one."""
    from gift_generate.output.folder import open_output
    from gift_generate.output.verify import verify as find_faults
    from gift_shared.progress import Progress

    num_faults = 0
    with Progress("verify", len(open_output(out).shards), "shard", stays=False) as progress:
        for fault in find_faults(out, lambda _: progress.advance()):
            num_faults += 1
            progress.make_room()
            typer.echo(fault)
    typer.echo(f"{out}: {num_faults} fault{'s' * (num_faults > 1)}" if num_faults else f"{out}: every byte claim holds")
    if num_faults:
        raise typer.Exit(1)


@app.command()
def status(
    out: Out,
    json_: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Stay and keep it fresh until the folder is complete.")] = False,
) -> None:
    """Tell what is done, what remains, what every worker is at, how fast it goes, and when it will be done."""
    import json

    from gift_generate.output.status import output_status
    from gift_shared.errors import ConfigError

    if watch:
        if json_:
            raise ConfigError("--watch is for people and --json for programs: give one of the two.")
        from gift_generate.views.live_status import watch_status

        watch_status(out)
        return
    state = output_status(out)
    typer.echo(json.dumps(state.as_json(), indent=2) if json_ else "\n".join(state.lines()))


@app.command()
def show(
    out: Out,
    to: Annotated[Path | None, typer.Option("--to", help="PNG to write: a few pictures a task or class.")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Folder to write: pages with every picture, and an index to filter.")] = None,
    by: Annotated[str, typer.Option(help="A row of pictures per task, or per class.")] = "task",
    only: Annotated[str | None, typer.Option(help="Show one task, or one class.")] = None,
    pictures: Annotated[int, typer.Option(help="Pictures per task or class.")] = 8,
    groups: Annotated[int, typer.Option(help="Tasks or classes on the sheet, at most.")] = 40,
) -> None:
    """Draw a contact sheet of a few pictures (--to), or write pages with all of them (--html)."""
    from gift_shared.errors import ConfigError

    if (to is None) == (html is None):
        raise ConfigError("Give either --to FILE.png for a contact sheet or --html FOLDER for pages with every picture.")
    if html is not None:
        from gift_generate.views.gallery import write_gallery

        num_pictures, num_pages = write_gallery(out, html)
        typer.echo(f"{html / 'index.html'}: {num_pictures:,} pictures on {num_pages:,} pages")
        return
    from gift_generate.views.contact_sheet import SheetRequest, draw_sheet, write_sheet

    assert to is not None
    _require_file_name("--to", to)
    if to.suffix.lower() != ".png":
        raise ConfigError(f"--to {to} should be a name that ends in .png.")
    sheet, num_left_out = draw_sheet(out, SheetRequest(by=by, pictures_per_group=pictures, most_groups=groups, only=only))
    write_sheet(sheet, to)
    left_out = f"; {num_left_out} more had no room, --groups or --only show them" if num_left_out else ""
    typer.echo(f"{to}: {sheet.width} x {sheet.height} pixels{left_out}")


@app.command(name="import")
def import_(
    folder: Annotated[Path, typer.Argument(help="Folder with image_text.csv, or with one such folder per task.", show_default=False)],
    out: Out,
    order: Annotated[str | None, typer.Option(help="Order the images were made for: gives seeds and class names.")] = None,
    seed: Annotated[int, typer.Option(help="Base seed of the published rule.")] = 42,
    guidance_scale: Annotated[float, typer.Option(help="The images were made with.")] = 7.5,
    steps: Annotated[int, typer.Option(help="The images were made with.")] = 50,
    images_per_task: Annotated[int | None, typer.Option(help="Take the first n of each task.  [default: all]")] = None,
    images_per_shard: Annotated[int, typer.Option(help="Images a shard holds at most.")] = 1000,
    manifests: ManifestFolders = None,
) -> None:
    """Turn images made by the authors' code (image_text.csv and JPEGs) into shards."""
    import tempfile

    from gift_generate.images.imported import ImportRequest, plan_import
    from gift_generate.pipeline import run
    from gift_generate.workers.rank import Worker
    from gift_shared.manifests import Manifests
    from gift_shared.parquet_files import write_plan

    request = ImportRequest(
        folder=folder,
        order=order,
        seed=seed,
        guidance_scale=guidance_scale,
        denoising_steps=steps,
        images_per_task=images_per_task,
        images_per_shard=images_per_shard,
    )
    rows, metadata, source = plan_import(request, Manifests(tuple(manifests or ())))
    with tempfile.TemporaryDirectory() as temporary:
        plan_path = Path(temporary) / "plan.parquet"
        write_plan(plan_path, rows, metadata)
        _report(out, run(out, plan_path, source, Worker(), _tell))
