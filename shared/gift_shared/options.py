"""One typed description of what a command is told: its options on the command line, the object that code reads, and its words again.

An options class is a frozen dataclass whose fields are `Annotated[type, typer.Option(...)]`; a field without a default must be given.
"""

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar

import typer

T = TypeVar("T")
LISTS = (list, tuple)


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
