"""gift-train methods and validate: what can be run. Imports nothing heavy until a command runs."""

import json
from typing import Annotated

import typer

from gift_train.options import MethodFiles, Overrides


def methods(method_files: MethodFiles = None) -> None:
    """List the methods, those of your own and of installed packages too: what each replays, and its recipes."""
    from gift_train.methods.method_files import load_method_files, method_code
    from gift_train.methods.registry import method_class, method_names
    from gift_train.recipes.recipe import benchmarks, recipe_methods

    load_method_files(method_files)
    for name in method_names():
        chosen = method_class(name)
        typer.echo(f"{name:10} {chosen.summary}")
        typer.echo(f"{'':10} replays: {chosen.replay.value}")
        if (code := method_code(name)) is not None:
            typer.echo(f"{'':10} written in: {code.path}")
        for benchmark in benchmarks():
            recipes = [recipe for recipe, method in recipe_methods(benchmark).items() if method == name]
            if recipes:
                typer.echo(f"{'':10} recipes for {benchmark}: {', '.join(recipes)}")


def validate(
    recipe: Annotated[str, typer.Argument(help="Recipe by name or as a .toml file.", show_default=False)],
    benchmark: Annotated[str, typer.Option(help="Folder of recipes the name is looked up in.")] = "mini",
    method_files: MethodFiles = None,
    overrides: Overrides = None,
) -> None:
    """Check a recipe without running it, and print it resolved."""
    from gift_train.methods.method_files import load_method_files
    from gift_train.recipes.recipe import load_recipe

    load_method_files(method_files)
    typer.echo(json.dumps(load_recipe(recipe, benchmark, overrides or ()).as_table(), indent=2))
