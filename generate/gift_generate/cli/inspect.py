"""gift-generate verify, status and show: what an output folder holds. None of them changes it; nothing heavy until one runs."""

import json
from pathlib import Path
from typing import Annotated

import typer

from gift_generate.cli.options import Out, require_png_name
from gift_shared.errors import ConfigError


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


def status(
    out: Out,
    json_: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Stay and keep it fresh until the folder is complete.")] = False,
) -> None:
    """Tell what is done, what remains, what every worker is at, how fast it goes, and when it will be done."""
    from gift_generate.output.status import output_status

    if watch:
        if json_:
            raise ConfigError("--watch is for people and --json for programs: give one of the two.")
        from gift_generate.views.live_status import watch_status

        watch_status(out)
        return
    state = output_status(out)
    typer.echo(json.dumps(state.as_json(), indent=2) if json_ else "\n".join(state.lines()))


def show(
    out: Out,
    to: Annotated[Path | None, typer.Option("--to", help="PNG to write: a few pictures a task or class.")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Folder to write: pages with every picture, and an index to filter.")] = None,
    by: Annotated[str, typer.Option(help="A row of pictures per task, or per class.")] = "task",
    only: Annotated[str | None, typer.Option(help="Show one task, or one class.")] = None,
    pictures: Annotated[int, typer.Option(help="Pictures per task or class.")] = 8,
    groups: Annotated[int, typer.Option(help="Tasks or classes on the sheet, at most.")] = 40,
    sort_by: Annotated[
        str, typer.Option(help="plan, or from best to worst by scores of gift-generate score: similarity, rank. Of a contact sheet.")
    ] = "plan",
    scores: Annotated[str | None, typer.Option(help="Which scores, where the folder has several.")] = None,
) -> None:
    """Draw a contact sheet of a few pictures (--to), or write pages with all of them (--html)."""
    if (to is None) == (html is None):
        raise ConfigError("Give either --to FILE.png for a contact sheet or --html FOLDER for pages with every picture.")
    if html is not None:
        if sort_by != "plan" or scores is not None:
            raise ConfigError("--sort-by and --scores are of a contact sheet: give --to and not --html.")
        from gift_generate.views.gallery import write_gallery

        num_pictures, num_pages = write_gallery(out, html)
        typer.echo(f"{html / 'index.html'}: {num_pictures:,} pictures on {num_pages:,} pages")
        return
    from gift_generate.views.contact_sheet import SheetRequest, draw_sheet, write_sheet

    assert to is not None
    require_png_name("--to", to)
    request = SheetRequest(by=by, pictures_per_group=pictures, most_groups=groups, only=only, sort_by=sort_by, scores=scores)
    sheet, num_left_out = draw_sheet(out, request)
    write_sheet(sheet, to)
    left_out = f"; {num_left_out} more had no room, --groups or --only show them" if num_left_out else ""
    typer.echo(f"{to}: {sheet.width} x {sheet.height} pixels{left_out}")
