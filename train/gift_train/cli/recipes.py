"""gift-train methods and validate: what can be run. Imports nothing heavy until a command runs."""

import json
from typing import Annotated

import typer

from gift_train.options import Overrides


def methods() -> None:
    """List the methods, what each replays, and its recipes."""
    from gift_train.methods.registry import METHOD_NAMES, method_class
    from gift_train.recipes.recipe import benchmarks, recipe_methods

    for name in METHOD_NAMES:
        chosen = method_class(name)
        typer.echo(f"{name:10} {chosen.summary}")
        typer.echo(f"{'':10} replays: {chosen.replay.value}")
        for benchmark in benchmarks():
            recipes = [recipe for recipe, method in recipe_methods(benchmark).items() if method == name]
            if recipes:
                typer.echo(f"{'':10} recipes for {benchmark}: {', '.join(recipes)}")


def validate(
    recipe: Annotated[str, typer.Argument(help="Recipe by name or as a .toml file.", show_default=False)],
    benchmark: Annotated[str, typer.Option(help="Folder of recipes the name is looked up in.")] = "mini",
    overrides: Overrides = None,
) -> None:
    """Check a recipe without running it, and print it resolved."""
    from gift_train.recipes.recipe import load_recipe

    typer.echo(json.dumps(load_recipe(recipe, benchmark, overrides or ()).as_table(), indent=2))
