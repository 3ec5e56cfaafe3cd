"""One typed description of what a command is told: its options on the command line, the object that code reads, and its words again.

An options class is a frozen dataclass whose fields are `Annotated[type, typer.Option(...)]`; a field without a default must be given.
"""

import dataclasses
import inspect
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
import typer.core

from gift_shared.errors import ConfigError

T = TypeVar("T")
LISTS = (list, tuple)
URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/+(?P<rest>.*)", re.DOTALL)  # of a path, which has swallowed the second slash


class LocalCommand(typer.core.TyperCommand):
    """A command whose `Path` parameters are files and folders of this machine: a URL is refused before anything is read or written.

    Else `s3://bucket/x` would be taken for a folder `s3:` below the working directory. What may be a URL is declared as text.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Raises ConfigError for a URL where a path should stand."""
        left = super().parse_args(ctx, args)
        assert self.callback is not None
        annotations = inspect.signature(self.callback).parameters
        flags = {parameter.name: [*parameter.opts, parameter.name][0] for parameter in self.params}
        for name, value in ctx.params.items():
            if name not in annotations or not takes_path(annotations[name].annotation):
                continue
            for one in value if isinstance(value, LISTS) else [value]:
                if one is not None and (match := URL.fullmatch(str(one))):
                    shown = f"{match['scheme']}://{match['rest']}"
                    raise ConfigError(
                        f"{flags[name]} {shown} is a URL; expected a path on this machine or on storage that is mounted here."
                    )
        return left


def with_version(app: typer.Typer, program: str, packages: Sequence[str]) -> None:
    """Give a program `--version`: its own, and that of the packages its numbers depend on (`gift_shared.version`)."""

    def tell(is_asked: bool) -> None:
        if is_asked:
            from gift_shared.version import version_text

            typer.echo(version_text(program, packages))
            raise typer.Exit

    @app.callback()
    def program_options(
        version: Annotated[bool, typer.Option("--version", callback=tell, is_eager=True, help="Show the version and exit.")] = False,
    ) -> None:
        """Options of the program itself."""


def takes_path(annotation: Any) -> bool:
    """Whether a parameter so annotated is a path, or several."""
    return annotation is Path or any(takes_path(part) for part in typing.get_args(annotation))


def takes_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """A typer command whose parameters of options classes are replaced by those classes' fields, which `command` gets as one object.

    In `--help` the fields stand where the parameter does.
    """
    hints = typing.get_type_hints(command, include_extras=True)
    signature = inspect.signature(command)
    classes = {name: hints[name] for name in signature.parameters if dataclasses.is_dataclass(hints[name])}

    @wraps(command)
    def with_options(**given: Any) -> Any:
        built = {name: from_parameters(cls, given) for name, cls in classes.items()}
        taken = {field for cls in classes.values() for field in field_names(cls)}
        return command(**built, **{name: value for name, value in given.items() if name not in taken})

    parameters: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        parameters += _options(classes[name]) if name in classes else [parameter]
    keyword_only = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    with_options.__signature__ = signature.replace(parameters=keyword_only)  # type: ignore[attr-defined]
    with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in keyword_only}
    return with_options


def _options(cls: type) -> list[inspect.Parameter]:
    hints, fields = typing.get_type_hints(cls, include_extras=True), inspect.signature(cls).parameters
    return [fields[name].replace(annotation=hints[name]) for name in field_names(cls)]


def field_names(cls: type) -> list[str]:
    """Names of an options class's fields: its own, then those of each class it extends."""
    by_class = [name for one in cls.__mro__ for name in inspect.get_annotations(one)]
    known = {field.name for field in dataclasses.fields(cls)}
    return [name for name in dict.fromkeys(by_class) if name in known]


def from_parameters(cls: type[T], given: Mapping[str, Any]) -> T:
    """The object from typer's parameters by name; others in `given` are passed over. An option that was not given is its default."""
    return cls(**{name: given[name] for name in field_names(cls) if name in given})


def as_words(options: Any) -> list[str]:
    """The flags that give these options, those at their default left out: what a user would type."""
    words: list[str] = []
    hints = typing.get_type_hints(type(options), include_extras=True)
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    for name in field_names(type(options)):
        value = getattr(options, name)
        if value is None or value == defaults[name]:
            continue
        flag = _flag(name, hints[name])
        if isinstance(value, bool):
            words += [flag] if value else []
        else:
            words += [word for one in (value if isinstance(value, LISTS) else [value]) for word in (flag, str(one))]
    return words


def flag_of(cls: type, name: str) -> str:
    """How a user gives the option of an options class, e.g. `--steps` for a field `denoising_steps`."""
    return _flag(name, typing.get_type_hints(cls, include_extras=True)[name])


def _flag(name: str, hint: Any) -> str:
    """The option's own long name, else the field's with dashes, as typer makes it."""
    for told in getattr(hint, "__metadata__", ()):
        if isinstance(told, typer.models.OptionInfo):
            # Within Annotated, where no default is given, typer takes the first name for one until it builds the command.
            long = [str(declared) for declared in (told.default, *(told.param_decls or ())) if str(declared).startswith("--")]
            return long[0] if long else f"--{name.replace('_', '-')}"
    raise TypeError(f"{name} is no option: it needs Annotated[..., typer.Option(...)]")
