"""A TOML table into a frozen dataclass: every key known, none missing, each of its type. No torch here.

Not pydantic or msgspec, which check types as well: a misspelt key is answered with the nearest one, a fault names file and table, and a
class's own refusal keeps its words.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from gift_shared.errors import ConfigError, unknown_name

T = TypeVar("T")


def parse_table(cls: type[T], table: Mapping[str, Any], where: str, given: Mapping[str, Any] | None = None) -> T:
    """A TOML table into a frozen dataclass. `given` are fields that do not come from the table.

    Raises: ConfigError for unknown, missing and mistyped keys, and what the class itself refuses.
    """
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where} must be a table, found {table!r}.")
    given = given or {}
    fields = {field.name: field for field in dataclasses.fields(cls) if field.name not in given}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    for key in table:
        if key not in fields:
            raise ConfigError(f"{where}: " + unknown_name("key", key, fields))
    values = dict(given)
    for key, field in fields.items():
        if key in table:
            values[key] = _parse_value(hints[key], table[key], f"{where}: {key!r}")
        elif field.default is dataclasses.MISSING:
            raise ConfigError(f"{where}: the key {key!r} is missing.")
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _parse_value(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin is types.UnionType:
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
        return _parse_value(hint, value, where)
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise ConfigError(f"{where}: " + unknown_name("value", str(value), map(str, typing.get_args(hint))))
        return value
    if dataclasses.is_dataclass(hint):
        return parse_table(typing.cast(type, hint), value, where)
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where} must be a table, found {value!r}.")
        return {key: _parse_value(typing.get_args(hint)[1], entry, f"{where}, {key!r}") for key, entry in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where} must be a finite number, found {value}.")
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where} must be of type {hint.__name__}, found {value!r}.")
    return value
