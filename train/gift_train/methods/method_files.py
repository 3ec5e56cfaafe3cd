"""Methods of one's own: Python files that a command is given, and what is recorded of the code that a run was made with."""

import hashlib
import inspect
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from gift_shared.errors import ConfigError, GiftError, first_line
from gift_train.methods.base import Method
from gift_train.methods.registry import forget, is_own, method_class, registered

_MODULE = "gift_method_file_"  # and the file's stem: such a module is in nobody's way


@dataclass(frozen=True, kw_only=True)
class MethodCode:
    """Where a method that is not ours is written. sha256: of the file's bytes; what it imports is not looked at."""

    path: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    sha256: str
    names: tuple[str, ...]


_LOADED: dict[Path, _Loaded] = {}


def load_method_files(paths: Iterable[Path] | None) -> None:
    """Make the methods of files known. A file that is loaded already runs again only if it has changed.

    Raises: ConfigError for a file that is not there, does not run, or registers no method, or one whose name is taken.
    """
    for path in paths or ():
        try:
            _load(path)
        except ConfigError as error:
            raise ConfigError(f"--method-file {path}: {error}") from error


def method_code(name: str) -> MethodCode | None:
    """Where a method is written; None for one of ours. Raises ConfigError if there is none of that name."""
    chosen = method_class(name)
    if is_own(chosen):
        return None
    path = Path(inspect.getfile(chosen))
    digest = _LOADED[path].sha256 if path in _LOADED else _sha256(path.read_bytes())
    return MethodCode(path=str(path), sha256=digest)


def files_of(name: str, paths: Iterable[Path] | None) -> list[Path] | None:
    """Those of the loaded files that a run of the method needs: the one that registers it."""
    return [path for path in paths or () if name in _LOADED[path.resolve()].names] or None


def is_plain_clip(chosen: type[Method]) -> bool:
    """Whether what a method hands on is read as any CLIP is: it adds no parameters, and no classifier of its own."""
    hooks = ("prepare", "scores", "readings", "answers")
    return all(getattr(chosen, hook) is getattr(Method, hook) for hook in hooks)


def _load(path: Path) -> None:
    if path.suffix != ".py" or not path.is_file():
        raise ConfigError("expected a Python file, whose name ends in .py." if path.exists() else "there is no such file.")
    place, content = path.resolve(), path.read_bytes()
    before, digest = _LOADED.get(place), _sha256(content)
    if before is not None and before.sha256 == digest:
        return
    for other in [path for path in _LOADED if path == place or not path.exists()]:  # changed, or moved away
        forget(_LOADED.pop(other).names)
    if any(other.stem == place.stem for other in _LOADED):
        raise ConfigError(f"another file of the name {place.name} is loaded already. Rename one.")
    there = registered()
    try:
        module = _run(place, content)
        new = {name: chosen for name, chosen in registered().items() if name not in there}
        names = tuple(name for name, chosen in new.items() if chosen.__module__ == module)
        if not names:
            raise ConfigError('it registers no method. Put @register("name") of gift_train.methods.registry above its class.')
    except ConfigError:
        forget([name for name, chosen in registered().items() if chosen.__module__ == _MODULE + place.stem])
        raise
    _LOADED[place] = _Loaded(sha256=digest, names=names)


def _run(path: Path, content: bytes) -> str:
    """Execute a file as a module. Returns the module's name. Raises ConfigError with the line at which it failed.

    The very bytes whose digest is recorded are run, not what Python may have cached of the file.
    """
    module = ModuleType(_MODULE + path.stem)
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where dataclasses look up what their annotations name
    try:
        exec(compile(content, path, "exec"), module.__dict__)
    except GiftError as error:
        raise ConfigError(str(error)) from error
    except SyntaxError as error:
        raise ConfigError(f"line {error.lineno}: {error.msg}.") from error
    except Exception as error:  # whatever is written there
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f"line {lines[-1]}: " if lines else ""
        raise ConfigError(f"{where}{type(error).__name__}: {first_line(error)}.") from error
    return module.__name__


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
