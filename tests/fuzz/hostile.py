"""What the fuzz tests share: damage to bytes, hostile values in tables, and the property every reader has to keep.

A reader of files either reads or raises a GiftError that names a file: never another exception, never for ever, and never does it
open a file that its input merely names. `GIFT_FUZZ=2000 pytest tests/fuzz` tries that many examples for each test, each time others.
"""

import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from gift_shared.errors import GiftError

NUM_EXAMPLES = int(os.environ.get("GIFT_FUZZ", "0"))
SECONDS = 20  # that a reader may take for one small file
OUTSIDE = "/etc/passwd"  # no reader has business there
QUIET = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}


def fuzz(examples):
    """The same few examples at every run, unless GIFT_FUZZ asks for many."""
    return settings(max_examples=NUM_EXAMPLES or examples, derandomize=not NUM_EXAMPLES, **QUIET)


NAMES = st.sampled_from(
    [
        OUTSIDE, "../../../../../../etc/passwd", "..", ".", "", "a/b", "a\\b", "/", "C:\\x", "a\0b", "é", "\u202e", "-rf", "~", "a" * 300,
        "a.pkl", "a.tar", "\n", " ", "{}", "{0..9999999}", "%s", "CON",
    ]
)  # fmt: skip
NUMBERS = st.one_of(
    st.sampled_from([0, -1, 1, 2**31, 2**63 - 1, 2**63, -(2**63), 10**400, 0.5, -0.0, 1e308, float("inf"), float("-inf"), float("nan")]),
    st.integers(-1000, 1000),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, NAMES, st.text(max_size=20)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.one_of(NAMES, st.text(max_size=5)), inner, max_size=3)),
    max_leaves=6,
)


@st.composite
def damages(draw):
    """A function that damages bytes: flips, cuts, swaps, repeats and fills stretches of them, most of all near the ends."""
    steps = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["flip", "set", "cut", "drop", "repeat", "zero", "insert", "digits"]),
                st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.001, 0.01, 0.99, 0.999, 1.0])),
                st.integers(1, 64),
                st.binary(min_size=1, max_size=8),
            ),
            min_size=1,
            max_size=4,
        )
    )

    def damage(content):
        for kind, place, length, filling in steps:
            start = min(int(place * len(content)), max(len(content) - 1, 0))
            before, middle, after = content[:start], content[start : start + length], content[start + length :]
            if kind == "flip":
                middle = bytes(byte ^ filling[0] for byte in middle)
            elif kind == "set":
                middle = (filling * 64)[: len(middle)]
            elif kind == "cut":
                middle = after = b""
            elif kind == "drop":
                middle = b""
            elif kind == "repeat":
                middle = middle * (2 + filling[0] % 3)
            elif kind == "zero":
                middle = bytes(len(middle))
            elif kind == "insert":
                middle = filling + middle
            else:
                middle = bytes(57 if 48 <= byte <= 57 else byte for byte in middle)
            content = before + middle + after
        return content

    return damage


@st.composite
def table_changes(draw):
    """A function that changes a nested table in a few places: another value, a key less, a key more, a key renamed."""
    steps = draw(
        st.lists(
            st.tuples(st.sampled_from(["value", "value", "value", "drop", "add", "rename"]), st.integers(0, 10_000), VALUES, NAMES),
            min_size=1,
            max_size=3,
        )
    )

    def change(table):
        table = _copied(table)
        for kind, number, value, name in steps:
            places = list(_places(table))
            if not places:
                return table
            holder, key = places[number % len(places)]
            if kind == "value":
                holder[key] = _copied(value)
            elif kind == "drop":
                del holder[key]
            elif isinstance(holder, list):
                holder.append(_copied(value))
            elif kind == "add":
                holder[name] = _copied(value)
            else:
                holder[name] = holder.pop(key)
        return table

    return change


def _copied(value):
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value


def _places(value):
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)


def toml_text(table):
    """A table as TOML; what TOML cannot say (null) is left out."""
    lines = []
    for key, value in table.items():
        if value is not None:
            lines.append(f"{_toml_string(str(key))} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _toml(value):
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return {"inf": "inf", "-inf": "-inf", "nan": "nan"}.get(repr(value), repr(value))
    if isinstance(value, int):
        return hex(value) if value > 2**63 else str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml_string(str(key))} = {_toml(inner)}" for key, inner in value.items() if inner is not None) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(inner) for inner in value if inner is not None) + "]"
    return _toml_string(str(value))


def _toml_string(text):
    return '"' + "".join(c if c.isalnum() or c in " _-./{}" else f"\\U{ord(c):08x}" for c in text if not 0xD800 <= ord(c) < 0xE000) + '"'


opened = []
_is_noting = False


def _note(event, arguments):
    if _is_noting and event in ("open", "os.mkdir", "os.rename", "os.remove", "os.link", "os.symlink"):
        opened.extend(str(argument) for argument in arguments[:2] if isinstance(argument, str | bytes | os.PathLike))


sys.addaudithook(_note)


@contextmanager
def _alarm():
    def too_long(*_):
        raise AssertionError(f"not done after {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def reads_or_tells(read, *files):
    """Call `read`. Returns True if it read; False if it raised a GiftError in one line that names one of the files."""
    global _is_noting
    opened.clear()
    _is_noting, message = True, None
    try:
        with _alarm():
            read()
    except GiftError as error:
        message = str(error)
    finally:
        _is_noting = False
    assert not [path for path in opened if os.path.abspath(path) == OUTSIDE], "a file outside was opened"
    if message is not None:
        assert any(str(file) in message or Path(file).name in message for file in files), f"no file is named: {message}"
        assert len(message) < 20_000
    return message is None
