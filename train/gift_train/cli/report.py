"""gift-train report and watch: what run folders say. Imports nothing heavy until a command runs."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders of run folders.", show_default=False)],
    out: Annotated[Path | None, typer.Option("--out", help="Folder for tables and pictures.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: every run's summary and the rows of the table.")] = False,
) -> None:
    """The paper's table for one or many runs, with differences to the l2 baseline; pictures with --out."""
    from gift_train.report.command import report_command

    typer.echo(report_command(runs, out, as_json=as_json))


def watch(
    run: Annotated[Path, typer.Argument(help="Run folder, running or finished.", show_default=False)],
    once: Annotated[bool, typer.Option("--once", help="Print one frame and leave.")] = False,
    every: Annotated[float, typer.Option(help="Seconds between two looks at the folder.")] = 2.0,
) -> None:
    """Show task, step, rate, time left, loss terms and accuracy so far while a run goes on."""
    from gift_train.report.watch import watch_command

    watch_command(run, once=once, every=every)
