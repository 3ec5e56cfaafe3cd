"""gift-generate plan: what is to be rendered. Imports nothing heavy until the command runs."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from gift_generate.cli.options import ManifestFolders, require_file_name
from gift_generate.planning.plan_request import PlanRequest
from gift_shared.errors import ConfigError
from gift_shared.options import takes_options

DEFAULT_ORDER = "mini"  # where a plan of class names is given neither an order nor datasets


@takes_options
def plan(
    out: Annotated[Path, typer.Option("--out", help="Parquet file to write.", show_default=False)],
    request: PlanRequest,
    manifests: ManifestFolders = None,
    images_per_second: Annotated[
        float | None, typer.Option(help="Rate of one worker, for the estimate of time and --minutes-per-shard.")
    ] = None,
    measured: Annotated[Path | None, typer.Option(help="Output folder rendered earlier, to take rate and image size from.")] = None,
) -> None:
    """Decide every image before any model is loaded, and tell what it will cost."""
    from gift_generate.planning.cost import Rates, cost_lines, measured_rates
    from gift_generate.planning.plan import make_plan
    from gift_generate.planning.plan_record import shard_line, source_lines
    from gift_generate.planning.request_rules import takes_order
    from gift_shared.manifests import Manifests
    from gift_shared.parquet_files import write_plan

    require_file_name("--out", out)
    if takes_order(request) and request.order is None and not request.datasets:
        request = replace(request, order=DEFAULT_ORDER)
    rates = measured_rates(measured) if measured else Rates(None, None)
    if images_per_second is not None:
        if not 0 < images_per_second < float("inf"):
            raise ConfigError(f"--images-per-second must be above 0, found {images_per_second}.")
        rates = Rates(images_per_second, rates.bytes_per_image)
    rows, metadata = make_plan(request, Manifests(tuple(manifests or ())), rates.images_per_second)
    write_plan(out, rows, metadata)
    typer.echo(f"plan    {out}")
    for line in (*source_lines(rows, metadata), *cost_lines(rows.num_rows, rates), shard_line(rows, request.workers)):
        typer.echo(line)
