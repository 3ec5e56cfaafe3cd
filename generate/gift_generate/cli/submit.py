"""gift-generate submit: workers of one render as jobs of SLURM. Imports nothing heavy until the command runs."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from gift_shared.command_job import CommandJob
from gift_shared.errors import ConfigError
from gift_shared.options import takes_options
from gift_shared.submission import Resources, parse_words, require_executor, submit_jobs, submitted_lines, wait_for


@takes_options
def submit(
    context: typer.Context,
    words: Annotated[list[str], typer.Argument(help="render and its options, as for gift-generate.", metavar="COMMAND")],
    *,
    jobs: Annotated[int, typer.Option(min=1, help="Jobs of the array; with --processes and --nodes, each is several workers.")] = 1,
    resources: Resources,
) -> None:
    """Render a plan with the jobs of a SLURM array, each requeued where it must leave: submit --jobs 16 -- render --plan ... --out ..."""
    given = parse_words(context, words, ["render"])
    if given["rank"] is not None or given["world_size"] is not None:
        raise ConfigError("render is given --rank and --world-size by submit: leave them out.")
    require_executor(resources)
    out = Path(given["out"])
    num_workers = jobs * resources.nodes * resources.processes * given["processes"]
    if given["preview"] is not None and num_workers > 1:
        raise ConfigError("render --preview is the work of one process: give --jobs 1 alone.")
    num_shards = _num_shards(out, None if given["plan"] is None else Path(given["plan"]))
    if num_workers > num_shards:
        raise ConfigError(
            f"The plan has {num_shards} shards, so {num_workers} workers are more than can have one each: give fewer --jobs, "
            f"or plan with --workers {num_workers}, which makes smaller shards."
        )
    command = (sys.executable, "-m", "gift_generate.cli", *words)
    parts = [CommandJob(command, str(Path.cwd()), job, jobs, resources.restarts) for job in range(jobs)]
    submitted = submit_jobs("gift-render", parts, resources)
    for line in submitted_lines(submitted, resources, [f"gift-generate status --out {out} --watch"]):
        typer.echo(line)
    if resources.wait and wait_for(submitted, resources, typer.echo):
        raise typer.Exit(1)


def _num_shards(out: Path, plan: Path | None) -> int:
    """Shards of the plan that the jobs would work on. Raises what render would: for a bad plan, or an output folder of another one."""
    from gift_generate.output.folder import check_place
    from gift_generate.planning.plan_check import shard_slices

    return len(shard_slices(check_place(out, plan)))
