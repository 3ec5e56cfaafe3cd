"""JSON and TOML files that anyone may have written or damaged: either a table of the expected shape, or one error naming the file.

Not pydantic or msgspec: of a table's shape both want a class, where most files here are read for a few keys of theirs, and neither has the
sentence a user reads (file, place, what was expected and found, in one line); the files, their encoding and their end would stay ours.
"""

import json
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from gift_shared.errors import GiftError

Shape = Any
"""What a value should look like: `str`, `int` (64 bits), `bool`, `float` (finite; whole numbers too), `object` (anything),
`[shape]`, `{"key": shape, "optional?": shape}` (other keys pass), `{str: shape}` (any keys), `Maybe(shape)`, or `FILE_NAME`."""


@dataclass(frozen=True)
class Maybe:
    """The shape, or null."""

    shape: Shape


@dataclass(frozen=True)
class _FileName:
    """A string that names a file or folder right where it is used."""


FILE_NAME = _FileName()


def read_json_object(path: Path, shape: Shape, error_class: type[GiftError], advice: str = "Restore it.") -> dict[str, Any]:
    """The object a JSON file holds. Raises `error_class`, naming the file, for anything else; `advice` says what to do then."""
    return _read(path, json.loads, "a JSON object", shape, error_class, advice)


def read_json_lines(path: Path, shape: Shape, error_class: type[GiftError], advice: str = "Restore it.") -> list[dict[str, Any]]:
    """The objects of a file with one a line; none if it is not there. A last line without its end is being written: passed over."""
    if not path.exists():
        return []
    text = _read_text(path, error_class, advice)
    rows = []
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise error_class(f"{path}, line {number} is not JSON: {error}. {advice}") from error
        if (fault := shape_fault(rows[-1], shape)) is not None:
            raise error_class(f"{path}, line {number}{fault}. {advice}")
    return rows


def read_toml(path: Path, error_class: type[GiftError], advice: str = "Correct it.") -> dict[str, Any]:
    """The table a TOML file holds. Raises `error_class`, naming the file, if it is not valid TOML or not there."""
    return _read(path, tomllib.loads, "valid TOML", {}, error_class, advice)


def shape_fault(value: Any, shape: Shape) -> str | None:
    """Where and how a value is not of its shape, as the end of a sentence that begins with the file; None if it is."""
    if isinstance(shape, Maybe):
        return None if value is None else shape_fault(value, shape.shape)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return _wrong("a list", value)
        return _first_fault(enumerate(value), lambda _: shape[0])
    if isinstance(shape, dict):
        return _table_fault(value, shape)
    if isinstance(shape, _FileName):
        return None if isinstance(value, str) and is_file_name(value) else _wrong("a plain name", value)
    if shape is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300
        return None if is_number else _wrong("a finite number", value)
    if not isinstance(value, shape) or (isinstance(value, bool) and shape is int):
        return _wrong(shape.__name__, value)
    return _wrong("a number of 64 bits", value) if shape is int and abs(value) >= 2**63 else None


def is_file_name(text: str) -> bool:
    """Whether a string names one file or folder: no path, no drive, nothing hidden, nothing that a file system refuses."""
    name = PureWindowsPath(text)  # knows both slashes, and drives
    is_one_part = len(name.parts) == 1 and name.name == text and not text.startswith(".")
    return is_one_part and text.isprintable() and len(text.encode(errors="replace")) <= 200


def _table_fault(value: Any, shape: dict[Any, Shape]) -> str | None:
    if not isinstance(value, dict):
        return _wrong("an object", value)
    if str in shape:
        return _first_fault(value.items(), lambda _: shape[str])
    wanted = {key.removesuffix("?"): inner for key, inner in shape.items()}
    missing = [key for key in shape if key not in value and not key.endswith("?")]
    if missing:
        return f": the key {missing[0]!r} is missing"
    return _first_fault(((key, value[key]) for key in wanted if key in value), lambda key: wanted[key])


def _first_fault(items: Any, shape_of: Callable[[Any], Shape]) -> str | None:
    for key, value in items:
        if (fault := shape_fault(value, shape_of(key))) is not None:
            return f": {_short(key)}{fault}"
    return None


def _wrong(expected: str, value: Any) -> str:
    return f" must be {expected}, found {_short(value)}"


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 2**63 else "a longer number"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _read(path: Path, parse: Callable[[str], Any], what: str, shape: Shape, error_class: type[GiftError], advice: str) -> dict[str, Any]:
    text = _read_text(path, error_class, advice)
    try:
        table = parse(text)
    except (ValueError, RecursionError) as error:  # both parsers' errors, and numbers and nesting without end
        raise error_class(f"{path} is not {what}: {error}. {advice}") from error
    if not isinstance(table, dict):
        raise error_class(f"{path} is not {what}: found {type(table).__name__}. {advice}")
    if (fault := shape_fault(table, shape)) is not None:
        raise error_class(f"{path}{fault}. {advice}")
    return table


def _read_text(path: Path, error_class: type[GiftError], advice: str) -> str:
    if not path.is_file():  # a pipe or device would be read for ever
        raise error_class(f"{path} is {'no file' if path.exists() else 'missing'}. {advice}")
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise error_class(f"{path} cannot be read: {error.strerror}. {advice}") from error
    except UnicodeDecodeError as error:
        raise error_class(f"{path} is not UTF-8 text: {error}. {advice}") from error
