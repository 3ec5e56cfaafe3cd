"""gift-generate status --watch: the one view of all workers, kept fresh in the terminal until the folder is complete."""

import time
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from gift_generate.status import OutputStatus, StatusReader

SECONDS_BETWEEN_LOOKS = 3.0


def watch_status(out: Path) -> None:
    """Show the folder until it has its index, or until interrupted. Raises PlanError if it is no output folder."""
    reader = StatusReader(out)
    state = reader.read()
    with Live(_frame(state), console=Console(), auto_refresh=False) as live:
        while not state.has_index:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            state = reader.read()
            live.update(_frame(state), refresh=True)


def _frame(state: OutputStatus) -> Text:
    return Text("\n".join(state.lines()), no_wrap=True, overflow="ellipsis")
