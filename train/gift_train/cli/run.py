"""gift-train run. Imports nothing heavy until the command runs."""

from typing import Any

import typer

from gift_shared.options import takes_options
from gift_train.options import RunOptions


@takes_options
def run(options: RunOptions) -> None:
    """Learn the tasks of an order one after the other, and evaluate on all of them after each."""
    from gift_shared.preemption import PreemptionNotice

    with PreemptionNotice() as notice:  # before the imports, which take seconds: a signal that comes meanwhile is not lost
        from gift_train.training.run import train

        summary = train(options, notice)
    from gift_train.distributed import is_main_process

    if is_main_process():
        _tell(options, summary)


def _tell(options: RunOptions, summary: dict[str, Any] | None) -> None:
    if summary is None:
        tasks = f"{options.stop_after} task{'s' * (options.stop_after != 1)}"
        typer.echo(f"Stopped after {tasks}; the same command without --stop-after goes on.", err=True)
        return
    numbers = {key: summary[key] for key in ("transfer", "avg", "last", "forgetting")}
    shown = "  ".join(f"{key.capitalize()} {value:.1f}" for key, value in numbers.items() if value is not None)
    typer.echo(f"{summary['title']}, {summary['order']}, seed {summary['seed']}:  {shown}")
