"""gift-train submit: runs as jobs of SLURM, one each. Imports nothing heavy until the command runs."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from gift_shared.command_job import CommandJob
from gift_shared.errors import ConfigError, unknown_name
from gift_shared.options import takes_options
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
    """Run folder and words after `gift-train` of every run that a command asks for."""
    given = parse_words(context, words, ["run", "table"])
    if words[0] == "run":
        _check_run(given)
        return [(Path(given["out"]), list(words))]
    from gift_train.cli.table import asked
    from gift_train.report.paper_tables.command import missing_runs
    from gift_train.report.paper_tables.running import command_line

    if given["run"] or given["commands"]:
        raise ConfigError("submit makes the runs of a table: leave out --run and --commands.")
    return [(request.out, command_line(request)[1:]) for request in missing_runs(*asked(given))]


def _check_run(given: Mapping[str, Any]) -> None:
    """What would stop every start of the job, as far as it can be told without loading a model. Raises ConfigError, ManifestError."""
    from gift_shared.manifests import Manifests
    from gift_train.methods.registry import METHOD_NAMES
    from gift_train.recipes.recipe import load_recipe

    method, recipe = given["method"], given["recipe"]
    if (method is None) == (recipe is None):
        raise ConfigError("Give either --method NAME or --recipe NAME_OR_FILE.")
    if method is not None and method not in METHOD_NAMES:
        raise ConfigError(unknown_name("method", method, METHOD_NAMES))
    order = Manifests(tuple(map(Path, given["manifests"] or ()))).order(given["order"])
    load_recipe(method or recipe, order.recipes, given["overrides"] or ())
