"""gift-generate: plan | adapt | render | submit | verify | status | show | score | import | push.

Imports nothing heavy until a command runs.
"""

import typer

from gift_generate.cli import adapt, import_, inspect, plan, push, render, score, submit
from gift_shared.console import run_app
from gift_shared.options import LocalCommand, with_version

app = typer.Typer(
    name="gift-generate",
    help="Stage 1 of GIFT: captions in, WebDataset shards of synthetic images out.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain text: boxes cut flag names short, and markup swallows [default: ...]
    pretty_exceptions_enable=False,
)
with_version(app, "gift-generate", ("torch", "diffusers", "transformers", "accelerate"))
for command in (plan.plan, adapt.adapt, render.render):
    app.command(cls=LocalCommand)(command)
app.command(cls=LocalCommand, context_settings={"allow_interspersed_args": False})(submit.submit)
for command in (inspect.verify, inspect.status, inspect.show):
    app.command(cls=LocalCommand)(command)
app.command(cls=LocalCommand)(score.score)
app.command(cls=LocalCommand, name="import")(import_.import_)
app.command(cls=LocalCommand)(push.push)


def main() -> None:
    """Entry point of the command line."""
    run_app(app)
