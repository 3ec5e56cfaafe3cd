"""gift-train parity: how anyone checks us against the published code. Imports nothing heavy until the command runs."""

from pathlib import Path
from typing import Annotated

import typer


def parity(
    fixture: Annotated[
        Path, typer.Argument(help="Folder with fixture.safetensors and .json, or the .safetensors file.", show_default=False)
    ],
    device: Annotated[str, typer.Option(help="cpu, where the golden numbers were made, or cuda: float32, with wider bounds.")] = "cpu",
) -> None:
    """Replay golden numbers through the code that training runs. Exit code 1 unless every variant agrees.

    A variant whose method is not built counts as disagreement: nobody has shown that it agrees.
    """
    from gift_train.clip.load import pick_device, set_matmul_precision
    from gift_train.parity.bounds import bounds_on
    from gift_train.parity.replay import check_fixture

    chosen = pick_device(device)
    set_matmul_precision("fp32")
    bounds, num_disagreeing = bounds_on(chosen), 0
    typer.echo(
        f"{'variant':24} {'largest loss difference':>24} {'99th pct. of weights':>22}   (bounds {bounds.loss:.0e}, {bounds.weight:.0e})"
    )
    for result in check_fixture(fixture, chosen):
        num_disagreeing += not result.agrees
        shown = ("-" if value is None else f"{value:.2e}" for value in (result.loss_difference, result.weight_difference))
        verdict = "agrees" if result.agrees else "DISAGREES"
        typer.echo("{:24} {:>24} {:>22}   {}".format(result.name, *shown, f"{verdict} ({result.note})" if result.note else verdict))
    if num_disagreeing:
        typer.echo(f"{num_disagreeing} variants do not agree.")
        raise typer.Exit(1)
    typer.echo("All variants agree.")
