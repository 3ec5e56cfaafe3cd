"""The methods by name: those of this folder, those that installed packages announce, and those of files that were loaded.

A package announces with an entry point of the group `gift_train.methods`: its name is the method's, its value the module (or
`module:Class`) that registers it. A module is imported when its method is asked for, so an error of it surfaces there.
"""

import pkgutil
from collections.abc import Callable, Collection
from dataclasses import is_dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from gift_shared.errors import ConfigError, GiftError, first_line, unknown_name
from gift_train.methods.base import Method

GROUP = "gift_train.methods"  # of entry points, and the package of our own
_REGISTRY: dict[str, type[Method]] = {}


def register(name: str) -> Callable[[type[Method]], type[Method]]:
    """Class decorator: make a method known under `name`, which is also its file's and its recipe's name.

    Raises: ConfigError for a name that is no word or is another method's, and for a class that cannot be a method.
    """

    def decorate(chosen: type[Method]) -> type[Method]:
        if not name.isidentifier():
            raise ConfigError(f"A method's name is a word of letters, digits and underscores, found {name!r}.")
        if not (isinstance(chosen, type) and issubclass(chosen, Method)):
            raise ConfigError(f"The method {name!r} must be a subclass of gift_train.methods.base.Method, found {chosen!r}.")
        if not isinstance(getattr(chosen, "summary", None), str) or not is_dataclass(chosen.Config):
            raise ConfigError(f"The method {name!r} needs a `summary`, one line of text, and a Config that is a dataclass.")
        if chosen.replay_terms is not Method.replay_terms and chosen.replay_inputs is Method.replay_inputs:
            raise ConfigError(
                f"The method {name!r} has replay_terms, but no replay_inputs that they are made of: they would never be asked."
            )
        is_ours = name in _own_modules() and not is_own(chosen)
        if is_ours or (name in _REGISTRY and _REGISTRY[name].__module__ != chosen.__module__):
            raise ConfigError(f"There is a method {name!r} already. Register yours under another name.")
        chosen.name = name
        _REGISTRY[name] = chosen
        return chosen

    return decorate


def method_class(name: str) -> type[Method]:
    """The method of that name; imports its one module. Raises ConfigError if there is none, or its package does not load."""
    if name not in _REGISTRY and name in _own_modules():
        import_module(f"{GROUP}.{name}")
    elif name not in _REGISTRY and name in _announced():
        _load(_announced()[name])
    if name not in _REGISTRY:
        raise ConfigError(f"{unknown_name('method', name, method_names())} One of your own is made known with --method-file.")
    return _REGISTRY[name]


def method_names() -> list[str]:
    """Names of all methods, sorted. Imports this folder's, and no package that announces one."""
    for module in _own_modules():
        import_module(f"{GROUP}.{module}")
    return sorted({*_REGISTRY, *_announced()})


def is_own(chosen: type[Method]) -> bool:
    """Whether a method is one of this folder."""
    return chosen.__module__.startswith(f"{GROUP}.")


def registered() -> dict[str, type[Method]]:
    """What was imported so far, by name."""
    return dict(_REGISTRY)


def forget(names: Collection[str]) -> None:
    """Take names out again."""
    for name in names:
        del _REGISTRY[name]


@cache
def _own_modules() -> frozenset[str]:
    """The modules of this folder: every method, and what methods share."""
    return frozenset(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))


@cache
def _announced() -> dict[str, EntryPoint]:
    """By the method's name. Raises ConfigError if two packages announce the same, or one of ours."""
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        if point.name in _own_modules() or point.name in found:
            other = "is one of ours" if point.name in _own_modules() else f"is announced by {_told(found[point.name])} too"
            raise ConfigError(f"{_told(point)} announces the method {point.name!r}, which {other}. Uninstall or rename it.")
        found[point.name] = point
    return found


def _load(point: EntryPoint) -> None:
    try:
        point.load()
    except GiftError as error:
        raise ConfigError(f"{_told(point)}: {error}") from error
    except Exception as error:  # whatever a package does when it is imported
        what = f"{type(error).__name__}: {first_line(error)}"
        raise ConfigError(f"{_told(point)}: its method {point.name!r} does not load: {what}.") from error
    if point.name not in _REGISTRY:
        raise ConfigError(f"{_told(point)} announces the method {point.name!r}, but {point.value} registers none of that name.")


def _told(point: EntryPoint) -> str:
    return "a package" if point.dist is None else f"package {point.dist.name} {point.dist.version}"
