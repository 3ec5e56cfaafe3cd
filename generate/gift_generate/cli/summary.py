"""What a command that fills an output folder tells of it: on the way, and at its end."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from gift_shared.console import some_of

if TYPE_CHECKING:
    from gift_generate.pipeline import RunSummary


def tell(message: str) -> None:
    """Say something on the way, where it is not taken for the command's result."""
    typer.echo(message, err=True)


def print_summary(out: Path, summary: "RunSummary") -> None:
    """What was done here, what is left and to whom."""
    if summary.holders:
        tell(f"{summary.shards_left} shards are left to workers at it: {some_of(summary.holders)}. With --wait this one would stay.")
    nothing = "none was free" if summary.shards_left else "nothing left to do"
    counts = ", ".join(f"{count:,} {status}" for status, count in sorted(summary.statuses.items())) or nothing
    print_done(out, summary.shards_done_here, counts, summary.shards_left)


def print_done(out: Path, shards_done: int, counts: str, shards_left: int) -> None:
    """Shards done here, `counts` of their images and what is left; of a folder that is complete also where usable images are missing."""
    from gift_generate.output.status import indexed_tasks, shortfall_lines
    from gift_shared.schema import INDEX_FILE

    typer.echo(f"done    {shards_done} shards here ({counts}); {shards_left} left in {out}")
    if not shards_left and (out / INDEX_FILE).is_file():  # else another worker is writing it, or tells what keeps it from being written
        for line in shortfall_lines(indexed_tasks(out)):
            typer.echo(line)
