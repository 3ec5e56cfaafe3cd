"""Options that are described once: what a command is given, in which order it shows them, and the flags of an object's fields."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from gift_shared.options import as_words, flag_of, takes_options


@dataclass(frozen=True, kw_only=True)
class Painting:
    """Options of three kinds: named after the field, by another name, repeatable."""

    color: Annotated[str, typer.Option(help="A colour.")] = "red"
    num_strokes: Annotated[int, typer.Option("--strokes", help="How many.")] = 3
    is_framed: Annotated[bool, typer.Option("--frame", help="With a frame.")] = False
    notes: Annotated[list[str] | None, typer.Option("--note", help="Repeatable.")] = None


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer(rich_markup_mode=None, add_completion=False)

    @app.command()
    @takes_options
    def paint(
        *,
        out: Annotated[Path, typer.Option("--out", help="File.")],
        painting: Painting,
        is_quick: Annotated[bool, typer.Option("--quick", help="In a hurry.")] = False,
    ) -> None:
        """Paint."""
        typer.echo(f"{out} {painting} {is_quick}")

    return app


def test_a_command_gets_its_options_as_one_object(app: typer.Typer) -> None:
    result = CliRunner().invoke(app, ["--out", "x.png", "--strokes", "5", "--note", "a", "--note", "b", "--quick"])
    assert result.output.strip() == f"x.png {Painting(num_strokes=5, notes=['a', 'b'])} True"


def test_options_stand_where_the_command_names_their_class(app: typer.Typer) -> None:
    found = [line.split()[0] for line in CliRunner().invoke(app, ["--help"]).output.splitlines() if line.startswith("  --")]
    assert found == ["--out", "--color", "--strokes", "--frame", "--note", "--quick", "--help"]


@pytest.mark.parametrize(("field", "flag"), [("color", "--color"), ("num_strokes", "--strokes"), ("is_framed", "--frame")])
def test_the_flag_of_a_field_is_the_one_that_the_command_takes(field: str, flag: str) -> None:
    assert flag_of(Painting, field) == flag


def test_the_words_of_an_object_give_it_back(app: typer.Typer) -> None:
    painting = Painting(num_strokes=4, is_framed=True, notes=["a b", "c"])
    words = as_words(painting)
    assert words == ["--strokes", "4", "--frame", "--note", "a b", "--note", "c"]
    assert CliRunner().invoke(app, ["--out", "x", *words]).output.strip() == f"x {painting} False"
