"""gift-train parity: how anyone checks us against the published code. Imports nothing heavy until the command runs."""

from pathlib import Path
from typing import Annotated

import typer


def parity(
    fixture: Annotated[
        Path, typer.Argument(help="Folder with fixture.safetensors and .json, or the .safetensors file.", show_default=False)
    ],
) -> None:
    """Replay golden numbers through the code that training runs. Exit code 1 unless every variant agrees.

    A variant whose method is not built counts as disagreement: nobody has shown that it agrees.
    """
    from gift_train.parity.bounds import LOSS_BOUND, WEIGHT_BOUND
    from gift_train.parity.replay import check_fixture

    num_disagreeing = 0
    typer.echo(
        f"{'variant':24} {'largest loss difference':>24} {'99th pct. of weights':>22}   (bounds {LOSS_BOUND:.0e}, {WEIGHT_BOUND:.0e})"
    )
    for result in check_fixture(fixture):
        num_disagreeing += not result.agrees
        shown = ("-" if value is None else f"{value:.2e}" for value in (result.loss_difference, result.weight_difference))
        verdict = "agrees" if result.agrees else "DISAGREES"
        typer.echo("{:24} {:>24} {:>22}   {}".format(result.name, *shown, f"{verdict} ({result.note})" if result.note else verdict))
    if num_disagreeing:
        typer.echo(f"{num_disagreeing} variants do not agree.")
        raise typer.Exit(1)
    typer.echo("All variants agree.")
