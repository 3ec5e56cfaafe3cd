"""The command line gift-train: a file for each group of commands.

Imports nothing heavy until a command runs.
"""

import warnings

import typer

from gift_shared.console import run_app
from gift_shared.options import LocalCommand, with_version
from gift_train.cli.data import data_app
from gift_train.cli.evaluate import evaluate
from gift_train.cli.export import export
from gift_train.cli.parity import parity
from gift_train.cli.recipes import methods, validate
from gift_train.cli.report import report, watch
from gift_train.cli.run import run
from gift_train.cli.score import score
from gift_train.cli.submit import submit
from gift_train.cli.table import table

app = typer.Typer(
    name="gift-train",
    help="Stage 2 of GIFT: synthetic shards and a sequence of tasks in, a continually learned CLIP and its accuracy matrix out.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain text: boxes cut flag names short, and markup swallows [default: ...]
    pretty_exceptions_enable=False,
)
with_version(app, "gift-train", ("torch", "torchvision", "open_clip_torch", "accelerate"))
app.add_typer(data_app)
for command in (run, evaluate, report, table, export):
    app.command(cls=LocalCommand)(command)
app.command(cls=LocalCommand, context_settings={"allow_interspersed_args": False})(submit)
for command in (watch, methods, validate, score, parity):
    app.command(cls=LocalCommand)(command)


def main() -> None:
    """Entry point of the command line."""
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"  # told to a user, not to a developer
    run_app(app)
