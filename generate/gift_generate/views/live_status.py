"""gift-generate status --watch: the one view of all workers, kept fresh until the folder is complete."""

import time
from collections.abc import Iterator
from pathlib import Path

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from gift_generate.output.folder import has_begun
from gift_generate.output.status import OutputStatus, StatusReader

SECONDS_BETWEEN_LOOKS = 3.0
SECONDS_BETWEEN_PRINTS = 60.0  # in a file, where every look would stay


def watch_status(out: Path) -> None:
    """Show the folder until it has its index, or until interrupted; one that is not there or empty is waited for.

    Raises: PlanError if it is another folder.
    """
    states, console = _states(out), Console()
    if not console.is_terminal:
        _print_now_and_then(states, console)
        return
    with Live(console=console, auto_refresh=False) as live:
        for state in states:
            live.update(Text(_text(state)), refresh=True)


def _states(out: Path) -> Iterator[OutputStatus]:
    """The state at every look; the last has an index."""
    if not has_begun(out):
        typer.echo(f"Nothing has begun in {out} yet: waiting for a worker that has loaded its model.", err=True)
    while not has_begun(out):
        time.sleep(SECONDS_BETWEEN_LOOKS)
    reader = StatusReader(out)
    state = reader.read()
    yield state
    while not state.has_index:
        time.sleep(SECONDS_BETWEEN_LOOKS)
        state = reader.read()
        yield state


def _print_now_and_then(states: Iterator[OutputStatus], console: Console) -> None:
    printed = -SECONDS_BETWEEN_PRINTS
    for state in states:
        if state.has_index or time.monotonic() - printed >= SECONDS_BETWEEN_PRINTS:
            printed = time.monotonic()
            console.print(Text(_text(state) + "\n"), soft_wrap=True)


def _text(state: OutputStatus) -> str:
    return "\n".join(state.lines())
