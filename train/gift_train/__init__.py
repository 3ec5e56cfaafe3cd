"""Stage 2: synthetic shards and tasks in, accuracy matrix out. Reads what stage 1 wrote; never imports it.

In a notebook: `gift_train.open_run("runs/gift")`, see docs/notebook.md. Importing this module imports nothing heavy.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gift_train.notebook.run import Run

__all__ = ["open_run"]


def open_run(folder: "str | Path") -> "Run":
    """A run by its folder, finished or under way: its numbers, what it replayed, and its model after any task.

    Raises: ConfigError for what is no run folder, DataError for one that is damaged, in one line each.
    """
    from gift_train.notebook.run import Run

    return Run(folder)
