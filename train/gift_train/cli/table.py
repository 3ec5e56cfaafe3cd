"""gift-train table: what it is told. Imports nothing heavy until the command runs."""

from typing import Annotated

import typer

from gift_shared.errors import ConfigError
from gift_shared.options import takes_options
from gift_train.options import TableOptions


@takes_options
def table(
    name: Annotated[
        str,
        typer.Argument(
            help="1, 2, x-tail, few-shot, class-incremental; distillation, teacher, alignment, steps, images, captions or components; "
            "or a table of your own, as a .toml file.",
            show_default=False,
        ),
    ],
    options: TableOptions,
    run: Annotated[bool, typer.Option("--run", help="Make the runs that are not there, one after another.")] = False,
    commands: Annotated[bool, typer.Option("--commands", help="Print the runs that are not there as commands, and do nothing.")] = False,
) -> None:
    """A table of the paper or of a protocol: the runs it needs, which are there, and ours beside the published numbers."""
    if run and commands:
        raise ConfigError("Give either --run or --commands.")
    from gift_train.report.paper_tables.command import missing_commands, table_command

    if commands:
        typer.echo(missing_commands(name, options))
        return
    typer.echo(table_command(name, options, run=run, tell=lambda text: typer.echo(text + "\n", err=True)))
