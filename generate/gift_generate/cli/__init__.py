"""gift-generate: plan | render | submit | verify | status | show | import. Imports nothing heavy until a command runs."""

import typer

from gift_generate.cli import import_, inspect, plan, render, submit
from gift_shared.console import run_app

app = typer.Typer(
    name="gift-generate",
    help="Stage 1 of GIFT: captions in, WebDataset shards of synthetic images out.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain text: boxes cut flag names short, and markup swallows [default: ...]
    pretty_exceptions_enable=False,
)
app.command()(plan.plan)
app.command()(render.render)
app.command(context_settings={"allow_interspersed_args": False})(submit.submit)
app.command()(inspect.verify)
app.command()(inspect.status)
app.command()(inspect.show)
app.command(name="import")(import_.import_)


def main() -> None:
    """Entry point of the command line."""
    run_app(app)
