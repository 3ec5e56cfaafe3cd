"""gift-train submit: runs as jobs of SLURM, one each. Imports nothing heavy until the command runs."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from gift_shared.command_job import CommandJob
from gift_shared.errors import ConfigError
from gift_shared.options import from_parameters, takes_options
from gift_shared.submission import (
    Resources,
    each_of,
    filled,
    parse_words,
    require_executor,
    submit_jobs,
    submitted_lines,
    wait_for,
)
from gift_train.options import RunOptions, TableOptions


@takes_options
def submit(
    context: typer.Context,
    words: Annotated[
        list[str], typer.Argument(help="run or table and its options as for gift-train; of a table the missing runs.", metavar="COMMAND")
    ],
    resources: Resources,
    each: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE,VALUE...: a run for every value, put in place of {NAME} in the command; repeatable."),
    ] = None,
) -> None:
    """Make runs as jobs of SLURM, each requeued where it must leave: submit -- run --method gift ..., or submit -- table 1 ..."""
    commands: dict[Path, list[str]] = {}
    for values in each_of(each or ()):
        for out, command in _runs(context, filled(words, values)):
            if out in commands:
                raise ConfigError(f"Two runs would write to {out}. Tell them apart, e.g. --out '{out}-{{seed}}' with --each seed=1,2.")
            commands[out] = command
    require_executor(resources)
    if not commands:
        typer.echo("Every run of the table is there: nothing is submitted.")
        return
    python = (sys.executable, "-m", "gift_train.cli")
    jobs = [CommandJob((*python, *command), str(Path.cwd()), restarts=resources.restarts) for command in commands.values()]
    submitted = submit_jobs("gift-train", jobs, resources)
    follow = [f"gift-train watch {next(iter(commands))}"] + ([shlex.join(["gift-train", *words])] if words[0] == "table" else [])
    for line in submitted_lines(submitted, resources, follow):
        typer.echo(line)
    if resources.wait and wait_for(submitted, resources, typer.echo):
        raise typer.Exit(1)


def _runs(context: typer.Context, words: Sequence[str]) -> list[tuple[Path, list[str]]]:
    """Run folder and words after `gift-train` of every run that a command asks for, checked as far as it goes without a model."""
    given = parse_words(context, words, ["run", "table"])
    if words[0] == "run":
        from gift_train.training.plan import plan_run

        options = from_parameters(RunOptions, given)
        plan_run(options)
        return [(options.out, list(words))]
    from gift_train.report.paper_tables.command import missing_runs

    if given["run"] or given["commands"]:
        raise ConfigError("submit makes the runs of a table: leave out --run and --commands.")
    return [(run.out, run.command_line()[1:]) for run in missing_runs(given["name"], from_parameters(TableOptions, given))]
