"""What a command that fills an output folder tells of it: on the way, and at its end."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from gift_generate.pipeline import RunSummary


def tell(message: str) -> None:
    """Say something on the way, where it is not taken for the command's result."""
    typer.echo(message, err=True)


def print_summary(out: Path, summary: "RunSummary") -> None:
    """What was done here and what is left; of a folder that is complete also where usable images are missing."""
    from gift_generate.output.status import output_status, shortfall_lines

    nothing = "none was free" if summary.shards_left else "nothing left to do"
    counts = ", ".join(f"{count:,} {status}" for status, count in sorted(summary.statuses.items())) or nothing
    typer.echo(f"done    {summary.shards_done_here} shards here ({counts}); {summary.shards_left} left in {out}")
    if not summary.shards_left:
        for line in shortfall_lines(output_status(out).tasks):
            typer.echo(line)
